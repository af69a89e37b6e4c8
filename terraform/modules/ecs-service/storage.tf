resource "aws_efs_file_system" "identity" {
  #checkov:skip=CKV_AWS_184:encrypted by the account's key for EFS; what is on it is one task's own certificate and view
  #checkov:skip=CKV2_AWS_18:nothing here is worth a backup: a lost identity is replaced by a new join token
  creation_token = "${local.full_name}-identity"
  encrypted      = true
  tags           = merge(var.tags, { Name = "${local.full_name}-identity" })
}

resource "aws_efs_access_point" "identity" {
  file_system_id = aws_efs_file_system.identity.id

  posix_user {
    uid = local.uid
    gid = local.uid
  }

  root_directory {
    path = "/hawser"

    creation_info {
      owner_uid   = local.uid
      owner_gid   = local.uid
      permissions = "0700"
    }
  }

  tags = var.tags
}

resource "aws_efs_mount_target" "identity" {
  count = length(var.subnet_ids)

  file_system_id  = aws_efs_file_system.identity.id
  subnet_id       = var.subnet_ids[count.index]
  security_groups = [aws_security_group.storage.id]
}
