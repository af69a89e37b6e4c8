# With connection = "vpc-peering": a private way between the two VPCs.
resource "aws_vpc_peering_connection" "to_west" {
  count = local.is_peered ? 1 : 0

  vpc_id      = var.east.vpc_id
  peer_vpc_id = var.west.vpc_id
  peer_region = var.west.region
  tags        = { Name = "demo-east-to-west" }
}

resource "aws_vpc_peering_connection_accepter" "from_east" {
  count    = local.is_peered ? 1 : 0
  provider = aws.west

  vpc_peering_connection_id = aws_vpc_peering_connection.to_west[0].id
  auto_accept               = true
  tags                      = { Name = "demo-east-to-west" }
}

resource "aws_route" "to_west" {
  count = local.is_peered ? length(var.east.route_table_ids) : 0

  route_table_id            = var.east.route_table_ids[count.index]
  destination_cidr_block    = var.west.cidr_block
  vpc_peering_connection_id = aws_vpc_peering_connection_accepter.from_east[0].vpc_peering_connection_id
}

resource "aws_route" "to_east" {
  count    = local.is_peered ? length(var.west.route_table_ids) : 0
  provider = aws.west

  route_table_id            = var.west.route_table_ids[count.index]
  destination_cidr_block    = var.east.cidr_block
  vpc_peering_connection_id = aws_vpc_peering_connection_accepter.from_east[0].vpc_peering_connection_id
}
