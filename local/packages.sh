#!/usr/bin/env bash
# packages.sh PACKAGE...: installs Debian packages without ever removing one; says in one line what is missing where it cannot.
set -euo pipefail
missing=()
for package; do dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package"); done
[ ${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null; then
  echo "missing packages: ${missing[*]} (no apt-get on this machine; install their counterparts, then try again)" >&2; exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
  if sudo -n true 2>/dev/null; then as_root=(sudo -n); else
    echo "missing packages: ${missing[*]}; run: sudo apt-get install ${missing[*]}" >&2; exit 1
  fi
fi
echo "installing Debian packages: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install() { "${as_root[@]}" apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-remove --no-install-recommends "${missing[@]}" >/dev/null; }
install 2>/dev/null || { "${as_root[@]}" apt-get update -qq; install; }
