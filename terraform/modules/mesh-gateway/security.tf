resource "aws_security_group" "load_balancer" {
  #checkov:skip=CKV2_AWS_5:it is attached to the network load balancer
  name        = "${local.full_name}-lb"
  description = "Load balancer before the mesh gateways of ${var.cluster.name}"
  vpc_id      = var.cluster.vpc_id
  tags        = merge(var.tags, { Name = "${local.full_name}-lb" })
}

resource "aws_vpc_security_group_ingress_rule" "to_load_balancer" {
  for_each = toset(var.caller_cidr_blocks)

  description       = "Hawser: other clusters to the load balancer"
  security_group_id = aws_security_group.load_balancer.id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = local.port
  to_port           = local.port
}

resource "aws_vpc_security_group_egress_rule" "to_gateways" {
  description                  = "Hawser: load balancer to gateways"
  security_group_id            = aws_security_group.load_balancer.id
  referenced_security_group_id = module.vm.security_group_id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

resource "aws_vpc_security_group_ingress_rule" "from_load_balancer" {
  description                  = "Hawser: load balancer to gateways"
  security_group_id            = module.vm.security_group_id
  referenced_security_group_id = aws_security_group.load_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

# Gateways that tell others their own addresses are dialled at them.
resource "aws_vpc_security_group_ingress_rule" "to_gateways" {
  for_each = var.advertise == "instance" ? toset(var.caller_cidr_blocks) : toset([])

  description       = "Hawser: other clusters to the gateways"
  security_group_id = module.vm.security_group_id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = local.port
  to_port           = local.port
}

# With a mesh gateway's mode "local", services go out by their own cluster's gateways.
resource "aws_vpc_security_group_ingress_rule" "from_members" {
  description                  = "Hawser: members to their own gateways"
  security_group_id            = module.vm.security_group_id
  referenced_security_group_id = var.cluster.member_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

resource "aws_vpc_security_group_egress_rule" "from_members" {
  description                  = "Hawser: members to their own gateways"
  security_group_id            = var.cluster.member_security_group_id
  referenced_security_group_id = module.vm.security_group_id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}
