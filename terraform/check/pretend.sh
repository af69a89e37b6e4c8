#!/bin/bash
# The aws, curl and systemctl of a VM of boot.py: pretend.sh PROGRAM FOLDER ARGUMENTS...
# Answers what first-boot.sh and hawser-publish-token ask, and fails on all else.
set -euo pipefail
program=$1 rig=$2
shift 2

# The value after the flag $1.
after() {
  local flag=$1
  shift
  while [ $# -gt 1 ]; do
    if [ "$1" = "$flag" ]; then
      echo "$2"
      return
    fi
    shift
  done
  echo "pretended $program: no $flag" >&2
  exit 2
}
parameter() { echo "$rig/parameters/$(after --name "$@" | tr / _)"; }

case "$program ${*: -1} $*" in
  "curl "*/latest/api/token*) echo token >"$(after -o "$@")" ;;
  "curl "*/placement/region*) echo eu-central-1 ;;
  "curl "*/placement/availability-zone*) echo eu-central-1a ;;
  "aws "*" s3 cp "*) cp "$rig/hawser" "${*: -1}" ;;
  "aws "*" secretsmanager get-secret-value "*) cat "$rig/operator.key" ;;
  "aws "*" ssm get-parameter --with-decryption "*) cat "$(parameter "$@")" ;;
  "aws "*" ssm put-parameter "*)
    file=$(parameter "$@")
    cat "$(after --value "$@" | sed 's#^file://##')" >"$file.new"
    mv "$file.new" "$file"
    ;;
  "aws "*" ssm delete-parameter "*) rm "$(parameter "$@")" ;;
  "systemctl "*" daemon-reload" | "systemctl "*" enable "*) ;;
  "systemctl "*" start "*)
    part=${*: -1}
    part=${part#hawser-}
    echo "${part%.service}" >"$VM/part"
    ;;
  *)
    echo "pretended $program: $*" >&2
    exit 2
    ;;
esac
