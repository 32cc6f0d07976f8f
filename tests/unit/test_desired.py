"""What the configuration asks for: keys from variables and files, types, base URLs, and problems told per vendor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from isabella.config.api_keys import NO_KEY
from isabella.config.settings import load_settings
from isabella.config.vendors import known_vendors, vendor_of_prefix
from isabella.errors import ConfigurationError
from isabella.providers.desired import Desired, desired_providers, select_providers
from isabella.system.redaction import redact

KEYS = {
    "CEREBRAS_API_KEY": "csk-canary-cerebras-0001",
    "GROQ_API_KEY": "gsk_canary-groq-0002",
    "MISTRAL_API_KEY": "canary-mistral-0003",
    "LONGCAT_API_KEY": "ak_canary-longcat-0004",
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def desired(**environment: str) -> dict[str, Desired]:
    """What this environment asks for, by the provider's name."""
    return {provider.name: provider for provider in desired_providers(load_settings(environment=environment))}


def test_the_four_providers_are_as_the_mission_names_them() -> None:
    """Names, native types and base URLs are those that agents refer to."""
    found = {name: (p.type, p.base_url, p.key_source) for name, p in desired(**KEYS).items()}
    assert found == {
        "cerebras": ("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY (environment)"),
        "byok-groq": ("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY (environment)"),
        "byok-mistral": ("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY (environment)"),
        "longcat": ("openai", "https://api.longcat.chat/openai/v1", "LONGCAT_API_KEY (environment)"),
    }


def test_keys_are_taken_as_they_stand_and_never_shown() -> None:
    """Each provider gets the key of its own variable; neither repr nor mask shows it; texts lose it."""
    for provider, key in zip(desired(**KEYS).values(), KEYS.values(), strict=True):
        assert provider.key is not None
        assert provider.key.get_secret_value() == key
        assert provider.problem is None
        assert provider.configured
        assert "canary" not in repr(provider)
        assert "canary" not in (provider.masked_key or "")
        assert "canary" not in redact(f"it was {key}")


def test_a_vendor_without_a_key_is_not_wanted() -> None:
    """No key means not registered: no problem, no key, and the source says which variable is not set."""
    provider = desired()["byok-groq"]
    assert (provider.configured, provider.key, provider.problem) == (False, None, None)
    assert provider.key_source == "GROQ_API_KEY is not set"
    assert provider.masked_key is None


@pytest.mark.parametrize("raw", ["", "  ", "changeme", "gsk_xxx", "gsk_with space", "gsk_\N{SNOWMAN}snow"])
def test_a_refused_key_is_a_problem_of_that_vendor_alone(raw: str) -> None:
    """A value that cannot be a key is told with variable, origin and remedy; the others are not touched."""
    found = desired(**{**KEYS, "GROQ_API_KEY": raw})
    provider = found["byok-groq"]
    assert provider.key is None
    assert provider.configured
    assert provider.problem is not None
    assert provider.problem.startswith("GROQ_API_KEY cannot be used: ")
    assert provider.key_source == "GROQ_API_KEY (environment)"
    assert provider.remedy is not None
    assert "console.groq.com" in provider.remedy
    if raw.strip():
        assert raw not in provider.problem
    assert all(p.problem is None for name, p in found.items() if name != "byok-groq")


def test_what_was_taken_off_a_key_is_noted_with_its_variable() -> None:
    """The operator is told which variable had what around its value."""
    provider = desired(GROQ_API_KEY=' "gsk_canary-quoted-0005" ')["byok-groq"]
    assert provider.key is not None
    assert provider.key.get_secret_value() == "gsk_canary-quoted-0005"
    assert provider.notes == (
        "GROQ_API_KEY: surrounding white space was removed",
        "GROQ_API_KEY: surrounding quotes were removed",
    )


