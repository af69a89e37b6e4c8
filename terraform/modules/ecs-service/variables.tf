variable "cluster" {
  description = "The Hawser cluster to join: the output cluster of the module server-cluster."
  type = object({
    name                     = string
    datacenter               = string
    region                   = string
    vpc_id                   = string
    retry_join               = list(string)
    pin_parameter            = string
    pin_parameter_arn        = string
    member_security_group_id = string
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
  description = "The ECS service's name; the task family's is the cluster's and this."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}[a-z0-9]$", var.name))
    error_message = "name must be 2 to 32 characters of a-z, 0-9 and -, beginning with a letter."
  }
}

variable "subnet_ids" {
  description = "Private subnets of the cluster's VPC, each in a zone of its own: tasks are spread over them."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0 && alltrue([for id in var.subnet_ids : startswith(id, "subnet-")])
    error_message = "subnet_ids must hold at least one subnet's id, subnet-..."
  }
}

variable "containers" {
  description = "The application's containers: a JSON list of ECS container definitions. Each gets a dependsOn: it starts when the sidecar is HEALTHY. The essential ones decide about the task's health."
  type        = string

  validation {
    condition     = can([for container in jsondecode(var.containers) : container.name]) && length(try(jsondecode(var.containers), [])) > 0
    error_message = "containers must be a JSON list of at least one container definition, each with a name."
  }

  validation {
    condition     = alltrue([for container in try(jsondecode(var.containers), []) : !startswith(try(container.name, ""), "hawser")])
    error_message = "Names of containers that begin with \"hawser\" are the sidecar's."
  }

  validation {
    condition     = length([for container in try(jsondecode(var.containers), []) : container if try(container.essential, true)]) > 0
    error_message = "At least one of the containers must be essential: its end ends the task."
  }

  validation {
    condition     = alltrue([for container in try(jsondecode(var.containers), []) : try(container.stopTimeout, 0) <= var.application_stop_seconds])
    error_message = "No container's stopTimeout may be above application_stop_seconds: the sidecar outlives the application no longer."
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

variable "desired_count" {
  description = "How many tasks."
  type        = number
  default     = 2

  validation {
    condition     = var.desired_count >= 0 && var.desired_count == floor(var.desired_count)
    error_message = "desired_count must be a whole number, 0 or more."
  }
}

variable "roll_back" {
  description = "Whether ECS gives up a deployment whose tasks do not get healthy, and goes back to the one before. Leave it false until the servers have their operator key: without it no task gets healthy."
  type        = bool
  default     = false
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

variable "application_stop_seconds" {
  description = "How long the application's containers may take to stop, in seconds: their stopTimeout, unless they say less. So long the sidecar serves on."
  type        = number
  default     = 30

  validation {
    condition     = var.application_stop_seconds >= 2 && var.application_stop_seconds + var.drain_seconds <= 110
    error_message = "application_stop_seconds must be at least 2, and with drain_seconds at most 110: Fargate stops a container after 120 s."
  }
}

variable "drain_seconds" {
  description = "How long the sidecar may finish open requests once the application has stopped, in seconds."
  type        = number
  default     = 10

  validation {
    condition     = var.drain_seconds >= 0
    error_message = "drain_seconds must not be negative."
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
  description = "More configuration of the sidecar: a JSON object with the keys of docs/configuration.md. Of proxy and ecs, what is not said here stays."
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
