#!/bin/sh
# Builds the two images with podman, buildah or docker, whichever is here: deploy/image.sh
# BUILDER chooses one, BASE another base image, IMAGE_TAG the tag, IMAGE_OPTIONS adds options of the builder.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${BUILDER-}" ]; then
  if command -v podman >/dev/null; then BUILDER=podman
  elif command -v buildah >/dev/null; then BUILDER=buildah
  elif command -v docker >/dev/null && docker info >/dev/null 2>&1; then BUILDER=docker
  else echo "image: install podman, buildah or docker (a docker that is installed has to run)" >&2; exit 1
  fi
fi
tag=${IMAGE_TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
set -- --file deploy/Containerfile ${BASE:+--build-arg "BASE=$BASE"}
case $BUILDER in
  # Docker finds the file beside the Containerfile by itself.
  docker) ;;
  *) set -- --ignorefile deploy/Containerfile.dockerignore --layers "$@" ;;
esac
for target in isabella letta; do
  name=localhost/isabella
  [ "$target" = isabella ] || name=$name-$target
  echo "image: $name:$tag with $BUILDER"
  # shellcheck disable=SC2086  # several options in one variable
  $BUILDER ${BUILDER_STORAGE-} build "$@" ${IMAGE_OPTIONS-} --target "$target" --tag "$name:$tag" .
done
