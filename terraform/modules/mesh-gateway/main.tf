locals {
  full_name = "${var.cluster.name}-${var.name}"
  port      = 8443

  # A node's own address, where others reach it, is the default of the binary.
  gateway = merge(
    { bind = "0.0.0.0:${local.port}" },
    var.advertise == "load-balancer" ? { advertise = "${aws_lb.gateway.dns_name}:${local.port}" } : {},
  )
}

module "vm" {
  source = "../vm-agent"

  cluster          = var.cluster
  node_name        = var.name
  fleet            = true
  vpc_id           = var.cluster.vpc_id
  ami_id           = var.ami_id
  instance_type    = var.instance_type
  root_device_name = var.root_device_name
  volume_gib       = var.volume_gib
  install          = var.install
  extra_config     = jsonencode(merge({ mesh_gateway = local.gateway }, jsondecode(var.extra_config)))
  session_manager  = var.session_manager
  tags             = var.tags
}

resource "aws_autoscaling_group" "gateway" {
  name                = local.full_name
  min_size            = var.min_size
  max_size            = var.max_size
  vpc_zone_identifier = var.subnet_ids
  target_group_arns   = [aws_lb_target_group.gateway.arn]

  # A gateway that does not listen is replaced; one that has not joined yet does not listen.
  health_check_type         = "ELB"
  health_check_grace_period = var.grace_seconds
  # The first gateways wait for the servers' operator key, which nobody has put in yet.
  wait_for_capacity_timeout = "0"

  launch_template {
    id      = module.vm.launch_template_id
    version = module.vm.launch_template_version
  }

  # Gateways keep nothing: a change replaces them, new ones first.
  instance_refresh {
    strategy = "Rolling"

    preferences {
      min_healthy_percentage = 100
      max_healthy_percentage = 200
    }
  }

  dynamic "tag" {
    for_each = merge(var.tags, { Name = local.full_name })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = false
    }
  }
}

resource "aws_autoscaling_policy" "gateway" {
  name                   = "${local.full_name}-cpu"
  autoscaling_group_name = aws_autoscaling_group.gateway.name
  policy_type            = "TargetTrackingScaling"

  target_tracking_configuration {
    target_value = var.target_cpu_percent

    predefined_metric_specification {
      predefined_metric_type = "ASGAverageCPUUtilization"
    }
  }
}

resource "aws_lb" "gateway" {
  #checkov:skip=CKV_AWS_91:a network load balancer logs TLS listeners only, and this one passes TLS through
  name                             = local.full_name
  internal                         = !var.internet_facing
  load_balancer_type               = "network"
  subnets                          = coalesce(var.load_balancer_subnet_ids, var.subnet_ids)
  security_groups                  = [aws_security_group.load_balancer.id]
  enable_cross_zone_load_balancing = true
  enable_deletion_protection       = var.deletion_protection
  tags                             = var.tags
}

resource "aws_lb_target_group" "gateway" {
  name     = local.full_name
  vpc_id   = var.cluster.vpc_id
  port     = local.port
  protocol = "TCP"

  # Callers come over peered VPCs, too, from which a client's address cannot be kept.
  preserve_client_ip   = false
  deregistration_delay = 60

  health_check {
    protocol            = "TCP"
    port                = "traffic-port"
    interval            = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }

  tags = var.tags
}

# TLS ends at the services behind: who is at either end is proved there, and nobody reads on the way.
resource "aws_lb_listener" "gateway" {
  load_balancer_arn = aws_lb.gateway.arn
  port              = local.port
  protocol          = "TCP"

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.gateway.arn
  }

  tags = var.tags
}
