#!/usr/bin/env bash
# Installs those of the named Debian packages that are missing, or says in one sentence which are.
set -euo pipefail

missing=()
for package in "$@"; do
  dpkg --status "$package" &>/dev/null || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

install() {
  [ "$EUID" -eq 0 ] && command -v apt-get >/dev/null || return 1
  export DEBIAN_FRONTEND=noninteractive
  local options=(-qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
  apt-get "${options[@]}" update && apt-get "${options[@]}" install --yes --no-install-recommends "${missing[@]}" >/dev/null
}

install || echo "Missing here: ${missing[*]} (Debian packages, which root can install with apt-get); the tests that need them are skipped."
