resource "aws_kms_key" "cluster" {
  description             = "Hawser ${var.name}: operator key at rest"
  enable_key_rotation     = true
  deletion_window_in_days = 30

  # The account's IAM policies decide; the roles of servers and members get what they need there.
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "AccountDecidesByIam"
      Effect    = "Allow"
      Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
      Action    = "kms:*"
      Resource  = "*"
    }]
  })

  tags = var.tags
}

resource "aws_kms_alias" "cluster" {
  name          = "alias/hawser-${var.name}"
  target_key_id = aws_kms_key.cluster.key_id
}

# An empty secret: the operator puts the key in, so that it never is in Terraform's state.
resource "aws_secretsmanager_secret" "operator_key" {
  #checkov:skip=CKV2_AWS_57:the operator key cannot be rotated: the cluster's identity and sealed keys are derived from it
  name                    = "hawser/${var.name}/operator-key"
  description             = "The operator key of the Hawser cluster ${var.name}, as printed by hawser keygen"
  kms_key_id              = aws_kms_key.cluster.arn
  recovery_window_in_days = 30
  tags                    = var.tags
}

locals {
  arn_of = {
    for what, name in local.parameters :
    what => "arn:${local.partition}:ssm:${local.region}:${local.account}:parameter${name}"
  }
}

resource "aws_iam_role" "server" {
  name = "${var.name}-server"
  tags = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_instance_profile" "server" {
  name = "${var.name}-server"
  role = aws_iam_role.server.name
  tags = var.tags
}

resource "aws_iam_role_policy" "server" {
  name = "hawser"
  role = aws_iam_role.server.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "ReadOperatorKey"
          Effect   = "Allow"
          Action   = "secretsmanager:GetSecretValue"
          Resource = aws_secretsmanager_secret.operator_key.arn
        },
        {
          Sid      = "DecryptOperatorKey"
          Effect   = "Allow"
          Action   = "kms:Decrypt"
          Resource = aws_kms_key.cluster.arn
        },
        {
          Sid      = "ReadPinAndAllowList"
          Effect   = "Allow"
          Action   = "ssm:GetParameter"
          Resource = [local.arn_of.pin, local.arn_of.allow_list]
        },
        {
          Sid      = "PublishPin"
          Effect   = "Allow"
          Action   = "ssm:PutParameter"
          Resource = local.arn_of.pin
        },
        {
          Sid      = "FindServers"
          Effect   = "Allow"
          Action   = "ec2:DescribeInstances"
          Resource = "*" # AWS knows no narrower permission for it
        },
      ],
      startswith(var.install.url, "s3://") ? [{
        Sid      = "ReadProgram"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = "arn:${local.partition}:s3:::${trimprefix(var.install.url, "s3://")}"
      }] : [],
    )
  })
}

resource "aws_iam_role_policy_attachment" "session_manager" {
  count = var.session_manager ? 1 : 0

  role       = aws_iam_role.server.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}
