output "operator_key_secret" {
  description = "Where the operator key goes."
  value       = module.servers.operator_key_secret
}

output "container_definitions" {
  description = "The task's containers."
  value       = module.hello.container_definitions
}
