mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_resource "aws_lb" {
    defaults = { dns_name = "demo-gateway.elb.example", arn = "arn:aws:elasticloadbalancing:::loadbalancer/demo" }
  }
}

variables {
  subnet_ids         = ["subnet-a", "subnet-b"]
  ami_id             = "ami-1"
  caller_cidr_blocks = ["10.9.0.0/16"]

  cluster = {
    name                     = "demo"
    datacenter               = "dc1"
    region                   = "eu-central-1"
    vpc_id                   = "vpc-1"
    retry_join               = ["provider=aws tag_key=hawser-servers tag_value=demo region=eu-central-1"]
    pin_parameter            = "/hawser/demo/server-pin"
    pin_parameter_arn        = "arn:aws:ssm:eu-central-1:123456789012:parameter/hawser/demo/server-pin"
    member_security_group_id = "sg-members"
  }

  install = {
    url    = "https://downloads.example/hawser"
    sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
  }
}

run "the_agent_is_a_gateway_behind_the_load_balancer" {
  assert {
    condition     = jsondecode(base64decode(regex("base64 -d <<<'([^']+)' \\| configure 30-", output.user_data)[0])) == { mesh_gateway = { bind = "0.0.0.0:8443", advertise = "demo-gateway.elb.example:8443" } }
    error_message = "Others are told to dial the load balancer."
  }

  assert {
    condition     = jsondecode(base64decode(regex("base64 -d <<<'([^']+)' \\| configure 10-", output.user_data)[0])).join_method == "aws-iam" && strcontains(output.user_data, "'gateway-' \"$(about instance-id)\"")
    error_message = "It joins by its role, under a name of its own."
  }

  assert {
    condition     = output.allowed_roles == { "arn:aws:iam::123456789012:role/demo-gateway" = "gateway-*" } && output.address == "demo-gateway.elb.example:8443"
    error_message = "Its role is to be a gateway, and no other node."
  }
}

run "the_load_balancer_passes_tls_through" {
  assert {
    condition     = aws_lb_listener.gateway.protocol == "TCP" && aws_lb_listener.gateway.port == 8443 && aws_lb_target_group.gateway.protocol == "TCP" && aws_lb_target_group.gateway.port == 8443
    error_message = "TCP, and nothing that reads it."
  }

  assert {
    condition     = aws_lb.gateway.internal && aws_lb.gateway.enable_cross_zone_load_balancing && one(aws_lb_target_group.gateway.health_check).protocol == "TCP"
    error_message = "Private unless asked for, with each gateway in reach of each address."
  }
}

run "one_gateway_may_be_lost" {
  assert {
    condition     = aws_autoscaling_group.gateway.min_size == 2 && toset(aws_autoscaling_group.gateway.vpc_zone_identifier) == toset(["subnet-a", "subnet-b"]) && aws_autoscaling_group.gateway.health_check_type == "ELB"
    error_message = "Two over two zones, and what does not listen is replaced."
  }

  assert {
    condition     = one(one(aws_autoscaling_group.gateway.instance_refresh).preferences).min_healthy_percentage == 100
    error_message = "New ones come before old ones go."
  }
}

run "only_callers_come_in_and_only_through_the_load_balancer" {
  assert {
    condition     = [for rule in values(aws_vpc_security_group_ingress_rule.to_load_balancer) : "${rule.cidr_ipv4}:${rule.from_port}-${rule.to_port}"] == ["10.9.0.0/16:8443-8443"]
    error_message = "The load balancer takes 8443 from callers."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.from_load_balancer.referenced_security_group_id == aws_security_group.load_balancer.id && length(aws_vpc_security_group_ingress_rule.to_gateways) == 0
    error_message = "From elsewhere gateways are reached through the load balancer alone."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.from_members.referenced_security_group_id == "sg-members" && aws_vpc_security_group_egress_rule.from_members.security_group_id == "sg-members"
    error_message = "Members may go out by their own gateways."
  }
}

run "gateways_tell_their_own_addresses" {
  variables {
    advertise = "instance"
  }

  assert {
    condition     = jsondecode(base64decode(regex("base64 -d <<<'([^']+)' \\| configure 30-", output.user_data)[0])) == { mesh_gateway = { bind = "0.0.0.0:8443" } }
    error_message = "The binary's default is the node's own address."
  }

  assert {
    condition     = [for rule in values(aws_vpc_security_group_ingress_rule.to_gateways) : "${rule.cidr_ipv4}:${rule.from_port}-${rule.to_port}"] == ["10.9.0.0/16:8443-8443"]
    error_message = "Callers reach the gateways themselves."
  }
}

run "a_public_one_stands_in_public_subnets" {
  variables {
    internet_facing          = true
    load_balancer_subnet_ids = ["subnet-c", "subnet-d"]
  }

  assert {
    condition     = !aws_lb.gateway.internal && toset(aws_lb.gateway.subnets) == toset(["subnet-c", "subnet-d"]) && toset(aws_autoscaling_group.gateway.vpc_zone_identifier) == toset(["subnet-a", "subnet-b"])
    error_message = "The load balancer is public, the gateways are not."
  }
}

run "a_public_one_needs_its_subnets_and_its_name" {
  command = plan

  variables {
    internet_facing = true
    advertise       = "instance"
  }

  expect_failures = [var.load_balancer_subnet_ids, var.advertise]
}

run "a_lone_gateway_is_refused" {
  command = plan

  variables {
    min_size   = 1
    subnet_ids = ["subnet-a", "subnet-a"]
  }

  expect_failures = [var.min_size, var.subnet_ids]
}

run "a_name_that_no_load_balancer_can_have_is_refused" {
  command = plan

  variables {
    name = "gateways-with-a-name-of-some-length"
  }

  expect_failures = [var.name]
}

run "a_gateway_for_nobody_is_refused" {
  command = plan

  variables {
    caller_cidr_blocks = []
  }

  expect_failures = [var.caller_cidr_blocks]
}
