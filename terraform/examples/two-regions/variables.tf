variable "east" {
  description = "The first region: its VPC with private subnets in three zones; for connection = \"vpc-peering\" their route tables, for \"public\" public subnets and the addresses that the NAT gateways have."
  type = object({
    region            = string
    vpc_id            = string
    cidr_block        = string
    subnet_ids        = list(string)
    route_table_ids   = optional(list(string), [])
    public_subnet_ids = optional(list(string), [])
    nat_addresses     = optional(list(string), [])
    ami_id            = string
  })

  validation {
    condition     = can(cidrhost(var.east.cidr_block, 0)) && alltrue([for address in var.east.nat_addresses : can(cidrhost("${address}/32", 0))])
    error_message = "east.cidr_block must be the VPC's CIDR block, and east.nat_addresses IPv4 addresses."
  }

  validation {
    condition     = var.connection == "vpc-peering" ? length(var.east.route_table_ids) > 0 : length(var.east.public_subnet_ids) >= 2 && length(var.east.nat_addresses) > 0
    error_message = "connection = \"vpc-peering\" needs east.route_table_ids; \"public\" needs two east.public_subnet_ids and east.nat_addresses."
  }
}

variable "west" {
  description = "The second region, as the first."
  type = object({
    region            = string
    vpc_id            = string
    cidr_block        = string
    subnet_ids        = list(string)
    route_table_ids   = optional(list(string), [])
    public_subnet_ids = optional(list(string), [])
    nat_addresses     = optional(list(string), [])
    ami_id            = string
  })

  validation {
    condition     = can(cidrhost(var.west.cidr_block, 0)) && alltrue([for address in var.west.nat_addresses : can(cidrhost("${address}/32", 0))])
    error_message = "west.cidr_block must be the VPC's CIDR block, and west.nat_addresses IPv4 addresses."
  }

  validation {
    condition     = var.connection == "vpc-peering" ? length(var.west.route_table_ids) > 0 : length(var.west.public_subnet_ids) >= 2 && length(var.west.nat_addresses) > 0
    error_message = "connection = \"vpc-peering\" needs west.route_table_ids; \"public\" needs two west.public_subnet_ids and west.nat_addresses."
  }

  validation {
    condition     = var.west.region != var.east.region && var.west.cidr_block != var.east.cidr_block
    error_message = "The two must be of different regions and different address ranges."
  }
}

variable "connection" {
  description = "How the regions reach each other: \"vpc-peering\" makes a peering connection and routes, and the gateways are dialled at their own addresses; \"public\" puts a public load balancer before the gateways of each."
  type        = string
  default     = "vpc-peering"

  validation {
    condition     = contains(["vpc-peering", "public"], var.connection)
    error_message = "connection must be \"vpc-peering\" or \"public\"."
  }
}

variable "install" {
  description = "The URL and the SHA-256 of the hawser binary."
  type = object({
    url    = string
    sha256 = string
  })
}

variable "founding" {
  description = "Set it to false once the clusters stand."
  type        = bool
  default     = true
}
