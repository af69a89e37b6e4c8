vpc_id     = "vpc-0123456789abcdef0"
subnet_ids = ["subnet-0000000000000000a", "subnet-0000000000000000b", "subnet-0000000000000000c"]
ami_id     = "ami-0123456789abcdef0"

install = {
  url    = "s3://example-artifacts/hawser"
  sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
}

sidecar_image     = "registry.example/hawser:0.1.0"
application_image = "registry.example/hello:1"
