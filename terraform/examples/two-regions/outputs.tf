output "operator_key_secrets" {
  description = "Where the operator key of each cluster goes: a key of its own each."
  value = {
    east = module.east.operator_key_secret
    west = module.west.operator_key_secret
  }
}

output "gateways" {
  description = "The load balancers before the gateways of each cluster."
  value = {
    east = module.east_gateway.address
    west = module.west_gateway.address
  }
}

output "steps" {
  description = "What to do once this is applied: print it by terraform output -raw steps."
  value = templatefile("${path.module}/steps.txt.tftpl", {
    is_public = !local.is_peered
    east      = { region = var.east.region, name = "demo-east", secret = module.east.operator_key_secret }
    west = {
      region  = var.west.region
      name    = "demo-west"
      secret  = module.west.operator_key_secret
      gateway = module.west_gateway.address
    }
  })
}
