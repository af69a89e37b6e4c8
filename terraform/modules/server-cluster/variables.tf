variable "name" {
  description = "The cluster's name: names and tags of everything here begin with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name must be 2 to 20 characters of a-z, 0-9 and -, beginning with a letter (a load balancer's name is short)."
  }
}

variable "datacenter" {
  description = "The cluster's name in Hawser: the dc of DNS names and of every identity."
  type        = string
  default     = "dc1"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.datacenter))
    error_message = "datacenter must be a DNS label of a-z, 0-9 and -."
  }
}

variable "vpc_id" {
  description = "The VPC of the servers."
  type        = string

  validation {
    condition     = startswith(var.vpc_id, "vpc-")
    error_message = "vpc_id must be a VPC's id, vpc-..."
  }
}

variable "subnet_ids" {
  description = "Private subnets, each in a zone of its own: servers are spread over them in order."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0 && alltrue([for id in var.subnet_ids : startswith(id, "subnet-")])
    error_message = "subnet_ids must hold at least one subnet's id, subnet-..."
  }
}

variable "server_count" {
  description = "How many servers: 1, 3 or 5. Three survive the loss of one, five of two."
  type        = number
  default     = 3

  validation {
    condition     = contains([1, 3, 5], var.server_count)
    error_message = "server_count must be 1, 3 or 5."
  }
}

variable "founding" {
  description = "Whether servers that find no cluster found one. Set it to false once the cluster stands: a replaced server then joins the others or waits, and never founds a second cluster."
  type        = bool
  default     = true
}

variable "ami_id" {
  description = "The servers' image: Linux with systemd 250 or newer, bash, curl and the AWS CLI."
  type        = string

  validation {
    condition     = startswith(var.ami_id, "ami-")
    error_message = "ami_id must be an image's id, ami-..."
  }
}

variable "instance_type" {
  description = "The servers' instance type, of the architecture of the image and of the binary."
  type        = string
  default     = "t3.medium"
}

variable "root_device_name" {
  description = "The image's root device."
  type        = string
  default     = "/dev/xvda"
}

variable "volume_gib" {
  description = "The servers' root volume, in GiB."
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

variable "allowed_roles" {
  description = "Which AWS roles may join, and as which nodes: a role's ARN without its path, and a pattern of node names; a * may stand at the end of either. The modules' outputs allowed_roles fit. Servers that run take a change by hawser-allow-list."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for role in keys(var.allowed_roles) : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_-]*\\*?$", role)) && !endswith(role, ":role/")])
    error_message = "allowed_roles must have keys like arn:aws:iam::123456789012:role/web, without the role's path; a * may stand at the end."
  }

  validation {
    condition     = alltrue([for nodes in values(var.allowed_roles) : can(regex("^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?|([A-Za-z0-9][A-Za-z0-9._-]{0,61})?\\*)$", nodes))])
    error_message = "allowed_roles must have values like web-1 or web-*: a node's name, or its beginning and a *."
  }
}

variable "allowed_accounts" {
  description = "AWS accounts besides this one whose roles allowed_roles names."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for account in var.allowed_accounts : can(regex("^[0-9]{12}$", account))])
    error_message = "allowed_accounts must hold accounts' numbers, of twelve digits."
  }
}

variable "peer_cidr_blocks" {
  description = "Where mesh gateways and servers of peered clusters are: the servers may dial 8300 and 8443 there, and members 8443."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for block in var.peer_cidr_blocks : can(cidrhost(block, 0))])
    error_message = "peer_cidr_blocks must be CIDR blocks."
  }
}

variable "agent_cidr_blocks" {
  description = "Address ranges whose agents may reach the servers besides the members' security group: peered VPCs and their clusters' servers, on-premises networks."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for block in var.agent_cidr_blocks : can(cidrhost(block, 0))]) && !contains(var.agent_cidr_blocks, "0.0.0.0/0")
    error_message = "agent_cidr_blocks must be CIDR blocks, and not the whole internet."
  }
}

variable "default_intention_policy" {
  description = "What holds where no intention does: deny or allow. Read when the cluster is founded."
  type        = string
  default     = "deny"

  validation {
    condition     = contains(["deny", "allow"], var.default_intention_policy)
    error_message = "default_intention_policy must be \"deny\" or \"allow\"."
  }
}

variable "extra_config" {
  description = "More configuration of the servers: a JSON object with the keys of docs/configuration.md."
  type        = string
  default     = "{}"
}

variable "session_manager" {
  description = "Whether the servers may be reached by SSM Session Manager. The HTTP API and the CLI answer on the servers' loopback only."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Whether the load balancer is protected from deletion: hosts outside AWS know the cluster by its name."
  type        = bool
  default     = true
}

variable "tags" {
  description = "Tags on everything here."
  type        = map(string)
  default     = {}
}
