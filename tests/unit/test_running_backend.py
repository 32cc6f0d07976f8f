"""The token and the address of the backend, as they are kept in its home."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from isabella.config.settings import Settings, load_settings
from isabella.errors import ConfigurationError
from isabella.server.auth import is_token
from isabella.server.running_backend import (
    address_published,
    check_address,
    ensure_token,
    only_backend,
    published_address,
    stored_token,
)
from isabella.system.redaction import redact


def settings(home: Path, **options: Any) -> Settings:
    """Settings of a home, and nothing of the reader's own."""
    return load_settings(environment={}, home=home, **options)


def test_made_once_and_kept(tmp_path: Path) -> None:
    """The first start makes a token that only its owner can read; later ones find it, and logs never show it."""
    first = ensure_token(settings(tmp_path / "home"))
    assert first.made
    assert stat.S_IMODE((tmp_path / "home" / "token").stat().st_mode) == 0o600
    again = ensure_token(settings(tmp_path / "home"))
    assert not again.made
    assert again.secret == first.secret == stored_token(settings(tmp_path / "home"))
    assert first.secret.get_secret_value() not in redact(f"Bearer {first.secret.get_secret_value()}")


def test_the_operators_own(tmp_path: Path) -> None:
    """ISABELLA_TOKEN wins, and no file is written."""
    assert ensure_token(settings(tmp_path, token=SecretStr("of-the-operator"))).secret.get_secret_value() == (
        "of-the-operator"
    )
    assert [*tmp_path.iterdir()] == []


def test_an_empty_file_opens_nothing(tmp_path: Path) -> None:
    """A token file that was emptied does not mean that everybody may come in: a new token is made."""
    (tmp_path / "token").write_text("\n")
    made = ensure_token(settings(tmp_path))
    assert made.made
    assert len(made.secret.get_secret_value()) == 43


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_nothing(tmp_path: Path, host: str) -> None:
    """On this machine alone the token that is made is enough."""
    check_address(settings(tmp_path, host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_other_machines_need_a_token_of_the_operators(tmp_path: Path, host: str) -> None:
    """Where others can reach the backend, the operator has to set a token, and not a short one."""
    with pytest.raises(ConfigurationError, match="ISABELLA_TOKEN is not set"):
        check_address(settings(tmp_path, host=host))
    with pytest.raises(ConfigurationError, match="shorter"):
        check_address(settings(tmp_path, host=host, token=SecretStr("short")))
    check_address(settings(tmp_path, host=host, token=SecretStr("a-token-that-is-long-enough")))


def test_the_address_is_there_as_long_as_the_backend(tmp_path: Path) -> None:
    """Other programs find the backend while it runs, and not afterwards."""
    assert published_address(tmp_path) is None
    with address_published(tmp_path, "http://127.0.0.1:8000"):
        assert published_address(tmp_path) == "http://127.0.0.1:8000"
    assert published_address(tmp_path) is None
    (tmp_path / "backend.json").write_text("{")
    assert published_address(tmp_path) is None


_BACKEND = """
import sys
from pathlib import Path
from isabella.config.settings import load_settings
from isabella.server.running_backend import only_backend
from isabella.server.running_backend import address_published

home = Path(sys.argv[1])
with only_backend(load_settings(environment={}, home=home, letta_base_url="http://127.0.0.1:9")):
    print("starting", flush=True)
    sys.stdin.readline()
    with address_published(home, "http://127.0.0.1:8123"):
        print("running", flush=True)
        sys.stdin.readline()
"""


def test_a_home_has_one_backend(tmp_path: Path) -> None:
    """A second one is refused with the address of the first; one that was killed is in nobody's way."""
    here = settings(tmp_path, letta_base_url="http://127.0.0.1:9")
    command = [sys.executable, "-c", _BACKEND, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "starting\n"
        with pytest.raises(ConfigurationError, match="is starting or stopping"), only_backend(here):
            pass
        first.stdin.write("\n")
        first.stdin.flush()
        assert first.stdout.readline() == "running\n"
        with pytest.raises(ConfigurationError) as refused, only_backend(here):
            pass
        assert f"{tmp_path} at http://127.0.0.1:8123 (process {first.pid})" in refused.value.what
        assert "ISABELLA_HOME" in (refused.value.remedy or "")
        first.kill()
    assert published_address(tmp_path) == "http://127.0.0.1:8123"
    with only_backend(here):
        pass


def test_a_lock_that_cannot_be_used(tmp_path: Path) -> None:
    """The error names the file."""
    here = settings(tmp_path, letta_base_url="http://127.0.0.1:9")
    (tmp_path / "locks").write_text("")
    with pytest.raises(ConfigurationError, match=str(tmp_path / "locks")), only_backend(here):
        pass


@pytest.mark.parametrize("given", ["", "x", "a-token-for-the-test", "ä-token-for-the-tests", "\udcff"])
def test_wrong_tokens(given: str) -> None:
    """Nothing but the token is the token, whatever characters it is made of."""
    assert not is_token(SecretStr("a-token-for-the-tests"), given)
