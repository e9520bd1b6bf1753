#!/bin/sh
# Copies the demo's bundle into the folder of bundles, unless one of that name is there: a bundle is never edited.
#   copy_demo.sh BUNDLE BUNDLES_FOLDER
set -eu
umask 022
bundle=$1
folder=$2

if [ -e "$folder/demo" ]; then
  echo "bundles/demo is there already. Move it away to get the one of this image."
  exit 0
fi
rm -rf "$folder/.demo.new"
cp -R "$bundle" "$folder/.demo.new"
mv "$folder/.demo.new" "$folder/demo"
echo "The bundle is in bundles/demo. Serve it: docker compose up --build --wait"
