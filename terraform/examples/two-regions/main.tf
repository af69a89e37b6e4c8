# Two clusters in two regions, each with servers, mesh gateways and a VM of the service api; in the
# first region web calls api, and goes on in the second where the first has none.
terraform {
  required_version = ">= 1.9.0, < 2.0.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.25"
    }
  }
}

provider "aws" {
  region = var.east.region
}

provider "aws" {
  alias  = "west"
  region = var.west.region
}

locals {
  is_peered = var.connection == "vpc-peering"

  # From where each region's hosts and servers call the other's, and where they call it.
  callers = {
    east = local.is_peered ? [var.east.cidr_block] : [for address in var.east.nat_addresses : "${address}/32"]
    west = local.is_peered ? [var.west.cidr_block] : [for address in var.west.nat_addresses : "${address}/32"]
  }
  # A public load balancer's addresses are AWS's to choose.
  called = {
    east = local.is_peered ? [var.east.cidr_block] : ["0.0.0.0/0"]
    west = local.is_peered ? [var.west.cidr_block] : ["0.0.0.0/0"]
  }

  api = {
    name     = "api"
    port     = 9000
    protocol = "http"
    checks   = [{ http = "http://127.0.0.1:9000/health", interval = "5s" }]
  }
  web = {
    name      = "web"
    port      = 8080
    protocol  = "http"
    upstreams = [{ destination_name = "api", local_bind_port = 9001 }]
  }
}

module "east" {
  source = "../../modules/server-cluster"

  name       = "demo-east"
  datacenter = "east"
  vpc_id     = var.east.vpc_id
  subnet_ids = var.east.subnet_ids
  ami_id     = var.east.ami_id
  install    = var.install
  founding   = var.founding

  allowed_roles     = merge(module.east_gateway.allowed_roles, module.east_api.allowed_roles, module.east_web.allowed_roles)
  agent_cidr_blocks = local.is_peered ? [var.west.cidr_block] : []
  peer_cidr_blocks  = local.called.west
}

module "east_gateway" {
  source = "../../modules/mesh-gateway"

  cluster                  = module.east.cluster
  subnet_ids               = var.east.subnet_ids
  internet_facing          = !local.is_peered
  load_balancer_subnet_ids = local.is_peered ? null : var.east.public_subnet_ids
  advertise                = local.is_peered ? "instance" : "load-balancer"
  caller_cidr_blocks       = local.callers.west
  ami_id                   = var.east.ami_id
  install                  = var.install
}

module "east_api" {
  source = "../../modules/vm-agent"

  cluster   = module.east.cluster
  node_name = "api-1"
  ami_id    = var.east.ami_id
  install   = var.install
  services  = [local.api]
}

module "east_web" {
  source = "../../modules/vm-agent"

  cluster   = module.east.cluster
  node_name = "web-1"
  ami_id    = var.east.ami_id
  install   = var.install
  services  = [local.web]
}

module "west" {
  source    = "../../modules/server-cluster"
  providers = { aws = aws.west }

  name       = "demo-west"
  datacenter = "west"
  vpc_id     = var.west.vpc_id
  subnet_ids = var.west.subnet_ids
  ami_id     = var.west.ami_id
  install    = var.install
  founding   = var.founding

  allowed_roles     = merge(module.west_gateway.allowed_roles, module.west_api.allowed_roles)
  agent_cidr_blocks = local.is_peered ? [var.east.cidr_block] : []
  peer_cidr_blocks  = local.called.east
}

module "west_gateway" {
  source    = "../../modules/mesh-gateway"
  providers = { aws = aws.west }

  cluster                  = module.west.cluster
  subnet_ids               = var.west.subnet_ids
  internet_facing          = !local.is_peered
  load_balancer_subnet_ids = local.is_peered ? null : var.west.public_subnet_ids
  advertise                = local.is_peered ? "instance" : "load-balancer"
  caller_cidr_blocks       = local.callers.east
  ami_id                   = var.west.ami_id
  install                  = var.install
}

module "west_api" {
  source    = "../../modules/vm-agent"
  providers = { aws = aws.west }

  cluster   = module.west.cluster
  node_name = "api-1"
  ami_id    = var.west.ami_id
  install   = var.install
  services  = [local.api]
}
