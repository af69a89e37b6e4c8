data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  full_name = "${var.cluster.name}-${var.name}"
  # No name in the image is needed for a number, and nothing of root's.
  uid = 65532

  join_parameter     = "${var.cluster.join_parameter_prefix}/${var.name}"
  join_parameter_arn = "arn:${data.aws_partition.current.partition}:ssm:${data.aws_region.current.region}:${data.aws_caller_identity.current.account_id}:parameter${local.join_parameter}"

  sidecar_config = jsonencode({
    join_token_file = "/etc/hawser/join-token"
    proxy           = { drain = "${var.drain_seconds}s" }
  })

  logs = {
    for container in ["hawser-config", "hawser", "application"] : container => {
      logDriver = "awslogs"
      options = {
        "awslogs-group"         = aws_cloudwatch_log_group.task.name
        "awslogs-region"        = data.aws_region.current.region
        "awslogs-stream-prefix" = container
      }
    }
  }

  write_config = <<-END
    set -eu
    umask 077
    cd /etc/hawser
    mkdir -p agent.d
    printf %s "$CONFIG" | base64 -d > agent.d/10-terraform.json
    printf %s "$SIDECAR" | base64 -d > agent.d/20-sidecar.json
    printf %s "$EXTRA" | base64 -d > agent.d/30-extra.json
    printf %s "$JOIN_TOKEN" > join-token
    chown -R ${local.uid}:${local.uid} /etc/hawser
  END

  sidecar = [
    {
      name                   = "hawser-config"
      image                  = var.shell_image
      essential              = false
      readonlyRootFilesystem = true
      user                   = "0:0"
      entryPoint             = ["/bin/sh", "-c"]
      command                = [local.write_config]
      environment = [
        { name = "CONFIG", value = base64encode(module.config.json) },
        { name = "SIDECAR", value = base64encode(local.sidecar_config) },
        { name = "EXTRA", value = base64encode(var.extra_config) },
      ]
      secrets          = [{ name = "JOIN_TOKEN", valueFrom = local.join_parameter_arn }]
      mountPoints      = [{ sourceVolume = "hawser-config", containerPath = "/etc/hawser", readOnly = false }]
      logConfiguration = local.logs["hawser-config"]
    },
    {
      name                   = "hawser"
      image                  = var.sidecar_image
      essential              = true
      readonlyRootFilesystem = true
      user                   = "${local.uid}:${local.uid}"
      entryPoint             = [var.sidecar_binary]
      command                = ["agent", "--config-dir", "/etc/hawser/agent.d"]
      dependsOn              = [{ containerName = "hawser-config", condition = "SUCCESS" }]
      healthCheck = {
        command     = ["CMD", var.sidecar_binary, "health"]
        interval    = 5
        timeout     = 4
        retries     = 3
        startPeriod = 60
      }
      linuxParameters = { capabilities = { drop = ["ALL"] } }
      # Leaving the catalog takes a moment before the drain, and closing one after it.
      stopTimeout = var.drain_seconds + 15
      mountPoints = [
        { sourceVolume = "hawser-config", containerPath = "/etc/hawser", readOnly = true },
        { sourceVolume = "hawser-data", containerPath = "/var/lib/hawser", readOnly = false },
      ]
      logConfiguration = local.logs["hawser"]
    },
  ]

  # A dependency also orders the stop: the application first, its sidecar after it.
  application = [for container in jsondecode(var.containers) : merge(
    { logConfiguration = local.logs["application"] },
    container,
    { dependsOn = concat(try(container.dependsOn, []), [{ containerName = "hawser", condition = "HEALTHY" }]) },
  )]
}

module "config" {
  source = "../agent-config"

  node_name  = var.name
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
  # Two lists of unlike objects meet as text.
  container_definitions = "[${join(",", concat([for container in local.sidecar : jsonencode(container)], [for container in local.application : jsonencode(container)]))}]"

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.architecture
  }

  volume {
    name = "hawser-config"
  }

  # The task's identity: it outlives the task, so that a new one need not join anew.
  volume {
    name = "hawser-data"

    efs_volume_configuration {
      file_system_id     = aws_efs_file_system.identity.id
      transit_encryption = "ENABLED"

      authorization_config {
        access_point_id = aws_efs_access_point.identity.id
        iam             = "ENABLED"
      }
    }
  }

  tags = var.tags
}

# One task, and never two at a time: they would be one node with one identity.
resource "aws_ecs_service" "task" {
  name                               = var.name
  cluster                            = var.ecs_cluster_arn
  task_definition                    = aws_ecs_task_definition.task.arn
  desired_count                      = 1
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100
  availability_zone_rebalancing      = "DISABLED"
  launch_type                        = "FARGATE"
  platform_version                   = "LATEST"
  propagate_tags                     = "SERVICE"
  wait_for_steady_state              = false

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.task.id, var.cluster.member_security_group_id]
    assign_public_ip = false
  }

  tags = var.tags

  depends_on = [aws_efs_mount_target.identity, aws_iam_role_policy.execution, aws_iam_role_policy.task]
}

resource "aws_cloudwatch_log_group" "task" {
  #checkov:skip=CKV_AWS_158:logs hold no secrets and are encrypted by the service's own key
  name              = "/hawser/${local.full_name}"
  retention_in_days = var.log_retention_days
  tags              = var.tags
}
