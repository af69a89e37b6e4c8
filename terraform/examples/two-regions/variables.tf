variable "east" {
  description = "The first region."
  type = object({
    region     = string
    vpc_id     = string
    subnet_ids = list(string)
    ami_id     = string
  })
}

variable "west" {
  description = "The second region."
  type = object({
    region     = string
    vpc_id     = string
    subnet_ids = list(string)
    ami_id     = string
  })
}

variable "install" {
  description = "The URL and the SHA-256 of the hawser binary."
  type = object({
    url    = string
    sha256 = string
  })
}
