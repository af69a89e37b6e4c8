#!/bin/bash
# The ECS task of boot.py: task.sh NAME FOLDER, in a network namespace and a mount namespace of its
# own. Runs FOLDER/NAME.sh, the task's containers one after the other, with folders of their own.
set -euo pipefail
name=$1 rig=$2
vm=$rig/vm-$name
mkdir -p "$vm"
mount --make-rprivate /
mkdir -p "$vm/disk"
mount -t tmpfs tmpfs "$vm/disk"
for folder in etc usr/bin var/lib; do
  mkdir -p "$vm/disk/$folder/upper" "$vm/disk/$folder/work"
  mount -t overlay overlay "/$folder" \
    -o "lowerdir=/$folder,upperdir=$vm/disk/$folder/upper,workdir=$vm/disk/$folder/work"
done
rm -rf /etc/hawser /var/lib/hawser
echo '127.0.0.1 localhost' >/etc/hosts
echo 'hosts: files dns' >/etc/nsswitch.conf
echo 'nameserver 10.99.0.254' >/etc/resolv.conf
install -m 755 "$rig/hawser" /usr/bin/hawser
export RIG=$rig
exec bash "$rig/$name.sh"
