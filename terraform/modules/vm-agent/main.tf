data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  name      = "${var.cluster.name}-${replace(var.node_name, ".", "-")}"
  partition = data.aws_partition.current.partition
}

module "config" {
  source = "../agent-config"

  node_name  = var.node_name
  datacenter = var.cluster.datacenter
  retry_join = var.cluster.retry_join
  services   = var.services
  node_meta  = var.node_meta
}

module "user_data" {
  source = "../user-data"

  part             = "agent"
  install          = var.install
  config           = module.config.json
  extra_config     = var.extra_config
  node_name_prefix = var.fleet ? "${var.node_name}-" : null
  pin              = { region = var.cluster.region, parameter = var.cluster.pin_parameter }
  wait_seconds     = var.wait_seconds
  before_start     = var.before_start
}

resource "aws_launch_template" "agent" {
  name                   = local.name
  image_id               = var.ami_id
  instance_type          = var.instance_type
  user_data              = base64encode(module.user_data.text)
  vpc_security_group_ids = [aws_security_group.agent.id, var.cluster.member_security_group_id]
  update_default_version = true

  iam_instance_profile {
    arn = aws_iam_instance_profile.agent.arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  monitoring {
    enabled = true
  }

  block_device_mappings {
    device_name = var.root_device_name

    ebs {
      encrypted             = true
      volume_size           = var.volume_gib
      volume_type           = "gp3"
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, { Name = local.name })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = merge(var.tags, { Name = local.name })
  }

  tags = var.tags
}

# What makes the VM a member of the mesh is the cluster's security group of members; this one is the
# VM's own, for what else it needs.
resource "aws_security_group" "agent" {
  #checkov:skip=CKV2_AWS_5:it is attached by the launch template
  name        = local.name
  description = "The VM ${var.node_name} of the mesh ${var.cluster.name}"
  vpc_id      = coalesce(var.vpc_id, var.cluster.vpc_id)
  tags        = merge(var.tags, { Name = local.name })
}

resource "aws_vpc_security_group_egress_rule" "https" {
  description       = "AWS's APIs and the download of the program"
  security_group_id = aws_security_group.agent.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_iam_role" "agent" {
  name = local.name
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

resource "aws_iam_instance_profile" "agent" {
  name = local.name
  role = aws_iam_role.agent.name
  tags = var.tags
}

resource "aws_iam_role_policy" "agent" {
  name = "hawser"
  role = aws_iam_role.agent.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "ReadServersPin"
          Effect   = "Allow"
          Action   = "ssm:GetParameter"
          Resource = var.cluster.pin_parameter_arn
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

  role       = aws_iam_role.agent.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}
