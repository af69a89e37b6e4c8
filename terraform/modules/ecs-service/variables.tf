variable "cluster" {
  description = "The Hawser cluster to join: the output cluster of the module server-cluster."
  type = object({
    name                     = string
    datacenter               = string
    vpc_id                   = string
    retry_join               = list(string)
    member_security_group_id = string
    kms_key_arn              = string
    join_parameter_prefix    = string
  })
}

variable "ecs_cluster_arn" {
  description = "The ECS cluster that runs the task."
  type        = string

  validation {
    condition     = startswith(var.ecs_cluster_arn, "arn:")
    error_message = "ecs_cluster_arn must be an ARN."
  }
}

variable "name" {
  description = "The ECS service's and task family's name, and the task's node name in the catalog."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}[a-z0-9]$", var.name))
    error_message = "name must be 2 to 32 characters of a-z, 0-9 and -, beginning with a letter."
  }
}

variable "subnet_ids" {
  description = "Private subnets of the cluster's VPC, each in a zone of its own: the task runs in one of them and finds its identity from all."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0 && alltrue([for id in var.subnet_ids : startswith(id, "subnet-")])
    error_message = "subnet_ids must hold at least one subnet's id, subnet-..."
  }
}

variable "containers" {
  description = "The application's containers: a JSON list of ECS container definitions. Each gets a dependsOn: it starts when the sidecar is HEALTHY."
  type        = string

  validation {
    condition     = can([for container in jsondecode(var.containers) : container.name]) && length(try(jsondecode(var.containers), [])) > 0
    error_message = "containers must be a JSON list of at least one container definition, each with a name."
  }

  validation {
    condition     = alltrue([for container in try(jsondecode(var.containers), []) : !startswith(try(container.name, ""), "hawser")])
    error_message = "Names of containers that begin with \"hawser\" are the sidecar's."
  }
}

variable "services" {
  description = "The services of the task, as in docs/services.md. mesh = true (the default) takes a service into the mesh; checks have Consul's keys."
  type = list(object({
    name     = string
    id       = optional(string)
    port     = number
    protocol = optional(string, "tcp")
    tags     = optional(list(string), [])
    meta     = optional(map(string), {})
    checks   = optional(list(map(string)), [])
    mesh     = optional(bool, true)
    upstreams = optional(list(object({
      destination_name   = string
      local_bind_port    = number
      local_bind_address = optional(string)
    })), [])
  }))

  validation {
    condition     = length(var.services) > 0
    error_message = "services must hold at least one service: a task without one has no identity to call others with."
  }
}

variable "sidecar_image" {
  description = "An image with the hawser binary, by digest or exact tag."
  type        = string
}

variable "sidecar_binary" {
  description = "Where the binary is in sidecar_image."
  type        = string
  default     = "/usr/bin/hawser"

  validation {
    condition     = startswith(var.sidecar_binary, "/")
    error_message = "sidecar_binary must be an absolute path."
  }
}

variable "shell_image" {
  description = "A small image with /bin/sh and base64, such as busybox, by digest or exact tag: it writes the sidecar's configuration before the sidecar starts."
  type        = string
}

variable "cpu" {
  description = "The task's CPU units; on Fargate 256, 512, 1024, 2048, 4096, 8192 or 16384."
  type        = number
  default     = 256

  validation {
    condition     = contains([256, 512, 1024, 2048, 4096, 8192, 16384], var.cpu)
    error_message = "cpu must be one of Fargate's sizes: 256, 512, 1024, 2048, 4096, 8192, 16384."
  }
}

variable "memory_mib" {
  description = "The task's memory in MiB, as Fargate allows it with cpu."
  type        = number
  default     = 512

  validation {
    condition     = var.memory_mib >= 512
    error_message = "memory_mib must be at least 512."
  }
}

variable "architecture" {
  description = "The CPU architecture of the images: X86_64 or ARM64."
  type        = string
  default     = "X86_64"

  validation {
    condition     = contains(["X86_64", "ARM64"], var.architecture)
    error_message = "architecture must be X86_64 or ARM64."
  }
}

variable "drain_seconds" {
  description = "How long the sidecar may finish open requests when the task stops, in seconds."
  type        = number
  default     = 30

  validation {
    condition     = var.drain_seconds >= 0 && var.drain_seconds <= 100
    error_message = "drain_seconds must be from 0 to 100: Fargate stops a container after 120 s at most."
  }
}

variable "task_policy_json" {
  description = "An IAM policy for the application's containers, as JSON; null for none."
  type        = string
  default     = null
}

variable "log_retention_days" {
  description = "How long logs are kept, in days."
  type        = number
  default     = 365
}

variable "extra_config" {
  description = "More configuration of the sidecar: a JSON object with the keys of docs/configuration.md."
  type        = string
  default     = "{}"

  validation {
    condition     = can(keys(jsondecode(var.extra_config)))
    error_message = "extra_config must be a JSON object."
  }
}

variable "tags" {
  description = "Tags on everything here."
  type        = map(string)
  default     = {}
}