@pytest.mark.parametrize(
    ("variable", "name", "key", "whose"),
    [
        ("CEREBRAS_API_KEY", "cerebras", "gsk_canary-0006", "Groq"),
        ("GROQ_API_KEY", "byok-groq", "csk-canary-0007", "Cerebras"),
        ("MISTRAL_API_KEY", "byok-mistral", "ak_canary-0008", "LongCat"),
        ("CEREBRAS_API_KEY", "cerebras", "csk-canary-0009", None),
        ("MISTRAL_API_KEY", "byok-mistral", "canary-0010", None),
        ("GROQ_API_KEY", "byok-groq", "canary-without-prefix-0011", None),
    ],
)
def test_another_vendor_s_prefix_is_a_warning(variable: str, name: str, key: str, whose: str | None) -> None:
    """A key that begins as another vendor's do is used, with a remark that names that vendor."""
    provider = desired(**{variable: key})[name]
    assert provider.key is not None
    assert provider.problem is None
    if whose is None:
        assert provider.notes == ()
    else:
        (note,) = provider.notes
        assert whose in note
        assert variable in note
        assert "canary" not in note


def key_file(tmp_path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    """A file with a key in it."""
    path = tmp_path / "groq.key"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("beginning", "ending"), [("", ""), ("", "\n"), ("\ufeff", "\r\n")])
def test_a_key_file_is_read(tmp_path: Path, beginning: str, ending: str) -> None:
    """A private file gives its key without remark, however an editor has saved it, and is the key's source."""
    path = key_file(tmp_path, f"{beginning}gsk_canary-file-0012{ending}")
    provider = desired(GROQ_API_KEY_FILE=str(path))["byok-groq"]
    assert provider.key is not None
    assert provider.key.get_secret_value() == "gsk_canary-file-0012"
    assert provider.key_source == f"GROQ_API_KEY_FILE ({path})"
    assert provider.notes == ()


@pytest.mark.parametrize(("mode", "remarked"), [(0o644, True), (0o604, True), (0o640, False), (0o600, False)])
def test_a_key_file_that_everybody_can_read_is_remarked_on(tmp_path: Path, mode: int, remarked: bool) -> None:
    """A world-readable key file is used, with the command that makes it private."""
    path = key_file(tmp_path, "gsk_canary-file-0013", mode)
    provider = desired(GROQ_API_KEY_FILE=str(path))["byok-groq"]
    assert provider.key is not None
    assert [f"chmod 600 {path}" in note for note in provider.notes] == [True] * remarked


def test_the_variable_wins_over_the_file(tmp_path: Path) -> None:
    """Where both are set, the key itself counts, and it is said."""
    path = key_file(tmp_path, "gsk_canary-file-0014")
    provider = desired(GROQ_API_KEY="gsk_canary-direct-0015", GROQ_API_KEY_FILE=str(path))["byok-groq"]
    assert provider.key is not None
    assert provider.key.get_secret_value() == "gsk_canary-direct-0015"
    assert provider.notes == ("GROQ_API_KEY wins over GROQ_API_KEY_FILE: both are set",)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", "", "changeme\n"])
def test_a_key_file_that_gives_no_key_is_a_problem(tmp_path: Path, content: str | bytes | None) -> None:
    """A file that is absent, not text, empty or a placeholder is told with its path and a remedy."""
    path = tmp_path / "absent.key" if content is None else key_file(tmp_path, content)
    provider = desired(GROQ_API_KEY_FILE=str(path))["byok-groq"]
    assert provider.key is None
    assert provider.problem is not None
    assert provider.problem.startswith("GROQ_API_KEY_FILE ")
    assert str(path) in provider.problem + provider.key_source
    assert provider.remedy


def test_a_folder_as_key_file_is_a_problem(tmp_path: Path) -> None:
    """A folder in the file's place is told, not thrown."""
    provider = desired(GROQ_API_KEY_FILE=str(tmp_path))["byok-groq"]
    assert provider.problem is not None
    assert "cannot be read" in provider.problem


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("~no-such-user-here/key", "the home folder that ~ stands for is not known"),
        ("/keys/half\0key", "no file can"),
    ],
)
def test_a_path_that_can_be_none_is_a_problem_of_that_vendor_alone(named: str, why: str) -> None:
    """A home folder of nobody, or a name that no file can have, is told with the variable and the reason."""
    found = desired(GROQ_API_KEY=KEYS["GROQ_API_KEY"], CEREBRAS_API_KEY_FILE=named)
    problem = found["cerebras"].problem
    assert problem is not None
    assert problem.startswith("CEREBRAS_API_KEY_FILE names ")
    assert "cannot be read" in problem
    assert why in problem
    assert found["cerebras"].key is None
    assert found["byok-groq"].problem is None


