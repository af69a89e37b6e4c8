data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  full_name = "${var.cluster.name}-${var.name}"
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
  # No name in the image is needed for a number, and nothing of root's. The image's folder is this user's.
  uid = 65532

  containers = jsondecode(var.containers)
  # Those whose end ends the task decide about its health; only the task definition knows them.
  essential = [for container in local.containers : container.name if try(container.essential, true)]

  extra = jsondecode(var.extra_config)
  config = merge(
    jsondecode(module.config.json),
    local.extra,
    {
      proxy = merge({ drain = "${var.drain_seconds}s" }, try(local.extra.proxy, {}))
      ecs = merge(
        { containers = local.essential, stop_timeout = "${var.application_stop_seconds}s" },
        try(local.extra.ecs, {}),
      )
    },
  )

  logs = {
    for container in ["hawser", "application"] : container => {
      logDriver = "awslogs"
      options = {
        "awslogs-group"         = aws_cloudwatch_log_group.task.name
        "awslogs-region"        = data.aws_region.current.region
        "awslogs-stream-prefix" = container
      }
    }
  }

  sidecar = {
    name                   = "hawser"
    image                  = var.sidecar_image
    essential              = true
    readonlyRootFilesystem = true
    user                   = "${local.uid}:${local.uid}"
    entryPoint             = [var.sidecar_binary]
    command                = ["agent"]
    environment            = [{ name = "HAWSER_CONFIG_JSON", value = jsonencode(local.config) }]
    # No secret, but written by the servers only once they have their key: ECS reads it at each start.
    secrets = [{ name = "HAWSER_SERVER_PIN", valueFrom = var.cluster.pin_parameter_arn }]
    healthCheck = {
      command     = ["CMD", var.sidecar_binary, "health"]
      interval    = 5
      timeout     = 4
      retries     = 3
      startPeriod = 60
    }
    linuxParameters  = { capabilities = { drop = ["ALL"] } }
    stopTimeout      = var.application_stop_seconds + var.drain_seconds + local.leaving_seconds
    mountPoints      = [{ sourceVolume = "hawser", containerPath = "/var/lib/hawser", readOnly = false }]
    logConfiguration = local.logs["hawser"]
  }
  # Leaving the catalog takes a moment before the drain, and closing one after it.
  leaving_seconds = 10

  # A dependency also orders the stop: the application first, its sidecar after it.
  application = [for container in local.containers : merge(
    { logConfiguration = local.logs["application"], stopTimeout = var.application_stop_seconds },
    container,
    { dependsOn = concat(try(container.dependsOn, []), [{ containerName = "hawser", condition = "HEALTHY" }]) },
  )]
}

module "config" {
  source = "../agent-config"

  datacenter = var.cluster.datacenter
  retry_join = var.cluster.retry_join
  services   = var.services
}

resource "aws_ecs_task_definition" "task" {
  family                   = local.full_name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.cpu
  memory                   = var.memory_mib
  execution_role_arn       = aws_iam_role.execution.arn
  task_role_arn            = aws_iam_role.task.arn
  # Unlike objects meet as text.
  container_definitions = "[${join(",", concat([jsonencode(local.sidecar)], [for container in local.application : jsonencode(container)]))}]"

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.architecture
  }

  # Empty, and gone with the task: each task is a node of its own.
  volume {
    name = "hawser"
  }

  tags = var.tags
}

resource "aws_ecs_service" "task" {
  name                               = var.name
  cluster                            = var.ecs_cluster_arn
  task_definition                    = aws_ecs_task_definition.task.arn
  desired_count                      = var.desired_count
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  availability_zone_rebalancing      = "ENABLED"
  launch_type                        = "FARGATE"
  platform_version                   = "LATEST"
  propagate_tags                     = "SERVICE"
  # Tasks wait for the operator key, which nobody has put in while this is applied first.
  wait_for_steady_state = false

  deployment_circuit_breaker {
    enable   = var.roll_back
    rollback = var.roll_back
  }

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.task.id, var.cluster.member_security_group_id]
    assign_public_ip = false
  }

  tags = var.tags

  depends_on = [aws_iam_role_policy.execution, aws_iam_role_policy.task]
}

resource "aws_cloudwatch_log_group" "task" {
  #checkov:skip=CKV_AWS_158:logs hold no secrets and are encrypted by the service's own key
  name              = "/hawser/${local.full_name}"
  retention_in_days = var.log_retention_days
  tags              = var.tags
}
