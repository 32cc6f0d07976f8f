#!/bin/sh
# Pins the images that are not built here to what their tags mean now: deploy/pin.sh
# It asks the registry with skopeo or docker, and writes the digests into the files that name them.
set -eu
cd "$(dirname "$0")/.."
digest() {
  if command -v skopeo >/dev/null; then skopeo inspect --format '{{.Digest}}' --no-tags "docker://$1"
  elif command -v docker >/dev/null; then docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1"
  else echo "pin: install skopeo or docker" >&2; return 1
  fi
}
pin() {
  image=$1
  shift
  found=$(digest "$image")
  echo "$found" | grep -qxE 'sha256:[0-9a-f]{64}' || { echo "pin: the registry gave no digest for $image: $found" >&2; exit 1; }
  former=$(sed -n "s|.*$image@\(sha256:[0-9a-f]\{64\}\).*|\1|p" "$1" | head -n 1)
  [ -n "$former" ] || { echo "pin: $1 does not name $image with a digest" >&2; exit 1; }
  for file in "$@"; do
    sed "s|$former|$found|g" "$file" >"$file.new"
    cat "$file.new" >"$file"
    rm "$file.new"
  done
  echo "$image@$found"
}
base=$(sed -n 's|^ARG BASE=\(.*\)@sha256:.*|\1|p' deploy/Containerfile)
postgres=$(sed -n 's|.*image: \(.*pgvector.*\)@sha256:.*|\1|p' compose.yaml)
pin "$base" deploy/Containerfile
pin "$postgres" compose.yaml deploy/kubernetes/overlays/one-node/kustomization.yaml
