locals {
  # A module's source is fetched with the whole repository, so the units are always beside it.
  systemd = "${path.module}/../../../systemd"

  text = templatefile("${path.module}/first-boot.sh.tftpl", {
    part                = var.part
    url                 = var.install.url
    sha256              = var.install.sha256
    is_deb              = endswith(var.install.url, ".deb")
    config              = base64encode(var.config)
    extra_config        = base64encode(var.extra_config)
    node_name_prefix    = var.node_name_prefix
    pin                 = var.pin
    operator_key_secret = var.operator_key_secret
    wait_seconds        = var.wait_seconds
    before_start        = var.before_start
    allow_list = var.part != "server" ? "" : templatefile("${path.module}/allow-list.sh.tftpl", {
      region    = var.pin.region
      parameter = var.allow_list_parameter
    })
    files = endswith(var.install.url, ".deb") ? {} : {
      # Without its comments: user data is short.
      "/etc/systemd/system/hawser-${var.part}.service" = replace(file("${local.systemd}/hawser-${var.part}.service"), "/(?m)^#.*\n/", "")
      "/etc/sysusers.d/hawser.conf"                    = file("${local.systemd}/hawser.sysusers")
      "/etc/tmpfiles.d/hawser.conf"                    = file("${local.systemd}/hawser.tmpfiles")
    }
  })
}
