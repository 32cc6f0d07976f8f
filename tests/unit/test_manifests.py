"""What is deployed: secrets are files, everything is read-only and unprivileged, only the gateway reaches vendors."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import balancer

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("one-node", "replicas")
DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})")
#: Names of variables that would hold a secret. With `_FILE` they name the file of one.
SECRET = re.compile(r"(PASSWORD|TOKEN|_KEY|_URI|DATABASE_URL|SECRET)$")
NAME = "app.kubernetes.io/name"
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]

_PODMAN_FILES = "--file compose.yaml --file deploy/compose.podman.yaml"

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The objects of an overlay."""
    folder = DEPLOY / "kubernetes" / "overlays" / request.param
    ended = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return [*yaml.safe_load_all(ended.stdout)]


def pods(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The templates of all pods, by the names of their sets."""
    for each in manifests:
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each["metadata"]["name"], each["spec"]["template"]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector of Kubernetes matches these labels."""
    same = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        same = same and labels.get(rule["key"]) in rule["values"]
    return same


def reaches(
    manifests: list[dict[str, Any]], labels: Mapping[str, str], port: int, *, to: Mapping[str, str] | str
) -> bool:
    """Whether the policies let a pod reach a port of another pod (by its labels), or of an address."""
    rules = [
        rule
        for each in manifests
        if each["kind"] == "NetworkPolicy" and selects(each["spec"]["podSelector"], labels)
        for rule in each["spec"].get("egress", ())
    ]
    for rule in rules:
        if port not in [one["port"] for one in rule["ports"]]:
            continue
        for peer in rule["to"]:
            block, pod = peer.get("ipBlock"), peer.get("podSelector")
            if isinstance(to, str) and block is not None:
                address = ipaddress.ip_address(to)
                inside = address in ipaddress.ip_network(block["cidr"])
                if inside and not any(address in ipaddress.ip_network(one) for one in block.get("except", ())):
                    return True
            if not isinstance(to, str) and pod is not None and "namespaceSelector" not in peer and selects(pod, to):
                return True
    return False


@needs_kubectl
def test_every_pod_is_unprivileged_and_read_only(manifests: list[dict[str, Any]]) -> None:
    """As the strictest standard of Kubernetes wants it, and without a token for its API."""
    assert len([*pods(manifests)]) >= 3
    for name, pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"], name
            assert "readinessProbe" in container, name


@needs_kubectl
def test_no_secret_is_in_a_manifest(manifests: list[dict[str, Any]]) -> None:
    """Secrets are files of a volume that follows them: no variable holds one, and no manifest defines one."""
    assert not [each for each in manifests if each["kind"] == "Secret"]
    for name, pod in pods(manifests):
        for container in pod["spec"]["containers"]:
            assert not container.get("envFrom"), name
            for variable in container["env"]:
                assert "valueFrom" not in variable, variable
                assert not SECRET.search(variable["name"]), variable
            assert not [one for one in container["volumeMounts"] if "subPath" in one], name


@needs_kubectl
def test_only_the_gateway_reaches_vendors(manifests: list[dict[str, Any]]) -> None:
    """No other pod has a way to port 443 of any address, and the gateway has none into private networks."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(manifests)}
    for address in ("203.0.113.7", "2001:db8::1"):
        reached = {name for name, own in labels.items() if reaches(manifests, own, 443, to=address)}
        assert reached == {"gateway"}
        assert not [name for name, own in labels.items() if reaches(manifests, own, 80, to=address)]
    for private in ("10.1.2.3", "169.254.169.254", "192.168.0.1", "127.0.0.1", "fd00::1"):
        assert not [name for name, own in labels.items() if reaches(manifests, own, 443, to=private)]


@needs_kubectl
def test_who_reaches_whom(manifests: list[dict[str, Any]]) -> None:
    """Each pod reaches what it calls, and nothing else; what is not named is denied in both directions."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(manifests)}
    ports = {"letta": 8283, "gateway": 8284, "isabella": 8000, "postgres": 5432}
    calls = {
        (one, other)
        for one, own in labels.items()
        for other, theirs in labels.items()
        if reaches(manifests, own, ports[other], to=theirs)
    }
    expected = {("isabella", "letta"), ("isabella", "gateway"), ("letta", "gateway"), ("gateway", "letta")}
    if "postgres" in labels:
        expected |= {("isabella", "postgres"), ("letta", "postgres")}
    else:
        database = [name for name, own in labels.items() if reaches(manifests, own, 5432, to="192.0.2.5")]
        assert sorted(database) == ["isabella", "letta"]
    assert calls == expected
    nothing = next(each for each in manifests if each["metadata"]["name"] == "nothing")
    assert nothing["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@needs_kubectl
def test_keys_between_machines_have_tls(manifests: list[dict[str, Any]]) -> None:
    """With replicas, everything that calls the gateway does so by https, and trusts its authority."""
    kinds = {name: pod["spec"]["containers"][0] for name, pod in pods(manifests)}
    if "postgres" in kinds:
        return
    assert "--insecure" not in kinds["gateway"]["args"]
    for name in ("gateway", "isabella"):
        values = {one["name"]: one["value"] for one in kinds[name]["env"]}
        assert values["ISABELLA_GATEWAY"] == "https://gateway:8284"
    for name in ("letta", "isabella"):
        assert "/run/tls/ca.crt" in [one["value"] for one in kinds[name]["env"]], name


def test_images_are_pinned_and_the_same_everywhere() -> None:
    """Images of others by digest; ours by the version of the package."""
    base = re.findall(r"^ARG BASE=(.*)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    assert len(base) == 1
    assert DIGEST.search(base[0])
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    names = {name for _, name in stages}
    assert {image for image, _ in stages} <= {"${BASE}", *names}
    postgres = DIGEST.search(SERVICES["postgres"]["image"])
    assert postgres is not None
    one_node = yaml.safe_load((DEPLOY / "kubernetes/overlays/one-node/kustomization.yaml").read_text())
    assert one_node["images"][0]["digest"] == postgres[1]
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    kustomization = yaml.safe_load((DEPLOY / "kubernetes/base/kustomization.yaml").read_text())
    assert {image["newTag"] for image in kustomization["images"]} == {found[1]}
    ours = [one["image"] for name, one in SERVICES.items() if name != "postgres"]
    assert all(image.endswith(f":{found[1]}}}") for image in ours), ours


def test_the_services_of_compose_are_confined() -> None:
    """The same for compose.yaml: nothing privileged, nothing secret in variables, one way out."""
    document = yaml.safe_load((ROOT / "compose.yaml").read_text())
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service["user"].startswith("0"), name
        assert not [one for one in service.get("environment", {}) if SECRET.search(one)], name
    assert all(port.startswith("127.0.0.1:") for one in SERVICES.values() for port in one.get("ports", ()))
    outside = [name for name, network in document["networks"].items() if not (network or {}).get("internal")]
    assert sorted(outside) == ["front", "outside"]
    masquerades = document["networks"]["front"]["driver_opts"]
    assert masquerades == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert [name for name, one in SERVICES.items() if "outside" in one["networks"]] == ["gateway"]
    assert [name for name, one in SERVICES.items() if "front" in one["networks"]] == ["isabella"]
    assert sorted(name for name, one in SERVICES.items() if "practice" in one["networks"]) == ["gateway", "practice"]


def test_both_databases_begin_alike() -> None:
    """Kustomize reads no file outside its folder, so there are two."""
    one, other = DEPLOY / "postgres/letta.sql", DEPLOY / "kubernetes/overlays/one-node/letta.sql"
    assert one.read_text() == other.read_text()


def make_secrets(folder: Path) -> str:
    """Run deploy/make_secrets.py of a copy of the project, and return what it prints."""
    (folder / "deploy").mkdir(exist_ok=True)
    shutil.copy(DEPLOY / "make_secrets.py", folder / "deploy")
    command = [sys.executable, str(folder / "deploy" / "make_secrets.py")]
    return str(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """They differ, only their owner passes into the folder, and a second call changes nothing."""
    assert make_secrets(tmp_path) == "practice\n"
    folder = tmp_path / "deploy/secrets"
    made = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert {path.name for path in made} == {
        *("postgres-password", "database-password", "database-url", "letta-password", "master-key", "token", ".env")
    }
    assert len(set(made.values())) == len(made)
    documents = yaml.safe_load((ROOT / "compose.yaml").read_text())["secrets"]
    assert {Path(one["file"]).name for one in documents.values()} == {path.name for path in made} - {".env"}
    assert folder.stat().st_mode & 0o777 == 0o700
    # The containers' users are others; they are given single files, and this folder.
    assert (folder / "config").stat().st_mode & 0o777 == 0o755
    assert make_secrets(tmp_path) == "practice\n"
    assert {path: path.read_text() for path in made} == made


@pytest.mark.parametrize(
    ("text", "printed"),
    [("GROQ_API_KEY=gsk_one\n", ""), ("LETTA_API_KEY=x\n", "practice\n"), ("#GROQ_API_KEY=gsk_one\n", "practice\n")],
)
def test_keys_of_the_project_are_used(tmp_path: Path, text: str, printed: str) -> None:
    """A `.env` with a vendor's key is copied; one without is not enough."""
    (tmp_path / ".env").write_text(text)
    assert make_secrets(tmp_path) == printed
    assert ((tmp_path / "deploy/secrets/config/.env").read_text() == text) is (printed == "")


@pytest.mark.parametrize(
    ("programs", "builder", "compose"),
    [
        (("docker",), "docker", "docker compose"),
        (("docker", "podman"), "docker", "docker compose"),
        (("podman", "podman-compose"), "podman", f"podman-compose {_PODMAN_FILES}"),
        (("podman", "buildah"), "podman", f"podman compose {_PODMAN_FILES}"),
    ],
)
def test_the_engine_that_runs_the_stack_builds_its_images(
    tmp_path: Path, programs: tuple[str, ...], builder: str, compose: str
) -> None:
    """`make stack` with what is installed: two images, and then all services."""
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    for file in ("Makefile", "compose.yaml", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in programs:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/called\n')
        (folder / name).chmod(0o700)
    for name in ("python3", "dirname", "sed", "cat", "sh", "uname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    make = [str(shutil.which("make")), "stack", f"PYTHON={sys.executable}"]
    ended = subprocess.run(make, cwd=tmp_path, env={"PATH": str(folder)}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    *built, started = (tmp_path / "called").read_text().splitlines()
    assert [(line.split()[:2], line.split()[-4]) for line in built] == [
        ([builder, "build"], "isabella"),
        ([builder, "build"], "letta"),
    ]
    assert started == f"{compose} --profile practice up --detach --wait"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.stem)
def test_systemd_understands_the_units(tmp_path: Path, unit: Path) -> None:
    """It has nothing to say about them, and calls their exposure low."""
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    for command in (["verify"], ["security", "--offline=yes", "--threshold=30"]):
        ended = subprocess.run(["systemd-analyze", *command, copy], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert command != ["verify"] or ended.stderr == ""
    # The gateway asks for the time of the system's start, which is in /proc/stat.
    assert "ProcSubset=pid" not in unit.read_text()


@pytest.mark.skipif(balancer.PROGRAM is None, reason=balancer.WITHOUT)
def test_haproxy_understands_its_configuration(tmp_path: Path) -> None:
    """It has nothing to say about it, not even a warning; and a word that it does not know is not passed over."""

    def said(text: str) -> tuple[int, str]:
        file = tmp_path / "haproxy.cfg"
        file.write_text(text)
        command = [str(balancer.PROGRAM), "-c", "-q", "-f", str(file)]
        ended = subprocess.run(command, env=balancer.ENVIRONMENT, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout + ended.stderr

    text = balancer.CONFIGURATION.read_text()
    assert said(text) == (0, "")
    assert "option redispatch" in text
    assert said(text.replace("option redispatch", "option redespatch"))[0] != 0


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_understands_its_configuration(tmp_path: Path) -> None:
    """It has nothing to say about it, but for the places of its files, which are others here."""
    copy = tmp_path / "nginx.conf"
    text = (DEPLOY / "balancers" / "nginx.conf").read_text().replace("/run/nginx.pid", str(tmp_path / "pid"))
    # Those of its package are for root.
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"    {kind}_temp_path {tmp_path / kind};\n" for kind in kinds)
    copy.write_text(text.replace("http {\n", f"http {{\n{places}"))
    command = [str(NGINX), "-t", "-q", "-p", str(tmp_path), "-c", str(copy)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_both_balancers_have_the_same_servers() -> None:
    """And wait as long for an answer that is silent."""
    texts = [(DEPLOY / "balancers" / name).read_text() for name in ("haproxy.cfg", "nginx.conf")]
    servers = [sorted(re.findall(r"^ +server (?:[\w-]+ )?(192\S+:\d+)", text, re.MULTILINE)) for text in texts]
    assert servers[0] == servers[1]
    assert len(servers[0]) == 7
    assert [re.findall(r"(?:timeout server|proxy_read_timeout) (\w+)", text) for text in texts] == [["31m"]] * 2


def test_a_pin_is_written_to_every_file(tmp_path: Path) -> None:
    """The registry's answer replaces both digests everywhere; another answer changes nothing."""
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    skopeo = programs / "skopeo"
    files = ("deploy/Containerfile", "compose.yaml", "deploy/kubernetes/overlays/one-node/kustomization.yaml")

    def pin(answer: str) -> int:
        skopeo.write_text(f"#!/bin/sh\necho {answer}\n")
        skopeo.chmod(0o700)
        environment = {"PATH": f"{programs}:/usr/bin:/bin"}
        ended = subprocess.run([tmp_path / "deploy/pin.sh"], env=environment, capture_output=True, check=False)
        return ended.returncode

    before = [(tmp_path / file).read_text() for file in files]
    assert pin("denied") == 1
    assert [(tmp_path / file).read_text() for file in files] == before
    assert pin(f"sha256:{'5eed' * 16}") == 0
    for file in files:
        assert set(re.findall(r"sha256:[0-9a-f]{64}", (tmp_path / file).read_text())) == {f"sha256:{'5eed' * 16}"}
