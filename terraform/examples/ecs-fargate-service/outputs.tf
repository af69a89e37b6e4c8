output "operator_key_secret" {
  description = "Where the operator key goes."
  value       = module.servers.operator_key_secret
}

output "join_parameter" {
  description = "Where the task's join token goes."
  value       = module.hello.join_parameter
}

output "container_definitions" {
  description = "The task's containers."
  value       = module.hello.container_definitions
}
