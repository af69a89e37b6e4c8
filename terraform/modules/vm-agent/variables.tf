variable "cluster" {
  description = "The cluster to join: the output cluster of the module server-cluster."
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

variable "node_name" {
  description = "The VM's name in the catalog; in a fleet, what the names of its VMs begin with."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$", var.node_name))
    error_message = "node_name must be 1 to 63 letters, digits, -, _ or ., and begin and end with a letter or digit."
  }

  validation {
    condition     = length(var.cluster.name) + 1 + length(var.node_name) <= 64
    error_message = "The cluster's name, a - and node_name are an IAM role's name: 64 characters at most."
  }

  validation {
    condition     = !var.fleet || length(var.node_name) <= 42
    error_message = "In a fleet node_name must be at most 42 characters: an instance's id follows."
  }
}

variable "fleet" {
  description = "Whether several VMs start from the launch template, such as an autoscaling group's: each is then called node_name and its instance id, as web-i-0123456789abcdef0."
  type        = bool
  default     = false
}

variable "vpc_id" {
  description = "The VM's VPC; the cluster's, where it is null. Another needs a route to it and security group references across the peering."
  type        = string
  default     = null
}

variable "ami_id" {
  description = "The VM's image: Linux with systemd 250 or newer, bash, curl and the AWS CLI."
  type        = string

  validation {
    condition     = startswith(var.ami_id, "ami-")
    error_message = "ami_id must be an image's id, ami-..."
  }
}

variable "instance_type" {
  description = "The VM's instance type, of the architecture of the image and of the binary."
  type        = string
  default     = "t3.small"
}

variable "root_device_name" {
  description = "The image's root device."
  type        = string
  default     = "/dev/xvda"
}

variable "volume_gib" {
  description = "The VM's root volume, in GiB."
  type        = number
  default     = 20

  validation {
    condition     = var.volume_gib >= 8
    error_message = "volume_gib must be at least 8."
  }
}

variable "install" {
  description = "Where Hawser comes from: an https:// or s3:// URL of the binary or of a .deb, and its SHA-256 in hex."
  type = object({
    url    = string
    sha256 = string
  })
}

variable "services" {
  description = "The services of this VM, as in docs/services.md. mesh = true (the default) takes a service into the mesh; checks have Consul's keys."
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
}

variable "node_meta" {
  description = "Free pairs on the node."
  type        = map(string)
  default     = {}
}

variable "extra_config" {
  description = "More configuration of the agent: a JSON object with the keys of docs/configuration.md."
  type        = string
  default     = "{}"
}

variable "before_start" {
  description = "Shell commands that run as root before the agent starts: the VM's own setup."
  type        = string
  default     = ""
}

variable "wait_seconds" {
  description = "How long the first boot waits until the servers have published their pin, in seconds."
  type        = number
  default     = 3600
}

variable "session_manager" {
  description = "Whether the VM may be reached by SSM Session Manager."
  type        = bool
  default     = true
}

variable "tags" {
  description = "Tags on everything here."
  type        = map(string)
  default     = {}
}
