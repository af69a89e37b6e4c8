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
}

variables {
  ecs_cluster_arn = "arn:aws:ecs:eu-central-1:123456789012:cluster/apps"
  name            = "hello"
  subnet_ids      = ["subnet-a", "subnet-b"]
  sidecar_image   = "registry.example/hawser:0.1.0"
  shell_image     = "registry.example/busybox:1.37"

  cluster = {
    name                     = "demo"
    datacenter               = "dc1"
    vpc_id                   = "vpc-1"
    retry_join               = ["demo-servers.elb.example"]
    member_security_group_id = "sg-members"
    kms_key_arn              = "arn:aws:kms:eu-central-1:123456789012:key/1"
    join_parameter_prefix    = "/hawser/demo/join"
  }

  services = [{ name = "hello", port = 8080, protocol = "http" }]

  containers = "[{\"name\": \"hello\", \"image\": \"registry.example/hello:1\", \"cpu\": 64}, {\"name\": \"helper\", \"image\": \"registry.example/helper:1\", \"dependsOn\": [{\"containerName\": \"hello\", \"condition\": \"START\"}]}]"
}

run "the_application_waits_for_a_healthy_sidecar" {
  assert {
    condition     = [for container in jsondecode(output.container_definitions) : container.name] == ["hawser-config", "hawser", "hello", "helper"]
    error_message = "The task has the sidecar's containers and the application's."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[2].dependsOn == [{ containerName = "hawser", condition = "HEALTHY" }]
    error_message = "The application starts when the sidecar is healthy."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[3].dependsOn == [{ containerName = "hello", condition = "START" }, { containerName = "hawser", condition = "HEALTHY" }]
    error_message = "What a container waited for before, it still waits for."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[2].cpu == 64 && jsondecode(output.container_definitions)[2].image == "registry.example/hello:1"
    error_message = "The application's definition is kept."
  }
}

run "the_sidecar_is_checked_and_confined" {
  assert {
    condition     = jsondecode(output.container_definitions)[1].healthCheck.command == ["CMD", "/usr/bin/hawser", "health"]
    error_message = "Its health is what hawser health says."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[1].user == "65532:65532" && jsondecode(output.container_definitions)[1].readonlyRootFilesystem && jsondecode(output.container_definitions)[1].linuxParameters.capabilities.drop == ["ALL"]
    error_message = "It is nobody's root and may do nothing special."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[1].stopTimeout > 30 && jsondecode(output.container_definitions)[1].stopTimeout <= 120
    error_message = "It may drain before it is killed, within Fargate's limit."
  }
}

run "the_token_is_a_secret_and_the_configuration_names_the_load_balancer" {
  assert {
    condition     = jsondecode(output.container_definitions)[0].secrets == [{ name = "JOIN_TOKEN", valueFrom = "arn:aws:ssm:eu-central-1:123456789012:parameter/hawser/demo/join/hello" }]
    error_message = "The join token comes from the parameter of the task's name."
  }

  assert {
    condition     = jsondecode(base64decode(jsondecode(output.container_definitions)[0].environment[0].value)).retry_join == ["demo-servers.elb.example"]
    error_message = "The sidecar joins by the load balancer."
  }

  assert {
    condition     = length([for container in jsondecode(output.container_definitions) : container if can(container.secrets) && container.name != "hawser-config"]) == 0
    error_message = "Nobody else sees the token."
  }
}

run "never_two_tasks_with_one_identity" {
  assert {
    condition     = aws_ecs_service.task.desired_count == 1 && aws_ecs_service.task.deployment_maximum_percent == 100 && aws_ecs_service.task.deployment_minimum_healthy_percent == 0
    error_message = "The old task ends before the new one starts."
  }

  assert {
    condition     = one(aws_ecs_service.task.network_configuration).assign_public_ip == false && contains(one(aws_ecs_service.task.network_configuration).security_groups, "sg-members")
    error_message = "The task is private and a member."
  }

  assert {
    condition     = aws_efs_file_system.identity.encrypted && aws_vpc_security_group_ingress_rule.storage.from_port == 2049 && length(aws_efs_mount_target.identity) == 2
    error_message = "The identity is encrypted, and reachable from each subnet by the task alone."
  }
}

run "the_sidecars_names_are_its_own" {
  command = plan

  variables {
    containers = "[{\"name\": \"hawser\", \"image\": \"registry.example/hello:1\"}]"
  }

  expect_failures = [var.containers]
}

run "what_is_no_list_of_containers_is_refused" {
  command = plan

  variables {
    containers = "{}"
  }

  expect_failures = [var.containers]
}

run "a_task_is_a_service" {
  command = plan

  variables {
    services = []
  }

  expect_failures = [var.services]
}
