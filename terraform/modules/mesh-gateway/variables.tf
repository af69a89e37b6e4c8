variable "cluster" {
  description = "The cluster whose services other clusters reach here: the output cluster of the module server-cluster."
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

variable "name" {
  description = "What the gateways are called: with an instance's id their names in the catalog, with the cluster's name those of everything here."
  type        = string
  default     = "gateway"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]*[a-z0-9])?$", var.name)) && length(var.cluster.name) + 1 + length(var.name) <= 32
    error_message = "name must be a-z, 0-9 and -, beginning with a letter, and with the cluster's name and a - at most 32 characters: a load balancer's name is short."
  }
}

variable "subnet_ids" {
  description = "Private subnets of the gateways, in at least two zones."
  type        = list(string)

  validation {
    condition     = length(distinct(var.subnet_ids)) >= 2 && alltrue([for id in var.subnet_ids : startswith(id, "subnet-")])
    error_message = "subnet_ids must hold at least two subnets' ids, subnet-..., each in a zone of its own: one zone's loss must leave a gateway."
  }
}

variable "internet_facing" {
  description = "Whether the load balancer has public addresses, for clusters that no private network leads to."
  type        = bool
  default     = false
}

variable "load_balancer_subnet_ids" {
  description = "The load balancer's subnets, public ones where it is internet-facing. Null: those of the gateways."
  type        = list(string)
  default     = null

  validation {
    condition     = var.load_balancer_subnet_ids == null ? !var.internet_facing : alltrue([for id in var.load_balancer_subnet_ids : startswith(id, "subnet-")])
    error_message = "load_balancer_subnet_ids must hold subnets' ids, subnet-...; an internet-facing load balancer needs public ones."
  }
}

variable "advertise" {
  description = "Where other clusters are told to dial: \"load-balancer\", or \"instance\" for each gateway's own address, where a private network leads to it. Then callers see which gateway is down, and need not wait for the load balancer to."
  type        = string
  default     = "load-balancer"

  validation {
    condition     = contains(["load-balancer", "instance"], var.advertise) && !(var.internet_facing && var.advertise == "instance")
    error_message = "advertise must be \"load-balancer\" or \"instance\"; gateways have private addresses, so internet-facing ones need \"load-balancer\"."
  }
}

variable "caller_cidr_blocks" {
  description = "Where other clusters' hosts and servers call from: peered VPCs, or the public addresses of their NAT gateways."
  type        = list(string)

  validation {
    condition     = length(var.caller_cidr_blocks) > 0 && alltrue([for block in var.caller_cidr_blocks : can(cidrhost(block, 0))])
    error_message = "caller_cidr_blocks must hold at least one CIDR block: a gateway that nobody may reach is of no use."
  }
}

variable "min_size" {
  description = "How many gateways at least: 2 or more, so that one may be lost."
  type        = number
  default     = 2

  validation {
    condition     = var.min_size >= 2
    error_message = "min_size must be at least 2: a lone gateway's loss cuts the cluster off."
  }
}

variable "max_size" {
  description = "How many gateways at most."
  type        = number
  default     = 6

  validation {
    condition     = var.max_size >= var.min_size
    error_message = "max_size must be at least min_size."
  }
}

variable "target_cpu_percent" {
  description = "Gateways are added while they are busier than this on average, in percent of their CPUs."
  type        = number
  default     = 50

  validation {
    condition     = var.target_cpu_percent >= 10 && var.target_cpu_percent <= 90
    error_message = "target_cpu_percent must be from 10 to 90."
  }
}

variable "grace_seconds" {
  description = "How long a new gateway may take until it listens, in seconds; one that takes longer is replaced."
  type        = number
  default     = 900

  validation {
    condition     = var.grace_seconds >= 120
    error_message = "grace_seconds must be at least 120: an instance needs some of it to boot."
  }
}

variable "ami_id" {
  description = "The gateways' image: Linux with systemd 250 or newer, bash, curl and the AWS CLI."
  type        = string

  validation {
    condition     = startswith(var.ami_id, "ami-")
    error_message = "ami_id must be an image's id, ami-..."
  }
}

variable "instance_type" {
  description = "The gateways' instance type, of the architecture of the image and of the binary."
  type        = string
  default     = "t3.small"
}

variable "root_device_name" {
  description = "The image's root device."
  type        = string
  default     = "/dev/xvda"
}

variable "volume_gib" {
  description = "The gateways' root volume, in GiB."
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

variable "extra_config" {
  description = "More configuration of the gateways: a JSON object with the keys of docs/configuration.md; mesh_gateway is replaced as a whole."
  type        = string
  default     = "{}"

  validation {
    condition     = can(keys(jsondecode(var.extra_config)))
    error_message = "extra_config must be a JSON object."
  }
}

variable "session_manager" {
  description = "Whether the gateways may be reached by SSM Session Manager."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Whether the load balancer is protected from deletion: other clusters know this one by its name."
  type        = bool
  default     = true
}

variable "tags" {
  description = "Tags on everything here."
  type        = map(string)
  default     = {}
}
