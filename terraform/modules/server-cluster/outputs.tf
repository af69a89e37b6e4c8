output "cluster" {
  description = "What vm-agent and ecs-service need to know of this cluster."
  value = {
    name                     = var.name
    datacenter               = var.datacenter
    vpc_id                   = var.vpc_id
    retry_join               = [aws_lb.servers.dns_name]
    member_security_group_id = aws_security_group.members.id
    kms_key_arn              = aws_kms_key.cluster.arn
    join_parameter_prefix    = local.join_prefix
  }

  # Whoever knows the name can also reach the servers behind it.
  depends_on = [aws_lb_listener.servers]
}

output "retry_join" {
  description = "The DNS name of the internal load balancer: what servers and agents join by."
  value       = aws_lb.servers.dns_name
}

output "operator_key_secret" {
  description = "The ARN of the empty secret that the operator puts the operator key into."
  value       = aws_secretsmanager_secret.operator_key.arn
}

output "member_security_group_id" {
  description = "The security group that makes an instance or task a member: port 8300 of the servers, mesh ports among members."
  value       = aws_security_group.members.id
}

output "server_security_group_id" {
  description = "The servers' security group."
  value       = aws_security_group.servers.id
}

output "server_role_name" {
  description = "The servers' IAM role."
  value       = aws_iam_role.server.name
}

output "autoscaling_groups" {
  description = "The autoscaling group of each server, by the server's name."
  value       = { for node, group in aws_autoscaling_group.server : node => group.name }
}

output "user_data" {
  description = "The first-boot script of each server, by the server's name. It holds no secret."
  value       = { for node, data in module.user_data : node => data.text }
}
