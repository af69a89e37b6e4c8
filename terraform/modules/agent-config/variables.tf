variable "node_name" {
  description = "The host's name in the catalog. Null: something else says it, such as a task's metadata."
  type        = string
  default     = null

  validation {
    condition     = var.node_name == null || can(regex("^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$", var.node_name))
    error_message = "node_name must be 1 to 63 letters, digits, -, _ or ., and begin and end with a letter or digit."
  }
}

variable "datacenter" {
  description = "The cluster's name."
  type        = string
  default     = "dc1"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.datacenter))
    error_message = "datacenter must be a DNS label of a-z, 0-9 and -."
  }
}

variable "retry_join" {
  description = "Where servers answer: addresses or DNS names, host[:port], or a tag, provider=aws ..."
  type        = list(string)

  validation {
    condition     = length(var.retry_join) > 0
    error_message = "retry_join must name at least one server or load balancer."
  }
}

variable "services" {
  description = "The services of this host, as in docs/services.md. mesh = true (the default) takes a service into the mesh; checks have Consul's keys."
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
  default = []

  validation {
    condition     = alltrue([for service in var.services : can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", service.name))])
    error_message = "A service's name must be a DNS label of a-z, 0-9 and -."
  }

  validation {
    condition     = alltrue([for service in var.services : service.port >= 1 && service.port <= 65535])
    error_message = "A service's port must be from 1 to 65535."
  }

  validation {
    condition     = alltrue([for service in var.services : contains(["tcp", "http", "http2", "grpc"], service.protocol)])
    error_message = "A service's protocol must be tcp, http, http2 or grpc."
  }

  validation {
    condition     = alltrue([for service in var.services : service.mesh || length(service.upstreams) == 0])
    error_message = "Only a service in the mesh (mesh = true) can have upstreams."
  }

  validation {
    condition     = length(distinct([for service in var.services : coalesce(service.id, service.name)])) == length(var.services)
    error_message = "Two services have the same id (the name, where no id is given)."
  }
}

variable "node_meta" {
  description = "Free pairs on the node."
  type        = map(string)
  default     = {}
}
