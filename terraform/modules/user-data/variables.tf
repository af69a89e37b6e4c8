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

variable "node_name_prefix" {
  description = "For instances that share this script: each is called this and its instance id, whatever config says. Null: config says it."
  type        = string
  default     = null

  validation {
    condition     = var.node_name_prefix == null || can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,42}$", var.node_name_prefix))
    error_message = "node_name_prefix must be 1 to 43 letters, digits, -, _ or ., and begin with a letter or digit."
  }
}

variable "pin" {
  description = "The SSM parameter, and its region, that holds what hosts know the servers by. The servers fill it, agents wait for it."
  type = object({
    region    = string
    parameter = string
  })

  validation {
    condition     = can(regex("^[a-z0-9-]+$", var.pin.region)) && can(regex("^[A-Za-z0-9/_.-]+$", var.pin.parameter))
    error_message = "pin must be a region and the name of an SSM parameter."
  }
}

variable "operator_key_secret" {
  description = "Servers: the Secrets Manager secret that holds the operator key."
  type        = string
  default     = null

  validation {
    condition     = var.operator_key_secret == null ? var.part == "agent" : can(regex("^[A-Za-z0-9/_+=.@:-]+$", var.operator_key_secret))
    error_message = "operator_key_secret must be the name or ARN of a secret; servers need one."
  }
}

variable "allow_list_parameter" {
  description = "Servers: the SSM parameter, in the pin's region, that holds who may join by AWS role, as configuration."
  type        = string
  default     = null

  validation {
    condition     = var.allow_list_parameter == null ? var.part == "agent" : can(regex("^[A-Za-z0-9/_.-]+$", var.allow_list_parameter))
    error_message = "allow_list_parameter must be the name of an SSM parameter; servers need one."
  }
}

variable "wait_seconds" {
  description = "How long the first boot waits for the operator key (servers) or the servers' pin (agents), in seconds."
  type        = number
  default     = 3600

  validation {
    condition     = var.wait_seconds >= 60 && var.wait_seconds <= 86400
    error_message = "wait_seconds must be from 60 to 86400."
  }
}

variable "before_start" {
  description = "Shell commands that run as root, by bash with -euo pipefail, after the installation and before Hawser starts."
  type        = string
  default     = ""
}
