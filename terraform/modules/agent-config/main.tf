locals {
  services = [for service in var.services : merge(
    {
      name     = service.name
      port     = service.port
      protocol = service.protocol
      tags     = service.tags
      meta     = service.meta
      checks   = service.checks
    },
    service.id == null ? {} : { id = service.id },
    !service.mesh ? {} : {
      connect = {
        sidecar_service = {
          proxy = {
            upstreams = [for upstream in service.upstreams : merge(
              {
                destination_name = upstream.destination_name
                local_bind_port  = upstream.local_bind_port
              },
              upstream.local_bind_address == null ? {} : { local_bind_address = upstream.local_bind_address },
            )]
          }
        }
      }
    },
  )]

  config = merge(
    {
      datacenter  = var.datacenter
      data_dir    = "/var/lib/hawser"
      retry_join  = var.retry_join
      join_method = "aws-iam"
      node_meta   = var.node_meta
      services    = local.services
    },
    var.node_name == null ? {} : { node_name = var.node_name },
  )
}
