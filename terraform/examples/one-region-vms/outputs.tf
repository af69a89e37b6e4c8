output "operator_key_secret" {
  description = "Where the operator key goes."
  value       = module.servers.operator_key_secret
}

output "retry_join" {
  description = "What servers and VMs join by."
  value       = module.servers.retry_join
}

output "join_parameters" {
  description = "Where the VMs look for their join tokens."
  value       = [module.web.join_parameter, module.api.join_parameter]
}

output "user_data" {
  description = "What the instances run on their first boot, by name."
  value = merge(module.servers.user_data, {
    web-1 = module.web.user_data
    api-1 = module.api.user_data
  })
}
