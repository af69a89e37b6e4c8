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

run "servers_find_one_another_by_their_tag_and_found_together" {
  assert {
    condition = alltrue([for node, text in output.user_data :
      jsondecode(base64decode(regex("base64 -d <<<'([^']+)' \\| configure 10-", text)[0])) == {
        node_name                = node
        datacenter               = "dc1"
        data_dir                 = "/var/lib/hawser"
        retry_join               = ["provider=aws tag_key=hawser-servers tag_value=demo region=eu-central-1"]
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
    condition     = alltrue([for template in aws_launch_template.server : template.tag_specifications[0].tags["hawser-servers"] == "demo"])
    error_message = "Servers carry the tag that they are found by."
  }

  assert {
    condition     = output.cluster.retry_join == ["provider=aws tag_key=hawser-servers tag_value=demo region=eu-central-1"] && output.load_balancer == "demo-servers.elb.example"
    error_message = "Agents find the servers by the tag; who cannot, by the load balancer."
  }
}

run "nobody_joins_by_role_unasked" {
  assert {
    condition     = aws_ssm_parameter.allow_list.value == "{}" && aws_ssm_parameter.pin.value == "unset"
    error_message = "Without roles there is no aws_iam block, and no pin without a key."
  }
}

run "roles_join_as_the_nodes_that_they_may_be" {
  variables {
    allowed_accounts = ["210987654321"]

    allowed_roles = {
      "arn:aws:iam::123456789012:role/demo-web-1" = "web-1"
      "arn:aws:iam::210987654321:role/demo-*"     = "ecs-*"
    }
  }

  assert {
    condition = jsondecode(aws_ssm_parameter.allow_list.value) == {
      aws_iam = {
        region           = "eu-central-1"
        allowed_accounts = ["123456789012", "210987654321"]
        allowed_roles = {
          "arn:aws:iam::123456789012:role/demo-web-1" = "web-1"
          "arn:aws:iam::210987654321:role/demo-*"     = "ecs-*"
        }
      }
    }
    error_message = "The allow-list is another."
  }

  assert {
    condition     = alltrue([for text in values(output.user_data) : strcontains(text, "--name '/hawser/demo/allow-list'") && strcontains(text, "--name '/hawser/demo/server-pin' --overwrite")])
    error_message = "Servers fetch the list, and publish their pin."
  }
}

run "a_role_of_an_account_that_is_not_named_is_refused" {
  command = plan

  variables {
    allowed_roles = { "arn:aws:iam::210987654321:role/demo-web" = "web-1" }
  }

  expect_failures = [aws_ssm_parameter.allow_list]
}

run "a_role_with_a_path_and_a_star_within_are_refused" {
  command = plan

  variables {
    allowed_roles = { "arn:aws:iam::123456789012:role/team/web" = "w*b" }
  }

  expect_failures = [var.allowed_roles]
}

run "peers_are_dialled_where_they_are" {
  variables {
    peer_cidr_blocks = ["10.9.0.0/16"]
  }

  assert {
    condition     = toset([for rule in values(aws_vpc_security_group_egress_rule.to_peers) : "${rule.cidr_ipv4}:${rule.from_port}-${rule.to_port}"]) == toset(["10.9.0.0/16:8443-8443", "10.9.0.0/16:8300-8300"]) && length(aws_vpc_security_group_egress_rule.to_peers) == 3
    error_message = "Members and servers reach gateways, and servers reach servers."
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
      "secretsmanager:GetSecretValue", "kms:Decrypt", "ssm:GetParameter", "ssm:PutParameter", "ec2:DescribeInstances", "s3:GetObject",
    ])
    error_message = "The servers' role may do more or less than it needs."
  }

  assert {
    condition     = [for statement in jsondecode(aws_iam_role_policy.server.policy).Statement : statement.Action if statement.Resource == "*"] == ["ec2:DescribeInstances"]
    error_message = "Every permission names what it is for, where AWS has names for it."
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
