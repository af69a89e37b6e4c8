data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  # Names outlive instances: a server that was replaced takes the place of the dead one of its name.
  servers = {
    for at in range(var.server_count) :
    "${var.name}-server-${at + 1}" => var.subnet_ids[at % length(var.subnet_ids)]
  }
  server_port = 8300
  mesh_ports  = { from = 21000, to = 21255 }

  region    = data.aws_region.current.region
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id

  tag        = { key = "hawser-servers", value = var.name }
  retry_join = ["provider=aws tag_key=${local.tag.key} tag_value=${local.tag.value} region=${local.region}"]

  parameters = {
    pin        = "/hawser/${var.name}/server-pin"
    allow_list = "/hawser/${var.name}/allow-list"
  }

  config = {
    for node, _ in local.servers : node => merge(
      {
        node_name                = node
        datacenter               = var.datacenter
        data_dir                 = "/var/lib/hawser"
        retry_join               = local.retry_join
        default_intention_policy = var.default_intention_policy
      },
      var.founding ? { bootstrap_expect = var.server_count } : {},
    )
  }

  # Without roles there is no such block: one that lets in nobody would be a mistake, and is refused.
  allow_list = length(var.allowed_roles) == 0 ? {} : {
    aws_iam = {
      region           = local.region
      allowed_accounts = distinct(concat([local.account], var.allowed_accounts))
      allowed_roles    = var.allowed_roles
    }
  }
}

module "user_data" {
  source   = "../user-data"
  for_each = local.servers

  part                 = "server"
  install              = var.install
  config               = jsonencode(local.config[each.key])
  extra_config         = var.extra_config
  operator_key_secret  = aws_secretsmanager_secret.operator_key.arn
  pin                  = { region = local.region, parameter = local.parameters.pin }
  allow_list_parameter = local.parameters.allow_list
}

# The servers write it, from the operator key, which Terraform never sees.
resource "aws_ssm_parameter" "pin" {
  #checkov:skip=CKV2_AWS_34:a hash of a public key is no secret, and tasks of other modules read it
  #checkov:skip=CKV_AWS_337:the same
  name        = local.parameters.pin
  description = "What hosts know the servers of ${var.name} by, as hawser pin prints it"
  type        = "String"
  value       = "unset"
  tags        = var.tags

  lifecycle {
    ignore_changes = [value]
  }
}

# Servers fetch it on their first boot, and whenever hawser-allow-list is run.
resource "aws_ssm_parameter" "allow_list" {
  #checkov:skip=CKV2_AWS_34:names of roles are no secret
  #checkov:skip=CKV_AWS_337:the same
  name        = local.parameters.allow_list
  description = "Who may join ${var.name} by AWS role"
  type        = "String"
  tier        = "Intelligent-Tiering"
  value       = jsonencode(local.allow_list)
  tags        = var.tags

  lifecycle {
    precondition {
      condition     = alltrue([for role in keys(var.allowed_roles) : contains(concat([local.account], var.allowed_accounts), split(":", role)[4])])
      error_message = "allowed_roles names a role of an account that is neither this one nor in allowed_accounts."
    }

    precondition {
      condition     = length(jsonencode(local.allow_list)) <= 8192
      error_message = "The allow-list is longer than a parameter's 8 KiB: let a role's name end in *."
    }
  }
}

resource "aws_launch_template" "server" {
  for_each = local.servers

  name                   = each.key
  image_id               = var.ami_id
  instance_type          = var.instance_type
  user_data              = base64encode(module.user_data[each.key].text)
  vpc_security_group_ids = [aws_security_group.servers.id]
  update_default_version = true

  iam_instance_profile {
    arn = aws_iam_instance_profile.server.arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  monitoring {
    enabled = true
  }

  block_device_mappings {
    device_name = var.root_device_name

    ebs {
      encrypted             = true
      volume_size           = var.volume_gib
      volume_type           = "gp3"
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, { Name = each.key, (local.tag.key) = local.tag.value })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = merge(var.tags, { Name = each.key })
  }

  tags = var.tags
}

# One group a server: it keeps the server's name and zone, which one group over all zones cannot.
# A changed launch template replaces nothing by itself: servers are replaced one at a time, by hand.
resource "aws_autoscaling_group" "server" {
  for_each = local.servers

  name                = each.key
  min_size            = 1
  max_size            = 1
  desired_capacity    = 1
  vpc_zone_identifier = [each.value]
  target_group_arns   = [aws_lb_target_group.servers.arn]

  # Not "ELB": that would throw away the disks of servers that are alive but wait for a quorum.
  health_check_type         = "EC2"
  health_check_grace_period = 300
  # A server is ready when it has found the others: the groups must not wait for each other.
  wait_for_capacity_timeout = "0"

  launch_template {
    id      = aws_launch_template.server[each.key].id
    version = aws_launch_template.server[each.key].latest_version
  }

  dynamic "tag" {
    for_each = merge(var.tags, { Name = each.key })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = false
    }
  }
}

resource "aws_lb" "servers" {
  #checkov:skip=CKV_AWS_91:a network load balancer logs TLS listeners only, and this one passes TLS through
  #checkov:skip=CKV_AWS_152:without cross-zone balancing each zone's address is one server, so that a host which knows nothing but the name can try them all
  name               = "${var.name}-servers"
  internal           = true
  load_balancer_type = "network"
  subnets            = var.subnet_ids
  security_groups    = [aws_security_group.load_balancer.id]

  # Each zone's address leads to that zone's server, so that a host can try one after the other.
  enable_cross_zone_load_balancing = false
  enable_deletion_protection       = var.deletion_protection

  tags = var.tags
}

resource "aws_lb_target_group" "servers" {
  name     = "${var.name}-servers"
  vpc_id   = var.vpc_id
  port     = local.server_port
  protocol = "TCP"

  # A server that asks by the name and reaches itself must get an answer, and not wait for one.
  preserve_client_ip   = false
  deregistration_delay = 30

  health_check {
    protocol            = "TCP"
    port                = "traffic-port"
    interval            = 10
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }

  tags = var.tags
}

resource "aws_lb_listener" "servers" {
  load_balancer_arn = aws_lb.servers.arn
  port              = local.server_port
  protocol          = "TCP"

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.servers.arn
  }

  tags = var.tags
}
