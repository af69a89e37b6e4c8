variable "part" {
  description = "What the instance becomes: a server, or the agent of a VM."
  type        = string

  validation {
    condition     = contains(["server", "agent"], var.part)
    error_message = "part must be \"server\" or \"agent\"."
  }
}

variable "install" {
  description = "Where Hawser comes from: an https:// or s3:// URL of the binary or of a .deb, and its SHA-256 in hex."
  type = object({
    url    = string
    sha256 = string
  })

  validation {
    condition     = can(regex("^(https|s3)://[A-Za-z0-9._~:/?&=%+@-]+$", var.install.url))
    error_message = "install.url must begin with https:// or s3:// and hold no quotes or spaces."
  }

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.install.sha256))
    error_message = "install.sha256 must be 64 lower-case hex digits, as sha256sum prints them."
  }
}

variable "config" {
  description = "Hawser's configuration: one JSON object with the keys of docs/configuration.md."
  type        = string

  validation {
    condition     = can(keys(jsondecode(var.config)))
    error_message = "config must be a JSON object."
  }
}

variable "extra_config" {
  description = "More configuration, laid over the other: one JSON object with the keys of docs/configuration.md."
  type        = string
  default     = "{}"

  validation {
    condition     = can(keys(jsondecode(var.extra_config)))
    error_message = "extra_config must be a JSON object."
  }
}

variable "secret" {
  description = "Where the instance fetches its secret: an operator key in Secrets Manager (servers) or a join token in SSM Parameter Store (agents)."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9/_+=.@:-]+$", var.secret))
    error_message = "secret must be the name or ARN of a secret or parameter."
  }
}

variable "secret_wait_seconds" {
  description = "How long the first boot waits until the secret is there, in seconds."
  type        = number
  default     = 3600

  validation {
    condition     = var.secret_wait_seconds >= 60 && var.secret_wait_seconds <= 86400
    error_message = "secret_wait_seconds must be from 60 to 86400."
  }
}

variable "before_start" {
  description = "Shell commands that run as root, by bash with -euo pipefail, after the installation and before Hawser starts."
  type        = string
  default     = ""
}
