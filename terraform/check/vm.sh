#!/bin/bash
# One "VM" of boot.py: vm.sh NAME FOLDER, in a network namespace and a mount namespace of its own.
# Runs FOLDER/NAME.sh as cloud-init would, on a system whose systemctl is pretended, and then what the
# installed unit runs, as its user, with its credentials, again whenever it ends.
set -euo pipefail
name=$1 rig=$2
vm=$rig/vm-$name
rm -rf "$vm"
mkdir -p "$vm"

# What the script writes stays in this VM.
mount --make-rprivate /
mkdir -p "$vm/disk"
mount -t tmpfs tmpfs "$vm/disk"
for folder in etc usr/bin usr/local var/lib; do
  mkdir -p "$vm/disk/$folder/upper" "$vm/disk/$folder/work"
  mount -t overlay overlay "/$folder" \
    -o "lowerdir=/$folder,upperdir=$vm/disk/$folder/upper,workdir=$vm/disk/$folder/work"
done
rm -rf /etc/hawser /var/lib/hawser
echo '127.0.0.1 localhost' >/etc/hosts
echo 'hosts: files dns' >/etc/nsswitch.conf
echo 'nameserver 10.99.0.254' >/etc/resolv.conf
mkdir -p /usr/local/sbin
# The script looks here first.
for program in aws systemctl; do
  printf '#!/bin/bash\nexec %q %q %q %q "$@"\n' "$rig/pretend.sh" "$program" "$rig" "$vm" \
    >"/usr/local/sbin/$program"
  chmod 755 "/usr/local/sbin/$program"
done

bash "$rig/$name.sh"
part=$(cat "$vm/part")

# The unit's own command, credentials and state folder.
unit=/etc/systemd/system/hawser-$part.service
command=$(sed -n 's/^ExecStart=//p' "$unit")
install -d -m 700 -o hawser -g hawser /var/lib/hawser
credentials=$(mktemp -d)
chown hawser:hawser "$credentials"
sed -n 's/^LoadCredential=//p' "$unit" | while IFS=: read -r id path; do
  path=${path:-/etc/credstore/$id}
  [ ! -e "$path" ] || install -m 400 -o hawser -g hawser "$path" "$credentials/$id"
done
export CREDENTIALS_DIRECTORY=$credentials
while :; do
  # shellcheck disable=SC2086 # the unit's words
  setpriv --reuid hawser --regid hawser --clear-groups $command &
  echo $! >"$vm/pid"
  wait $! || true
  sleep "$(sed -n 's/^RestartSec=//p' "$unit")"
done
