# What makes the task a member of the mesh is the cluster's security group of members; this one is
# the task's own, for what else it needs.
resource "aws_security_group" "task" {
  name        = local.full_name
  description = "The task ${var.name} of the mesh ${var.cluster.name}"
  vpc_id      = var.cluster.vpc_id
  tags        = merge(var.tags, { Name = local.full_name })
}

resource "aws_vpc_security_group_egress_rule" "https" {
  description       = "Images, logs and AWS's APIs"
  security_group_id = aws_security_group.task.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}