def test_types_openai_registers_every_vendor_as_openai() -> None:
    """With `openai`, each vendor has that type and its own base URL."""
    found = desired(**KEYS, ISABELLA_PROVIDER_TYPES="openai")
    assert {p.type for p in found.values()} == {"openai"}
    assert found["cerebras"].base_url == "https://api.cerebras.ai/v1"


def test_one_vendor_s_type_wins() -> None:
    """`…_PROVIDER_TYPE` sets the type of one vendor, whatever the others have."""
    found = desired(**KEYS, ISABELLA_PROVIDER_TYPES="openai", GROQ_PROVIDER_TYPE=" Groq ", MISTRAL_PROVIDER_TYPE="")
    assert found["byok-groq"].type == "groq"
    assert found["byok-mistral"].type == "openai"


def test_a_base_url_of_one_s_own_is_used() -> None:
    """`…_BASE_URL` moves a vendor; an empty one does not."""
    found = desired(**KEYS, GROQ_BASE_URL="http://127.0.0.1:1/v1/", MISTRAL_BASE_URL=" ")
    assert found["byok-groq"].base_url == "http://127.0.0.1:1/v1"
    assert found["byok-mistral"].base_url == "https://api.mistral.ai/v1"


def test_a_malformed_base_url_is_a_problem_of_that_vendor_alone() -> None:
    """A base URL that is none is told with its variable; nothing is registered under the vendor's own instead."""
    found = desired(**KEYS, GROQ_BASE_URL="127.0.0.1:1")
    assert found["byok-groq"].problem is not None
    assert found["byok-groq"].problem.startswith("GROQ_BASE_URL (environment) cannot be used")
    assert found["cerebras"].problem is None


def test_a_malformed_base_url_without_a_key_is_no_problem() -> None:
    """Of a vendor that is not wanted, nothing has to be right."""
    assert not desired(GROQ_BASE_URL="127.0.0.1:1")["byok-groq"].configured


def test_declared_vendors_follow_those_of_the_catalog(tmp_path: Path) -> None:
    """A vendor of isabella.toml is a provider like any other, with a key of its own variable."""
    (tmp_path / "isabella.toml").write_text(
        '[[providers]]\nname = "mine"\nbase_url = "http://127.0.0.1:1/v1"\napi_key_env = "MINE"\n'
    )
    found = desired(MINE="canary-mine-0016")
    assert [*found] == ["cerebras", "byok-groq", "byok-mistral", "longcat", "mine"]
    assert found["mine"].type == "openai"
    assert found["mine"].key_source == "MINE (environment)"


def test_types_openai_covers_declared_vendors(tmp_path: Path) -> None:
    """Types openai makes every vendor openai, declared ones included."""
    (tmp_path / "isabella.toml").write_text(
        '[[providers]]\nname = "mine"\nbase_url = "http://127.0.0.1:1/v1"\napi_key_env = "MINE"\ntype = "groq"\n'
    )
    assert desired(MINE="canary-mine-0017")["mine"].type == "groq"
    assert desired(MINE="canary-mine-0017", ISABELLA_PROVIDER_TYPES="openai")["mine"].type == "openai"


def test_select_takes_the_named_ones() -> None:
    """Without names all, with names those, in the catalog's order; an unknown name is refused with the known ones."""
    every = desired_providers(load_settings(environment=KEYS))
    assert select_providers(every, ()) == every
    assert [p.name for p in select_providers(every, ("longcat", "cerebras"))] == ["cerebras", "longcat"]
    with pytest.raises(ConfigurationError, match="'grok'") as error:
        select_providers(every, ("grok",))
    assert "byok-groq" in str(error.value)


def test_select_takes_a_vendors_name_for_its_provider() -> None:
    """Unless a provider has that name."""
    every = desired_providers(load_settings(environment=KEYS))
    chosen = select_providers(every, ("groq", "byok-mistral", "mistral"))
    assert [provider.name for provider in chosen] == ["byok-groq", "byok-mistral"]
    own = replace(every[0], name="groq", vendor=replace(every[0].vendor, name="mine", provider="groq"))
    assert select_providers((*every, own), ("groq",)) == (own,)


