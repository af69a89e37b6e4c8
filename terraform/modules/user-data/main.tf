locals {
  # A module's source is fetched with the whole repository, so the units are always beside it.
  systemd = "${path.module}/../../../systemd"

  text = templatefile("${path.module}/first-boot.sh.tftpl", {
    part         = var.part
    url          = var.install.url
    sha256       = var.install.sha256
    is_deb       = endswith(var.install.url, ".deb")
    config       = base64encode(var.config)
    extra_config = base64encode(var.extra_config)
    secret       = var.secret
    secret_wait  = var.secret_wait_seconds
    before_start = var.before_start
    files = endswith(var.install.url, ".deb") ? {} : {
      "/etc/systemd/system/hawser-${var.part}.service" = file("${local.systemd}/hawser-${var.part}.service")
      "/etc/sysusers.d/hawser.conf"                    = file("${local.systemd}/hawser.sysusers")
      "/etc/tmpfiles.d/hawser.conf"                    = file("${local.systemd}/hawser.tmpfiles")
    }
  })
}
