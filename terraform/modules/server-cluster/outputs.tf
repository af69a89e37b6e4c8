output "cluster" {
  description = "What vm-agent, ecs-service and mesh-gateway need to know of this cluster."
  value = {
    name                     = var.name
    datacenter               = var.datacenter
    region                   = local.region
    vpc_id                   = var.vpc_id
    retry_join               = local.retry_join
    pin_parameter            = local.parameters.pin
    pin_parameter_arn        = local.arn_of.pin
    member_security_group_id = aws_security_group.members.id
  }
}

output "retry_join" {
  description = "What servers and agents find the servers by: the tag that servers carry."
  value       = one(local.retry_join)
}

output "load_balancer" {
  description = "The DNS name of the internal load balancer: what hosts join by that cannot ask AWS."
  value       = aws_lb.servers.dns_name
}

output "pin_parameter" {
  description = "The SSM parameter with what hosts know the servers by; \"unset\" until the servers have their operator key."
  value       = aws_ssm_parameter.pin.name
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
