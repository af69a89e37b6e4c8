output "operator_key_secret" {
  description = "Where the operator key goes."
  value       = module.servers.operator_key_secret
}

output "retry_join" {
  description = "What servers and VMs find the servers by."
  value       = module.servers.retry_join
}

output "load_balancer" {
  description = "What hosts outside AWS join by."
  value       = module.servers.load_balancer
}

output "user_data" {
  description = "What the instances run on their first boot, by name."
  value = merge(module.servers.user_data, {
    web-1 = module.web.user_data
    api   = module.api.user_data
  })
}
