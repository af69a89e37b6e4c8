resource "aws_instance" "east_api" {
  #checkov:skip=CKV_AWS_8:the launch template encrypts the root volume
  #checkov:skip=CKV_AWS_79:the launch template asks for IMDSv2
  #checkov:skip=CKV_AWS_126:the launch template turns detailed monitoring on
  #checkov:skip=CKV2_AWS_41:the launch template gives the role
  subnet_id     = var.east.subnet_ids[0]
  ebs_optimized = true

  launch_template {
    id      = module.east_api.launch_template_id
    version = module.east_api.launch_template_version
  }
}

resource "aws_instance" "east_web" {
  #checkov:skip=CKV_AWS_8:the launch template encrypts the root volume
  #checkov:skip=CKV_AWS_79:the launch template asks for IMDSv2
  #checkov:skip=CKV_AWS_126:the launch template turns detailed monitoring on
  #checkov:skip=CKV2_AWS_41:the launch template gives the role
  subnet_id     = var.east.subnet_ids[0]
  ebs_optimized = true

  launch_template {
    id      = module.east_web.launch_template_id
    version = module.east_web.launch_template_version
  }
}

resource "aws_instance" "west_api" {
  #checkov:skip=CKV_AWS_8:the launch template encrypts the root volume
  #checkov:skip=CKV_AWS_79:the launch template asks for IMDSv2
  #checkov:skip=CKV_AWS_126:the launch template turns detailed monitoring on
  #checkov:skip=CKV2_AWS_41:the launch template gives the role
  provider      = aws.west
  subnet_id     = var.west.subnet_ids[0]
  ebs_optimized = true

  launch_template {
    id      = module.west_api.launch_template_id
    version = module.west_api.launch_template_version
  }
}
