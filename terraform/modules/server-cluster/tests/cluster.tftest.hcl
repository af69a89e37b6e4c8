mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_resource "aws_lb" {
    defaults = { dns_name = "demo-servers.elb.example", arn = "arn:aws:elasticloadbalancing:::loadbalancer/demo" }
  }

  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:demo" }
  }
}

variables {
  name       = "demo"
  vpc_id     = "vpc-1"
  subnet_ids = ["subnet-a", "subnet-b", "subnet-c"]
  ami_id     = "ami-1"

  install = {
    url    = "s3://artifacts/hawser"
    sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
  }
}

run "three_servers_keep_their_names_and_zones" {
  assert {
    condition     = toset(keys(aws_autoscaling_group.server)) == toset(["demo-server-1", "demo-server-2", "demo-server-3"])
    error_message = "One group for each server, named like it."
  }

  assert {
    condition     = [for group in aws_autoscaling_group.server : one(group.vpc_zone_identifier)] == ["subnet-a", "subnet-b", "subnet-c"]
    error_message = "Each server in a subnet of its own."
  }

  assert {
    condition     = alltrue([for group in aws_autoscaling_group.server : group.min_size == 1 && group.max_size == 1])
    error_message = "Exactly one instance has a server's name."
  }

  assert {
    condition     = alltrue([for group in aws_autoscaling_group.server : group.health_check_type == "EC2"])
    error_message = "A server that waits for a quorum must not lose its disk to a health check."
  }

  assert {
    condition     = alltrue([for group in aws_autoscaling_group.server : length(group.instance_refresh) == 0])
    error_message = "A change must not replace all servers at once."
  }
}

run "servers_join_by_the_load_balancer_and_found_together" {
  assert {
    condition = alltrue([for node, text in output.user_data :
      jsondecode(base64decode(regex("base64 -d <<<'([^']+)' \\| configure 10-", text)[0])) == {
        node_name                = node
        datacenter               = "dc1"
        data_dir                 = "/var/lib/hawser"
        retry_join               = ["demo-servers.elb.example"]
        bootstrap_expect         = 3
        default_intention_policy = "deny"
      }
    ])
    error_message = "The servers' configuration is another."
  }

  assert {
    condition     = aws_lb.servers.internal && aws_lb.servers.load_balancer_type == "network" && !aws_lb.servers.enable_cross_zone_load_balancing
    error_message = "The load balancer is internal, and each of its addresses leads to one zone's server."
  }

  assert {
    condition     = aws_lb_target_group.servers.port == 8300 && aws_lb_target_group.servers.protocol == "TCP" && aws_lb_target_group.servers.preserve_client_ip == "false"
    error_message = "TLS passes through on 8300, also from a server to itself."
  }

  assert {
    condition     = output.cluster.retry_join == ["demo-servers.elb.example"]
    error_message = "Agents join by the load balancer."
  }
}

run "a_cluster_that_stands_is_not_founded_again" {
  variables {
    founding = false
  }

  assert {
    condition = alltrue([for text in values(output.user_data) :
      !can(jsondecode(base64decode(regex("base64 -d <<<'([^']+)' \\| configure 10-", text)[0])).bootstrap_expect)
    ])
    error_message = "bootstrap_expect must be left out."
  }
}

run "only_8300_and_mesh_ports_and_only_from_members" {
  assert {
    condition     = alltrue([for rule in values(aws_vpc_security_group_ingress_rule.to_servers) : rule.ip_protocol == "tcp" && rule.from_port == 8300 && rule.to_port == 8300])
    error_message = "Servers and their load balancer take 8300 and nothing else."
  }

  assert {
    condition     = alltrue([for rule in values(aws_vpc_security_group_ingress_rule.to_servers) : rule.cidr_ipv4 == null && rule.referenced_security_group_id != null])
    error_message = "By default no address range reaches the servers."
  }

  assert {
    condition     = toset(keys(aws_vpc_security_group_ingress_rule.to_servers)) == toset(["servers from servers", "servers from load balancer", "servers from members", "load balancer from servers", "load balancer from members"])
    error_message = "Who reaches the servers has changed."
  }

  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.from_elsewhere) == 0
    error_message = "Nobody comes from elsewhere unasked."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.mesh.from_port == 21000 && aws_vpc_security_group_ingress_rule.mesh.to_port == 21255 && aws_vpc_security_group_ingress_rule.mesh.security_group_id == aws_vpc_security_group_ingress_rule.mesh.referenced_security_group_id
    error_message = "Members reach each other on mesh ports."
  }
}

run "peered_networks_reach_8300_when_asked_for" {
  variables {
    agent_cidr_blocks = ["10.8.0.0/16"]
  }

  assert {
    condition     = toset([for rule in values(aws_vpc_security_group_ingress_rule.from_elsewhere) : "${rule.cidr_ipv4}:${rule.from_port}-${rule.to_port}"]) == toset(["10.8.0.0/16:8300-8300"]) && length(aws_vpc_security_group_ingress_rule.from_elsewhere) == 2
    error_message = "Both the servers and the load balancer are reached, on 8300 alone."
  }
}

run "instances_are_hardened_and_hold_no_secret" {
  assert {
    condition     = alltrue([for template in aws_launch_template.server : one(template.metadata_options).http_tokens == "required" && one(template.metadata_options).http_put_response_hop_limit == 1])
    error_message = "IMDSv2 only, and not through a container."
  }

  assert {
    condition     = alltrue([for template in aws_launch_template.server : tobool(one(one(template.block_device_mappings).ebs).encrypted)])
    error_message = "Volumes are encrypted."
  }

  assert {
    condition     = alltrue([for text in values(output.user_data) : strcontains(text, "--secret-id '${output.operator_key_secret}'")])
    error_message = "The operator key comes from the secret at boot."
  }

  assert {
    condition = toset(flatten([for statement in jsondecode(aws_iam_role_policy.server.policy).Statement : statement.Action])) == toset([
      "secretsmanager:GetSecretValue", "ssm:PutParameter", "kms:Decrypt", "kms:Encrypt", "s3:GetObject",
    ])
    error_message = "The servers' role may do more or less than it needs."
  }

  assert {
    condition     = alltrue([for statement in jsondecode(aws_iam_role_policy.server.policy).Statement : statement.Resource != "*"])
    error_message = "Every permission names what it is for."
  }
}

run "two_servers_are_refused" {
  command = plan

  variables {
    server_count = 2
  }

  expect_failures = [var.server_count]
}

run "the_whole_internet_is_refused" {
  command = plan

  variables {
    agent_cidr_blocks = ["0.0.0.0/0"]
  }

  expect_failures = [var.agent_cidr_blocks]
}

run "a_long_name_is_refused" {
  command = plan

  variables {
    name = "a-name-that-no-load-balancer-can-have"
  }

  expect_failures = [var.name]
}
