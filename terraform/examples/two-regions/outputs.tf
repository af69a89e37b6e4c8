output "operator_key_secrets" {
  description = "Where the operator key of each cluster goes: a key of its own each."
  value = {
    east = module.east.operator_key_secret
    west = module.west.operator_key_secret
  }
}

output "retry_join" {
  description = "What agents of each region join by."
  value = {
    east = module.east.retry_join
    west = module.west.retry_join
  }
}
