# A cluster in each of two regions, each with its own servers, operator key and certificate authority.
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

module "east" {
  source = "../../modules/server-cluster"

  name       = "demo-east"
  datacenter = "east"
  vpc_id     = var.east.vpc_id
  subnet_ids = var.east.subnet_ids
  ami_id     = var.east.ami_id
  install    = var.install
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
}
