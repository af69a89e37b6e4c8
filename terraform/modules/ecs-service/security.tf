# What makes the task a member of the mesh is the cluster's security group of members; this one is
# the task's own, for what else it needs.
resource "aws_security_group" "task" {
  name        = local.full_name
  description = "The task ${var.name} of the mesh ${var.cluster.name}"
  vpc_id      = var.cluster.vpc_id
  tags        = merge(var.tags, { Name = local.full_name })
}

resource "aws_security_group" "storage" {
  name        = "${local.full_name}-identity"
  description = "The identity of the task ${var.name} on EFS"
  vpc_id      = var.cluster.vpc_id
  tags        = merge(var.tags, { Name = "${local.full_name}-identity" })
}

resource "aws_vpc_security_group_egress_rule" "https" {
  description       = "Images, logs and secrets"
  security_group_id = aws_security_group.task.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "storage" {
  description                  = "NFS to the task's identity"
  security_group_id            = aws_security_group.task.id
  referenced_security_group_id = aws_security_group.storage.id
  ip_protocol                  = "tcp"
  from_port                    = 2049
  to_port                      = 2049
}

resource "aws_vpc_security_group_ingress_rule" "storage" {
  description                  = "NFS from the task"
  security_group_id            = aws_security_group.storage.id
  referenced_security_group_id = aws_security_group.task.id
  ip_protocol                  = "tcp"
  from_port                    = 2049
  to_port                      = 2049
}
