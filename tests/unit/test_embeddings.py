"""Where vectors come from, and the address at which Letta asks for them."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from pydantic import SecretStr

from isabella.agents import embeddings
from isabella.agents.embeddings import (
    MISTRAL,
    TEXT,
    SearchMethod,
    VectorSource,
    address,
    address_secret,
    choose_search_method,
)
from isabella.config.settings import Settings, load_settings
from isabella.errors import ConfigurationError
from isabella.providers.desired import Desired, desired_providers
from isabella.system.redaction import redact


class _Model:
    """A model that makes vectors out of the length of a text."""

    loaded: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def load(cls, **options: Any) -> _Model:
        cls.loaded.append(options)
        return cls()

    def embed(self, texts: list[str], norm: bool) -> list[list[float]]:
        assert norm
        return [[float(len(text)), *[0.0] * (embeddings.DIMENSIONS - 1)] for text in texts]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A tiny stand-in for the local model's package; its folder."""
    package = tmp_path / "wordllama"
    package.mkdir()
    (package / "__init__.py").write_text("")
    module = ModuleType("wordllama")
    module.__file__ = str(package / "__init__.py")
    module.__dict__["WordLlama"] = _Model
    monkeypatch.setitem(sys.modules, "wordllama", module)
    monkeypatch.setattr(embeddings, "local_model_installed", lambda: True)
    embeddings._model.cache_clear()
    _Model.loaded.clear()
    yield package
    embeddings._model.cache_clear()


def configured(
    tmp_path: Path, wish: str, key: str | None = "practice-mistral-0123456789"
) -> tuple[Settings, tuple[Desired, ...]]:
    """Settings with a wish, and with or without Mistral's key."""
    environment = {"ISABELLA_HOME": str(tmp_path), "ISABELLA_EMBEDDINGS": wish}
    if key is not None:
        environment["MISTRAL_API_KEY"] = key
    settings = load_settings(environment=environment)
    return settings, desired_providers(settings)


def test_auto_takes_mistral_then_the_local_model_then_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is best of what is there; without either, text search as Letta does it."""
    monkeypatch.setattr(embeddings, "local_model_installed", lambda: False)
    assert choose_search_method(*configured(tmp_path, "auto")) == MISTRAL
    assert choose_search_method(*configured(tmp_path, "auto", key=None)) == TEXT
    assert choose_search_method(*configured(tmp_path, "off")) == TEXT
    monkeypatch.setattr(embeddings, "local_model_installed", lambda: True)
    assert choose_search_method(*configured(tmp_path, "auto")) == MISTRAL
    assert choose_search_method(*configured(tmp_path, "auto", key=None)).source is VectorSource.LOCAL
    assert choose_search_method(*configured(tmp_path, "local")).source is VectorSource.LOCAL


def test_a_wish_that_cannot_be_had_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for Mistral without a key, or for the local model without its extra, is said at the start."""
    monkeypatch.setattr(embeddings, "local_model_installed", lambda: False)
    with pytest.raises(ConfigurationError, match="Mistral has no key"):
        choose_search_method(*configured(tmp_path, "mistral", key=None))
    with pytest.raises(ConfigurationError, match="not installed") as refused:
        choose_search_method(*configured(tmp_path, "local"))
    assert "local-embeddings" in (refused.value.remedy or "")


def test_the_choice_survives_in_the_agents_metadata() -> None:
    """What was noted is read back; what is not understood counts as undecided."""
    for choice in (MISTRAL, TEXT, SearchMethod(VectorSource.LOCAL, embeddings.MODEL, embeddings.DIMENSIONS)):
        assert SearchMethod.from_metadata(choice.as_metadata()) == choice
    assert SearchMethod.from_metadata(None) is None
    assert SearchMethod.from_metadata({"source": "crystal ball"}) is None


def test_letta_gets_an_address_with_a_secret_and_no_key(tmp_path: Path) -> None:
    """The secret is long, kept 0600, the same at every start, and masked in whatever is shown."""
    secret = address_secret(tmp_path)
    assert len(secret.get_secret_value()) >= 32
    assert address_secret(tmp_path).get_secret_value() == secret.get_secret_value()
    assert stat.S_IMODE((tmp_path / "embeddings-secret").stat().st_mode) == 0o600
    there = address("http://127.0.0.1:8000", secret)
    config = MISTRAL.as_config(there)
    assert config is not None
    assert config["embedding_endpoint"].startswith(f"http://127.0.0.1:8000{embeddings.PREFIX}/")
    assert config["embedding_endpoint"].endswith("/v1")
    assert config["embedding_dim"] == 1024
    assert secret.get_secret_value() not in redact(there.get_secret_value())
    assert TEXT.as_config(there) is None
    assert MISTRAL.as_config(None) is None
    assert isinstance(there, SecretStr)


def test_the_local_model_is_loaded_once_from_its_own_package(local: Path) -> None:
    """It is told to download nothing, finds its weights in its package, and is loaded by the first text only."""
    vectors = embeddings.embed_locally(["four", ""])
    embeddings.embed_locally(["again"])
    assert [vector[0] for vector in vectors] == [4.0, 1.0]
    assert all(len(vector) == embeddings.DIMENSIONS for vector in vectors)
    assert _Model.loaded == [{"cache_dir": local, "disable_download": True}]
