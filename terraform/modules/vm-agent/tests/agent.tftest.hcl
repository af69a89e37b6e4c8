mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
}

variables {
  node_name = "web-1"
  ami_id    = "ami-1"

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

  services = [{
    name      = "web"
    port      = 8080
    protocol  = "http"
    checks    = [{ http = "http://127.0.0.1:8080/health", interval = "5s" }]
    upstreams = [{ destination_name = "db", local_bind_port = 5432 }]
  }]
}

run "the_agent_joins_by_its_role_with_its_services" {
  assert {
    condition = jsondecode(base64decode(regex("base64 -d <<<'([^']+)' \\| configure 10-", output.user_data)[0])) == {
      node_name   = "web-1"
      datacenter  = "dc1"
      data_dir    = "/var/lib/hawser"
      retry_join  = ["provider=aws tag_key=hawser-servers tag_value=demo region=eu-central-1"]
      join_method = "aws-iam"
      node_meta   = {}
      services = [{
        name     = "web"
        port     = 8080
        protocol = "http"
        tags     = []
        meta     = {}
        checks   = [{ http = "http://127.0.0.1:8080/health", interval = "5s" }]
        connect  = { sidecar_service = { proxy = { upstreams = [{ destination_name = "db", local_bind_port = 5432 }] } } }
      }]
    }
    error_message = "The agent's configuration is another."
  }

  assert {
    condition     = strcontains(output.user_data, "hawser-agent.service") && !strcontains(output.user_data, "hawser-server.service'")
    error_message = "The agent's unit is installed, and not the server's."
  }
}

run "the_vm_may_find_the_servers_and_know_them" {
  assert {
    condition = {
      for statement in jsondecode(aws_iam_role_policy.agent.policy).Statement : join(" ", flatten([statement.Action])) => statement.Resource
      } == {
      "ssm:GetParameter"      = "arn:aws:ssm:eu-central-1:123456789012:parameter/hawser/demo/server-pin"
      "ec2:DescribeInstances" = "*"
    }
    error_message = "The VM's role may do more or less than it needs."
  }

  assert {
    condition     = output.allowed_roles == { "arn:aws:iam::123456789012:role/demo-web-1" = "web-1" } && aws_iam_role.agent.name == "demo-web-1"
    error_message = "The VM's role is to be its node, and no other."
  }
}

run "a_fleet_is_named_by_its_instances" {
  variables {
    node_name = "web"
    fleet     = true
  }

  assert {
    condition     = output.allowed_roles == { "arn:aws:iam::123456789012:role/demo-web" = "web-*" }
    error_message = "The fleet's role may be any of its nodes."
  }

  assert {
    condition     = strcontains(output.user_data, "'web-' \"$(about instance-id)\"")
    error_message = "Each VM names itself."
  }
}

run "a_role_s_name_that_aws_would_refuse_is_refused" {
  command = plan

  variables {
    node_name = "a-name-of-sixty-characters-which-is-too-long-beside-a-clusters"
  }

  expect_failures = [var.node_name]
}

run "membership_comes_from_the_members_group" {
  assert {
    condition     = contains(aws_launch_template.agent.vpc_security_group_ids, "sg-members") && length(aws_launch_template.agent.vpc_security_group_ids) == 2
    error_message = "The VM is a member, and has a group of its own."
  }

  assert {
    condition     = aws_vpc_security_group_egress_rule.https.from_port == 443 && aws_vpc_security_group_egress_rule.https.to_port == 443
    error_message = "The VM's own group lets out HTTPS alone."
  }

  assert {
    condition     = one(aws_launch_template.agent.metadata_options).http_tokens == "required"
    error_message = "IMDSv2 only."
  }
}

run "a_node_name_that_breaks_the_shell_is_refused" {
  command = plan

  variables {
    node_name = "web'; reboot '"
  }

  expect_failures = [var.node_name]
}
