# Three servers over three zones, and VMs of the mesh: web calls the fleet of api by mTLS.
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
  region = var.region
}

module "servers" {
  source = "../../modules/server-cluster"

  name       = "demo"
  vpc_id     = var.vpc_id
  subnet_ids = var.subnet_ids
  ami_id     = var.ami_id
  install    = var.install
  founding   = var.founding

  allowed_roles = merge(module.web.allowed_roles, module.api.allowed_roles)
}

module "web" {
  source = "../../modules/vm-agent"

  cluster   = module.servers.cluster
  node_name = "web-1"
  ami_id    = var.ami_id
  install   = var.install

  services = [{
    name      = "web"
    port      = 8080
    protocol  = "http"
    checks    = [{ http = "http://127.0.0.1:8080/health", interval = "5s" }]
    upstreams = [{ destination_name = "api", local_bind_port = 9001 }]
  }]
}

module "api" {
  source = "../../modules/vm-agent"

  cluster   = module.servers.cluster
  node_name = "api"
  fleet     = true
  ami_id    = var.ami_id
  install   = var.install

  services = [{
    name     = "api"
    port     = 9000
    protocol = "http"
    checks   = [{ http = "http://127.0.0.1:9000/health", interval = "5s" }]
  }]
}

resource "aws_instance" "web" {
  #checkov:skip=CKV_AWS_8:the launch template encrypts the root volume
  #checkov:skip=CKV_AWS_79:the launch template asks for IMDSv2
  #checkov:skip=CKV_AWS_126:the launch template turns detailed monitoring on
  #checkov:skip=CKV2_AWS_41:the launch template gives the role
  subnet_id     = var.subnet_ids[0]
  ebs_optimized = true

  launch_template {
    id      = module.web.launch_template_id
    version = module.web.launch_template_version
  }
}

resource "aws_autoscaling_group" "api" {
  name                      = "demo-api"
  min_size                  = 2
  max_size                  = 4
  vpc_zone_identifier       = var.subnet_ids
  wait_for_capacity_timeout = "0"

  launch_template {
    id      = module.api.launch_template_id
    version = module.api.launch_template_version
  }

  tag {
    key                 = "Name"
    value               = "demo-api"
    propagate_at_launch = true
  }
}
