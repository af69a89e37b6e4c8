#!/bin/bash
# An ECS task of boot.py: task.sh NAME FOLDER, in a network namespace and a mount namespace of its own.
# Runs FOLDER/NAME.sh, the task's sidecar, on a read-only root with one writable folder, again whenever
# it ends, as ECS starts a task anew.
set -euo pipefail
name=$1 rig=$2
vm=$rig/vm-$name
rm -rf "$vm"
mkdir -p "$vm/disk"
mount --make-rprivate /
mount -t tmpfs tmpfs "$vm/disk"
for folder in usr/bin var/lib; do
  mkdir -p "$vm/disk/$folder/upper" "$vm/disk/$folder/work"
  mount -t overlay overlay "/$folder" \
    -o "lowerdir=/$folder,upperdir=$vm/disk/$folder/upper,workdir=$vm/disk/$folder/work"
done
install -m 755 "$rig/hawser" /usr/bin/hawser
rm -rf /var/lib/hawser
mkdir /var/lib/hawser
for folder in /usr/bin /var/lib /; do
  mount -o remount,bind,ro "$folder"
done
# The task's volume, with the owner and mode of the image's folder.
mount -t tmpfs -o mode=0700,uid=65532,gid=65532 tmpfs /var/lib/hawser
until bash "$rig/$name.sh"; do
  sleep 1
done
