variable "region" {
  description = "The AWS region."
  type        = string
  default     = "eu-central-1"
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets with a way to AWS's APIs, each in a zone of its own."
  type        = list(string)
}

variable "ami_id" {
  description = "The image of servers and VMs."
  type        = string
}

variable "install" {
  description = "The URL and the SHA-256 of the hawser binary."
  type = object({
    url    = string
    sha256 = string
  })
}

variable "sidecar_image" {
  description = "An image with the hawser binary at /usr/bin/hawser."
  type        = string
}

variable "application_image" {
  description = "The application's image."
  type        = string
}
