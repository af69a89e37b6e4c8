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

  services = [{ name = "hello", port = 8080, protocol = "http" }]

  containers = "[{\"name\": \"hello\", \"image\": \"registry.example/hello:1\", \"cpu\": 64}, {\"name\": \"helper\", \"image\": \"registry.example/helper:1\", \"essential\": false, \"stopTimeout\": 5, \"dependsOn\": [{\"containerName\": \"hello\", \"condition\": \"START\"}]}]"
}

run "the_application_waits_for_a_healthy_sidecar" {
  assert {
    condition     = [for container in jsondecode(output.container_definitions) : container.name] == ["hawser", "hello", "helper"]
    error_message = "The task has the sidecar and the application's containers."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[1].dependsOn == [{ containerName = "hawser", condition = "HEALTHY" }]
    error_message = "The application starts when the sidecar is healthy."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[2].dependsOn == [{ containerName = "hello", condition = "START" }, { containerName = "hawser", condition = "HEALTHY" }]
    error_message = "What a container waited for before, it still waits for."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[1].cpu == 64 && jsondecode(output.container_definitions)[1].image == "registry.example/hello:1"
    error_message = "The application's definition is kept."
  }
}

run "the_sidecar_is_checked_and_confined" {
  assert {
    condition     = jsondecode(output.container_definitions)[0].healthCheck.command == ["CMD", "/usr/bin/hawser", "health"]
    error_message = "Its health is what hawser health says."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[0].user == "65532:65532" && jsondecode(output.container_definitions)[0].readonlyRootFilesystem && jsondecode(output.container_definitions)[0].linuxParameters.capabilities.drop == ["ALL"]
    error_message = "It is nobody's root and may do nothing special."
  }
}

run "the_sidecar_is_configured_by_its_environment_and_by_the_task" {
  assert {
    condition = jsondecode(jsondecode(output.container_definitions)[0].environment[0].value) == {
      datacenter  = "dc1"
      data_dir    = "/var/lib/hawser"
      retry_join  = ["provider=aws tag_key=hawser-servers tag_value=demo region=eu-central-1"]
      join_method = "aws-iam"
      node_meta   = {}
      proxy       = { drain = "10s" }
      ecs         = { containers = ["hello"], stop_timeout = "30s" }
      services = [{
        name    = "hello", port = 8080, protocol = "http", tags = [], meta = {}, checks = []
        connect = { sidecar_service = { proxy = { upstreams = [] } } }
      }]
    }
    error_message = "The configuration is another; the node's name, address and zone are the task's to say."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[0].secrets == [{ name = "HAWSER_SERVER_PIN", valueFrom = "arn:aws:ssm:eu-central-1:123456789012:parameter/hawser/demo/server-pin" }]
    error_message = "The servers are known by the pin that they publish."
  }

  assert {
    condition     = jsondecode(output.container_definitions)[0].mountPoints == [{ sourceVolume = "hawser", containerPath = "/var/lib/hawser", readOnly = false }]
    error_message = "It may write in its own folder alone."
  }
}

run "what_is_said_besides_is_laid_over" {
  variables {
    extra_config = "{\"log_level\": \"debug\", \"proxy\": {\"workers\": 1}}"
  }

  assert {
    condition     = jsondecode(jsondecode(output.container_definitions)[0].environment[0].value).proxy == { drain = "10s", workers = 1 } && jsondecode(jsondecode(output.container_definitions)[0].environment[0].value).log_level == "debug"
    error_message = "What the module says of the proxy stays."
  }
}

run "the_sidecar_outlives_the_application" {
  assert {
    condition     = [for container in jsondecode(output.container_definitions) : container.stopTimeout] == [50, 30, 5]
    error_message = "The sidecar may serve while the application stops, and drain after it."
  }
}

run "the_tasks_join_by_their_role" {
  assert {
    condition     = output.allowed_roles == { "arn:aws:iam::123456789012:role/demo-hello-task" = "ecs-*" } && aws_iam_role.task.name == "demo-hello-task"
    error_message = "The role may be a task's node, and no other."
  }

  assert {
    condition     = [for statement in jsondecode(aws_iam_role_policy.task.policy).Statement : statement.Action] == ["ec2:DescribeInstances"]
    error_message = "The task may find the servers, and nothing else."
  }

  assert {
    condition     = [for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : "${statement.Action} ${statement.Resource}"] == ["ssm:GetParameters arn:aws:ssm:eu-central-1:123456789012:parameter/hawser/demo/server-pin"]
    error_message = "ECS may read the pin for the task."
  }
}

run "tasks_are_replaced_without_a_gap" {
  assert {
    condition     = aws_ecs_service.task.desired_count == 2 && aws_ecs_service.task.deployment_maximum_percent == 200 && aws_ecs_service.task.deployment_minimum_healthy_percent == 100
    error_message = "New tasks are healthy before old ones end."
  }

  assert {
    condition     = one(aws_ecs_service.task.network_configuration).assign_public_ip == false && contains(one(aws_ecs_service.task.network_configuration).security_groups, "sg-members")
    error_message = "The tasks are private and members."
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

run "a_container_that_outlives_the_sidecar_is_refused" {
  command = plan

  variables {
    containers = "[{\"name\": \"hello\", \"image\": \"registry.example/hello:1\", \"stopTimeout\": 31}]"
  }

  expect_failures = [var.containers]
}

run "what_fargate_would_cut_short_is_refused" {
  command = plan

  variables {
    application_stop_seconds = 90
    drain_seconds            = 30
  }

  expect_failures = [var.application_stop_seconds]
}

run "a_task_is_a_service" {
  command = plan

  variables {
    services = []
  }

  expect_failures = [var.services]
}
