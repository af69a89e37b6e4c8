resource "aws_security_group" "servers" {
  #checkov:skip=CKV2_AWS_5:it is attached by the launch templates
  name        = "${var.name}-servers"
  description = "Hawser servers of ${var.name}"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-servers" })
}

resource "aws_security_group" "load_balancer" {
  #checkov:skip=CKV2_AWS_5:it is attached to the network load balancer
  name        = "${var.name}-servers-lb"
  description = "Load balancer before the Hawser servers of ${var.name}"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-servers-lb" })
}

resource "aws_security_group" "members" {
  #checkov:skip=CKV2_AWS_5:it is attached to every host and task of the mesh, outside this module
  name        = "${var.name}-members"
  description = "Hosts and tasks of the mesh ${var.name}: to servers, and to one another on mesh ports"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-members" })
}

locals {
  # Who may open port 8300 of whom. Everything that is not here is closed.
  to_servers = {
    "servers from servers"       = { of = aws_security_group.servers.id, from = aws_security_group.servers.id }
    "servers from load balancer" = { of = aws_security_group.servers.id, from = aws_security_group.load_balancer.id }
    "servers from members"       = { of = aws_security_group.servers.id, from = aws_security_group.members.id }
    "load balancer from servers" = { of = aws_security_group.load_balancer.id, from = aws_security_group.servers.id }
    "load balancer from members" = { of = aws_security_group.load_balancer.id, from = aws_security_group.members.id }
  }
  from_elsewhere = {
    for pair in setproduct(["servers", "load balancer"], var.agent_cidr_blocks) :
    "${pair[0]} from ${pair[1]}" => {
      of   = pair[0] == "servers" ? aws_security_group.servers.id : aws_security_group.load_balancer.id
      cidr = pair[1]
    }
  }
}

resource "aws_vpc_security_group_ingress_rule" "to_servers" {
  for_each = local.to_servers

  description                  = "Hawser: ${each.key}"
  security_group_id            = each.value.of
  referenced_security_group_id = each.value.from
  ip_protocol                  = "tcp"
  from_port                    = local.server_port
  to_port                      = local.server_port
}

resource "aws_vpc_security_group_egress_rule" "to_servers" {
  for_each = local.to_servers

  description                  = "Hawser: ${each.key}"
  security_group_id            = each.value.from
  referenced_security_group_id = each.value.of
  ip_protocol                  = "tcp"
  from_port                    = local.server_port
  to_port                      = local.server_port
}

resource "aws_vpc_security_group_ingress_rule" "from_elsewhere" {
  for_each = local.from_elsewhere

  description       = "Hawser: ${each.key}"
  security_group_id = each.value.of
  cidr_ipv4         = each.value.cidr
  ip_protocol       = "tcp"
  from_port         = local.server_port
  to_port           = local.server_port
}

# What leaves for peered clusters: members call through their gateways, and servers talk to servers,
# themselves or through a gateway.
resource "aws_vpc_security_group_egress_rule" "to_peers" {
  for_each = {
    for triple in setproduct(["members 8443", "servers 8443", "servers 8300"], var.peer_cidr_blocks) :
    "${triple[0]} to ${triple[1]}" => {
      of   = startswith(triple[0], "servers") ? aws_security_group.servers.id : aws_security_group.members.id
      port = tonumber(split(" ", triple[0])[1])
      cidr = triple[1]
    }
  }

  description       = "Hawser: ${each.key}"
  security_group_id = each.value.of
  cidr_ipv4         = each.value.cidr
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
}

resource "aws_vpc_security_group_egress_rule" "servers_https" {
  description       = "AWS's APIs and the download of the program"
  security_group_id = aws_security_group.servers.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_ingress_rule" "mesh" {
  description                  = "Hawser: mTLS between members"
  security_group_id            = aws_security_group.members.id
  referenced_security_group_id = aws_security_group.members.id
  ip_protocol                  = "tcp"
  from_port                    = local.mesh_ports.from
  to_port                      = local.mesh_ports.to
}

resource "aws_vpc_security_group_egress_rule" "mesh" {
  description                  = "Hawser: mTLS between members"
  security_group_id            = aws_security_group.members.id
  referenced_security_group_id = aws_security_group.members.id
  ip_protocol                  = "tcp"
  from_port                    = local.mesh_ports.from
  to_port                      = local.mesh_ports.to
}
