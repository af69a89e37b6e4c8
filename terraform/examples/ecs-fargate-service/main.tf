# A service on ECS Fargate beside a cluster of servers on EC2.
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

  allowed_roles = module.hello.allowed_roles
}

resource "aws_ecs_cluster" "apps" {
  name = "demo-apps"

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

module "hello" {
  source = "../../modules/ecs-service"

  cluster         = module.servers.cluster
  ecs_cluster_arn = aws_ecs_cluster.apps.arn
  name            = "hello"
  subnet_ids      = var.subnet_ids
  sidecar_image   = var.sidecar_image

  services = [{
    name     = "hello"
    port     = 8080
    protocol = "http"
    checks   = [{ http = "http://127.0.0.1:8080/", interval = "5s" }]
  }]

  containers = jsonencode([{
    name                   = "hello"
    image                  = var.application_image
    essential              = true
    readonlyRootFilesystem = true
    environment            = [{ name = "LISTEN", value = "127.0.0.1:8080" }]
  }])
}
