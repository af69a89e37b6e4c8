output "service_name" {
  description = "The ECS service's name."
  value       = aws_ecs_service.task.name
}

output "task_definition_arn" {
  description = "The task definition's ARN, with its revision."
  value       = aws_ecs_task_definition.task.arn
}

output "container_definitions" {
  description = "The containers of the task as rendered, as JSON. It holds no secret."
  value       = aws_ecs_task_definition.task.container_definitions
}

output "security_group_id" {
  description = "The task's own security group, for rules of your own."
  value       = aws_security_group.task.id
}

output "task_role_name" {
  description = "The IAM role of the task's containers."
  value       = aws_iam_role.task.name
}

output "allowed_roles" {
  description = "What the cluster's variable allowed_roles must hold for the tasks to join: their role, and the names that tasks have."
  value       = { "arn:${local.partition}:iam::${local.account}:role/${local.full_name}-task" = "ecs-*" }
}