def test_prefixes_of_the_catalog_lead_to_their_vendors() -> None:
    """A key's vendor is recognised by its prefix; the longest one counts, and of vendors with the same the first."""
    for vendor in known_vendors():
        if vendor.key_prefix:
            found = vendor_of_prefix(f"{vendor.key_prefix}x")
            assert found is not None
            assert found.key_prefix == vendor.key_prefix
    found = vendor_of_prefix("sk-or-v1-x")
    assert found is not None
    assert found.name == "openrouter"
    assert vendor_of_prefix("no-prefix") is None


def test_vendors_on_demand_are_there_once_they_are_set_up() -> None:
    """A key sets one up; without it the vendor is not even listed, except for the list of all vendors."""
    assert [*desired(**KEYS)] == ["cerebras", "byok-groq", "byok-mistral", "longcat"]
    found = desired(OPENROUTER_API_KEY="sk-or-v1-canary-0021", OPENROUTER_MODEL="qwen/qwen3-32b")["openrouter"]
    assert (found.type, found.base_url) == ("openai", "https://openrouter.ai/api/v1")
    assert (found.vendor.default_model, found.notes) == ("qwen/qwen3-32b", ())
    every = desired_providers(load_settings(environment={}), every=True)
    assert {one.vendor.name for one in every} == {vendor.name for vendor in known_vendors()}


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1"),
        ("http://192.168.1.20:11434", "http://192.168.1.20:11434/v1"),
        ("https://ollama.house.example/api/v1/", "https://ollama.house.example/api/v1"),
    ],
)
def test_a_server_of_one_s_own_needs_a_base_url_and_no_key(given: str, base_url: str) -> None:
    """It may be on any machine; the root, which other programs want in the same variable, is completed."""
    provider = desired(OLLAMA_BASE_URL=given)["byok-ollama"]
    assert (provider.base_url, provider.keyless, provider.masked_key) == (base_url, True, "none needed")
    assert provider.key is not None
    assert provider.key.get_secret_value() == NO_KEY
    assert provider.key_source == "OLLAMA_API_KEY is not set, and need not be"
    keyed = desired(OLLAMA_BASE_URL=given, OLLAMA_API_KEY="canary-ollama-0022")["byok-ollama"]
    assert (keyed.keyless, keyed.key_source) == (False, "OLLAMA_API_KEY (environment)")
    wrong = desired(OLLAMA_BASE_URL=given, OLLAMA_API_KEY="changeme")["byok-ollama"]
    assert (wrong.keyless, wrong.key) == (False, None)
    assert "byok-ollama" not in desired(OLLAMA_BASE_URL=" ")


def test_a_table_replaces_a_vendor_on_demand(tmp_path: Path) -> None:
    """By its name, or by the variable of its key: nobody is registered twice. Without a variable it needs no key."""
    table = '[[providers]]\nname = "{}"\nbase_url = "http://127.0.0.1:1/v1"\n'
    (tmp_path / "isabella.toml").write_text(
        table.format("byok-ollama") + table.format("router") + 'api_key_env = "OPENROUTER_API_KEY"\n'
    )
    found = desired(OPENROUTER_API_KEY="sk-or-canary-0023", OLLAMA_BASE_URL="http://127.0.0.1:2/v1")
    assert [name for name, one in found.items() if one.configured] == ["byok-ollama", "router"]
    assert (found["byok-ollama"].upstream, found["byok-ollama"].keyless) == ("http://127.0.0.1:1/v1", True)


def test_where_isabella_herself_reaches_a_vendor() -> None:
    """At the gateway, if that is at an address of the network; one on loopback may be on Letta's machine."""
    for gateway, through in (
        ("http://127.0.0.1:8284", False),
        ("https://gateway.example:8284", True),
        ("off", False),
    ):
        settings = load_settings(environment={"GROQ_API_KEY": "gsk_0123456789abcdef0", "ISABELLA_GATEWAY": gateway})
        (groq,) = (one for one in desired_providers(settings) if one.name == "byok-groq")
        assert groq.upstream == "https://api.groq.com/openai/v1"
        assert groq.reached_at == (f"{gateway}/isabella-gateway/byok-groq/v1" if through else groq.upstream)
