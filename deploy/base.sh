#!/bin/sh
# Makes a base image of Debian packages, for machines that reach no registry of images: deploy/base.sh NAME
# It needs root and debootstrap. The image has Python and certificates, and no compiler.
set -eu
name=$1
command -v debootstrap >/dev/null || { echo "base: debootstrap is missing (apt-get install debootstrap)" >&2; exit 1; }
folder=$(mktemp -d "${TMPDIR:-/var/tmp}/isabella-base.XXXXXX")
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$folder/root" "${MIRROR:-http://deb.debian.org/debian}" >"$folder/log" \
  || { tail -n 20 "$folder/log" >&2; exit 1; }
rm -rf "$folder/root/var/cache/apt"/* "$folder/root/var/lib/apt/lists"/* "$folder/root/usr/share/doc" "$folder/root/usr/share/man" "$folder/root/usr/share/locale"
printf 'FROM scratch\nCOPY root/ /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n' >"$folder/Containerfile"
"${BUILDER:-buildah}" ${BUILDER_STORAGE-} build --quiet --tag "$name" --file "$folder/Containerfile" "$folder"
