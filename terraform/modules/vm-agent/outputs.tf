output "launch_template_id" {
  description = "The launch template of the VM."
  value       = aws_launch_template.agent.id
}

output "launch_template_version" {
  description = "The newest version of the launch template."
  value       = aws_launch_template.agent.latest_version
}

output "security_group_id" {
  description = "The VM's own security group, for rules of your own."
  value       = aws_security_group.agent.id
}

output "role_name" {
  description = "The VM's IAM role, for policies of your own."
  value       = aws_iam_role.agent.name
}

output "allowed_roles" {
  description = "What the cluster's variable allowed_roles must hold for the VM to join: its role, and the names it may have."
  value = {
    "arn:${local.partition}:iam::${data.aws_caller_identity.current.account_id}:role/${local.name}" = var.fleet ? "${var.node_name}-*" : var.node_name
  }
}

output "user_data" {
  description = "The first-boot script. It holds no secret."
  value       = module.user_data.text
}
