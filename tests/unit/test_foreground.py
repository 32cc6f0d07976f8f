"""Programs for containers: Letta on a Postgres of the operator's, and practice vendors with the configured keys."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from isabella.config.settings import load_settings
from isabella.embedded.foreground import prepare_letta
from isabella.embedded.instance import InstancePaths
from isabella.embedded.own_postgres import OwnPostgres
from isabella.errors import ConfigurationError, IsabellaError, StartFailed
from isabella.practice.foreground import serve
from isabella.system import state

MASTER_KEY = "5eed" * 16
URL = "postgresql://letta:canary-password@127.0.0.1:1/letta"
ENVIRONMENT = {
    "LETTA_API_KEY": "canary-server-password",
    "LETTA_ENCRYPTION_KEY": MASTER_KEY,
    "ISABELLA_DATABASE_URL": URL,
}


@pytest.mark.parametrize(
    ("url", "plain", "tls"),
    [
        (URL, URL, "disable"),
        (f"{URL}?sslmode=prefer", URL, "disable"),
        (f"{URL}?sslmode=require", URL, "require"),
        (f"{URL}?sslmode=verify-full&sslrootcert=/ca.crt", URL, "verify-full"),
        ("postgres://u:p%40ss@db/letta", "postgresql://u:p%40ss@db/letta", "disable"),
    ],
)
def test_the_url_of_the_database(url: str, plain: str, tls: str) -> None:
    """Options are taken off, because Letta's two drivers know others, except for the protection."""
    database = OwnPostgres.of(SecretStr(url), "ISABELLA_DATABASE_URL")
    assert (database.url.get_secret_value(), database.tls) == (plain, tls)


@pytest.mark.parametrize(
    "url", ["mysql://u:p@h/letta", "postgresql:///letta", "postgresql://u:p@h", "host=h dbname=l"]
)
def test_other_forms_of_a_url_are_refused(url: str) -> None:
    """Without host or name of a database, Letta would look elsewhere."""
    with pytest.raises(ConfigurationError, match="ISABELLA_DATABASE_URL"):
        OwnPostgres.of(SecretStr(url), "ISABELLA_DATABASE_URL")


def installed(home: Path) -> InstancePaths:
    """A home with a release that looks installed."""
    paths = InstancePaths(home)
    paths.python.parent.mkdir(parents=True)
    paths.python.symlink_to("/bin/true")
    complete = {"release": "0.16.8", "migration_head": "head", "lock": "patched"}
    state.save(paths.program / "isabella-complete.json", complete)
    return paths


def test_letta_wants_its_secrets_and_its_installation(tmp_path: Path) -> None:
    """Each is named, before anything is started."""
    environment = {"ISABELLA_HOME": str(tmp_path)}
    for name in ENVIRONMENT:
        rest = {one: value for one, value in ENVIRONMENT.items() if one != name}
        with pytest.raises(ConfigurationError, match=f"Letta needs {name}:"):
            prepare_letta(load_settings(environment=environment | rest), "127.0.0.1", 0)
    with pytest.raises(StartFailed, match="is not installed"):
        prepare_letta(load_settings(environment=environment | ENVIRONMENT), "127.0.0.1", 0)
    installed(tmp_path)
    with pytest.raises(StartFailed, match="cannot be used") as unreachable:
        prepare_letta(load_settings(environment=environment | ENVIRONMENT), "127.0.0.1", 0)
    assert "canary-password" not in str(unreachable.value)


@pytest.mark.parametrize("revision", ["head", None])
def test_the_process_of_letta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    """Its secrets are in its environment only; it migrates a database that is not at the release's last migration."""
    paths = installed(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGSSLROOTCERT", "/ca.crt")
    monkeypatch.setenv("GROQ_API_KEY", "gsk_canary")
    monkeypatch.setattr(OwnPostgres, "prepare", lambda _: revision)
    environment = ENVIRONMENT | {
        "ISABELLA_HOME": str(tmp_path),
        "ISABELLA_DATABASE_URL": f"{URL}?sslmode=verify-full",
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = prepare_letta(load_settings(environment=environment), "127.0.0.1", port)
    assert process.command[0] == str(paths.python)
    assert process.command[-6:] == ("server", "--secure", "--host", "127.0.0.1", "--port", str(port))
    assert Path.cwd() == paths.server_home
    assert not [one for one in process.command if "canary" in one or MASTER_KEY in one]
    passed = dict(process.environment)
    assert passed["LETTA_PG_URI"] == f"{URL}?ssl=verify-full"
    assert passed["PGSSLROOTCERT"] == "/ca.crt"
    assert passed["LETTA_SERVER_PASSWORD"] == ENVIRONMENT["LETTA_API_KEY"]
    assert "GROQ_API_KEY" not in passed
    assert ("ISABELLA_MIGRATIONS_URL" in passed) is (revision is None)
    assert "canary" not in repr(process)


def test_a_taken_port_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letta itself would say so after its imports."""
    installed(tmp_path)
    monkeypatch.setattr(OwnPostgres, "prepare", lambda _: "head")
    settings = load_settings(environment=ENVIRONMENT | {"ISABELLA_HOME": str(tmp_path)})
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="cannot listen"):
        prepare_letta(settings, "127.0.0.1", taken.getsockname()[1])


def test_practice_vendors_want_a_key_and_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key that Isabella also has, they would refuse everything."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="No practice vendor has a key"):
        serve(load_settings(environment={}), "127.0.0.1", 0, print)
    settings = load_settings(environment={"GROQ_API_KEY": "gsk_0123456789abcdef"})
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(IsabellaError, match="cannot listen"):
        serve(settings, "127.0.0.1", taken.getsockname()[1], print)
