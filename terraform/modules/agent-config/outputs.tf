output "json" {
  description = "The agent's configuration, as JSON."
  value       = jsonencode(local.config)
}
