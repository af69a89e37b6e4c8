#!/bin/bash
# The aws and systemctl of a VM of boot.py: pretend.sh PROGRAM FOLDER VM ARGUMENTS...
# aws is the real one, told where cloud.py answers. systemctl notes what is started and restarts it,
# and fails on all else.
set -euo pipefail
program=$1 rig=$2 vm=$3
shift 3

case "$program $*" in
  "aws "*)
    export AWS_ENDPOINT_URL=http://169.254.169.253:5000 AWS_PAGER=
    exec "$rig/../cloud/bin/aws" "$@"
    ;;
  "systemctl daemon-reload" | "systemctl enable hawser-"*.service) ;;
  "systemctl start --no-block hawser-"*.service)
    part=${*: -1}
    part=${part#hawser-}
    echo "${part%.service}" >"$vm/part"
    ;;
  "systemctl try-restart hawser-"*.service)
    # vm.sh starts it again, as the unit's Restart= does.
    [ ! -s "$vm/pid" ] || kill -TERM "$(cat "$vm/pid")"
    ;;
  *)
    echo "pretended $program: $*" >&2
    exit 2
    ;;
esac
