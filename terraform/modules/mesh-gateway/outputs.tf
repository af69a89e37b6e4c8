output "address" {
  description = "The load balancer's DNS name and port: where other clusters reach this one's gateways."
  value       = "${aws_lb.gateway.dns_name}:${local.port}"

  # Whoever knows the name can also reach the gateways behind it.
  depends_on = [aws_lb_listener.gateway]
}

output "allowed_roles" {
  description = "What the cluster's variable allowed_roles must hold for the gateways to join: their role, and the names they have."
  value       = module.vm.allowed_roles
}

output "autoscaling_group" {
  description = "The gateways' autoscaling group."
  value       = aws_autoscaling_group.gateway.name
}

output "security_group_id" {
  description = "The gateways' own security group, for rules of your own."
  value       = module.vm.security_group_id
}

output "role_name" {
  description = "The gateways' IAM role."
  value       = module.vm.role_name
}

output "user_data" {
  description = "The gateways' first-boot script. It holds no secret."
  value       = module.vm.user_data
}
