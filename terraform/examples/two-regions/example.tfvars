east = {
  region          = "eu-central-1"
  vpc_id          = "vpc-0123456789abcdef0"
  cidr_block      = "10.1.0.0/16"
  subnet_ids      = ["subnet-0000000000000000a", "subnet-0000000000000000b", "subnet-0000000000000000c"]
  route_table_ids = ["rtb-0123456789abcdef0"]
  ami_id          = "ami-0123456789abcdef0"
}

west = {
  region          = "eu-west-1"
  vpc_id          = "vpc-0123456789abcdef1"
  cidr_block      = "10.2.0.0/16"
  subnet_ids      = ["subnet-0000000000000001a", "subnet-0000000000000001b", "subnet-0000000000000001c"]
  route_table_ids = ["rtb-0123456789abcdef1"]
  ami_id          = "ami-0123456789abcdef1"
}

install = {
  url    = "https://downloads.example/hawser.deb"
  sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
}
