#!/usr/bin/env bash
# Prints the folder with prometheus and promtool. If they are not on PATH, Debian's package is unpacked under .glyphrec.
# It is not installed, because that needs root and would start a server. Fails if the package cannot be downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v prometheus promtool >/dev/null; then
  dirname "$(command -v prometheus)"
  exit
fi
folder=$PWD/.glyphrec/prometheus
if [[ ! -x "$folder/usr/bin/promtool" ]]; then
  download=$(mktemp -d)
  trap 'rm -rf "$download"' EXIT
  cd "$download"
  {
    timeout 60 apt-get download prometheus || { timeout 60 apt-get update && timeout 60 apt-get download prometheus; }
    dpkg-deb --extract prometheus_*.deb unpacked
  } </dev/null >&2
  mkdir -p "$folder"
  cp -R unpacked/. "$folder"
fi
echo "$folder/usr/bin"
