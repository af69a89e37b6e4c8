output "text" {
  description = "The script that cloud-init runs on the first boot."
  value       = local.text

  precondition {
    condition     = length(base64encode(local.text)) <= 4 * ceil(16384 / 3)
    error_message = "The user data is longer than EC2's 16 KiB: shorten before_start or the configuration."
  }
}
