"""`isabella vendors`: what is asked, what is tried, what is written; and that nothing is written otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from typer.testing import CliRunner, Result
from werkzeug import Request, Response

from isabella.cli import app, vendor_setup
from isabella.errors import ConfigurationError

KEY = "sk-or-v1-canary0vendors0command0001"
ITEM: dict[str, Any] = {"id": "m.gguf", "owned_by": "llamacpp", "meta": {"n_ctx": 8192}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with an `.env`, and a home without a backend."""
    for name in ("OPENROUTER_API_KEY", "LLAMA_CPP_BASE_URL", "OLLAMA_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISABELLA_HOME", str(tmp_path / "home"))
    (tmp_path / ".env").write_text("# ours\nISABELLA_PORT=0  # any\n")
    return tmp_path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input counts as a terminal."""
    monkeypatch.setattr(vendor_setup, "_is_terminal", lambda: True)


def run(*arguments: str, typed: str = "") -> Result:
    """Run the command; an error of Isabella is what it raises."""
    return CliRunner().invoke(app, ["vendors", *arguments], input=typed)


def refused(*arguments: str, typed: str = "") -> ConfigurationError:
    """Run a command that has to be refused, and return the refusal."""
    error = run(*arguments, typed=typed).exception
    assert isinstance(error, ConfigurationError), error
    assert KEY not in str(error)
    return error


def lists(server: HTTPServer, *items: dict[str, Any], key: str | None = None, path: str = "/v1/models") -> str:
    """Have a server list these models, for this key only; return its root."""

    def answer(request: Request) -> Response:
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            body = {"error": {"message": "Invalid API Key", "code": "invalid_api_key"}}
            return Response(json.dumps(body), 401, content_type="application/json")
        return Response(json.dumps({"object": "list", "data": items}), content_type="application/json")

    server.expect_request(path).respond_with_handler(answer)
    return server.url_for("").rstrip("/")


def env(folder: Path) -> list[str]:
    """The lines that were added to `.env`; what was there has to be there still."""
    text = (folder / ".env").read_text()
    before = "# ours\nISABELLA_PORT=0  # any\n"
    assert text.startswith(before)
    return text.removeprefix(before).splitlines()


def test_all_are_listed_and_which_are_set_up(folder: Path) -> None:
    """The catalog's date, each vendor once, and the key masked."""
    (folder / ".env").write_text(f"OPENROUTER_API_KEY={KEY}\nOLLAMA_BASE_URL=http://10.0.0.2:11434\n")
    document = json.loads(run("--json").stdout)
    rows = {row["name"]: row for row in document["vendors"]}
    assert {name for name, row in rows.items() if row["set_up"]} == {"openrouter", "ollama"}
    assert rows["ollama"]["base_url"] == "http://10.0.0.2:11434/v1"
    assert (rows["ollama"]["key"], rows["openrouter"]["key"]) == ("none needed", "sk-or-v1-…0001")
    assert KEY not in run().stdout
    assert "http://10.0.0.2:11434/v1" in run().stdout
    assert len(document["catalog"]) == len("2026-11-26")


def test_a_server_without_a_key_is_tried_and_written(folder: Path, httpserver: HTTPServer) -> None:
    """The root of its address is completed; nothing is asked, and the next command is said."""
    root = lists(httpserver, ITEM)
    result = run("add", "llama.cpp", "--base-url", root)
    assert result.exit_code == 0, result.output
    assert env(folder) == [f"LLAMA_CPP_BASE_URL={root}/v1"]
    assert "m.gguf, a window of 8,192 tokens" in result.stdout
    assert "isabella chat" in result.stdout


@pytest.mark.usefixtures("terminal")
def test_what_is_missing_is_asked_for(folder: Path, httpserver: HTTPServer) -> None:
    """Address, then key if the server wants one, then model if there are several; the key is never shown."""
    key = "canary-house-key-0002"
    root = lists(httpserver, {**ITEM, "id": "one"}, {**ITEM, "id": "two"}, key=key)
    result = run("add", "vllm", typed=f"{root}\n{key}\ntwo\n")
    assert result.exit_code == 0, result.output
    assert env(folder) == [f"VLLM_API_KEY={key}", f"VLLM_BASE_URL={root}/v1", "VLLM_MODEL=two"]
    assert key not in result.output
    assert result.output.index("Address of vLLM") < result.output.index("Key of vLLM") < result.output.index("Model")


def test_a_key_comes_from_standard_input(folder: Path, httpserver: HTTPServer) -> None:
    """It is tried where a wrong one would be refused, although anybody may list the models."""
    root = lists(httpserver, {"id": "openai/gpt-oss-120b", "context_length": 131072})
    httpserver.expect_request("/v1/key", headers={"Authorization": f"Bearer {KEY}"}).respond_with_json({"data": {}})
    httpserver.expect_request("/v1/key").respond_with_json({"error": {"message": "No user", "code": 401}}, status=401)
    arguments = ("add", "OpenRouter", "--base-url", f"{root}/v1", "--key-stdin")
    assert "refuses the key" in refused(*arguments, typed="sk-or-v1-wrong-canary-0003\n").what
    assert env(folder) == []
    result = run(*arguments, typed=f"{KEY}\n")
    assert result.exit_code == 0, result.output
    assert env(folder) == [f"OPENROUTER_API_KEY={KEY}", f"OPENROUTER_BASE_URL={root}/v1"]
    assert KEY not in result.output
    assert "chmod 600" in result.output


def test_a_vendor_whose_list_fails_can_be_written_all_the_same(folder: Path, httpserver: HTTPServer) -> None:
    """Fireworks lists nothing for an account without deployments, and answers it."""
    httpserver.expect_request("/v1/models").respond_with_data("Error listing deployed models", status=500)
    arguments = ("add", "fireworks", "--base-url", httpserver.url_for("/v1"), "--key-stdin")
    error = refused(*arguments, typed=f"{KEY}\n")
    assert str(error.remedy).endswith("isabella vendors add fireworks --no-check")
    assert env(folder) == []
    assert run(*arguments, "--no-check", typed=f"{KEY}\n").exit_code == 0
    assert f"FIREWORKS_API_KEY={KEY}" in env(folder)


def test_the_key_of_the_environment_is_not_written(
    folder: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays where it is; only what is not set anywhere is added."""
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    root = lists(httpserver, {"id": "a/b"}, key=KEY)
    # A proxy of one's own has no such route: its list is enough.
    httpserver.expect_request("/v1/key").respond_with_data("", status=404)
    assert run("add", "openrouter", "--base-url", f"{root}/v1", "--model", "a/b").exit_code == 0
    assert env(folder) == [f"OPENROUTER_BASE_URL={root}/v1", "OPENROUTER_MODEL=a/b"]


def test_a_given_key_is_written_although_a_file_has_another_one(folder: Path, httpserver: HTTPServer) -> None:
    """What was tried is what is used from now on; without one, the file's key is tried, and stays in the file."""
    root = lists(httpserver, ITEM, key=KEY)
    lists(httpserver, key=KEY, path="/v1/key")
    file = folder / "key"
    file.write_text(f"{KEY}-of-yesterday")
    with (folder / ".env").open("a") as env_file:
        env_file.write(f"OPENROUTER_API_KEY_FILE={file}\n")
    arguments = ("add", "openrouter", "--base-url", f"{root}/v1")
    assert run(*arguments, "--key-stdin", typed=f"{KEY}\n").exit_code == 0
    assert f"OPENROUTER_API_KEY={KEY}" in env(folder)
    (folder / ".env").write_text(f"# ours\nISABELLA_PORT=0  # any\nOPENROUTER_API_KEY_FILE={file}\n")
    file.write_text(KEY)
    assert run(*arguments).exit_code == 0
    assert KEY not in (folder / ".env").read_text()


def test_what_does_not_work_is_told_and_nothing_is_written(folder: Path, httpserver: HTTPServer) -> None:
    """Each failure with the next step."""
    root = lists(httpserver, ITEM, key="canary-other-key-0004")
    httpserver.expect_request("/page/v1/models").respond_with_data("<html>", content_type="text/html")
    for arguments, typed, what, remedy in (
        (("add", "nobody"), "", "There is no vendor 'nobody'", "--base-url"),
        (("add", "openrouter"), "", "needs a key", "--key-stdin"),
        (("add", "openrouter", "--key-stdin"), "changeme\n", "placeholder", "openrouter.ai"),
        (("add", "ollama", "--base-url", "ftp://x"), "", "cannot be used", ""),
        (("add", "ollama", "--base-url", "http://127.0.0.1:9"), "", "does not answer", "http://HOST:PORT/v1"),
        (("add", "ollama", "--base-url", root), "", "refuses the key", "vendors add ollama"),
        (("add", "ollama", "--base-url", f"{root}/page/v1"), "", "not the base URL", "/v1"),
        (("add", "a/b", "--base-url", root), "", "slash", ""),
        (("models", "deepseek"), "", "not set up", "vendors add deepseek"),
        (("remove", "deepseek"), "", "has no variable of DeepSeek", ""),
    ):
        error = refused(*arguments, typed=typed)
        assert what in error.what, (arguments, error.what)
        assert remedy in str(error), (arguments, str(error))
    assert env(folder) == []
    assert not (folder / "isabella.toml").exists()


def test_a_model_has_to_be_on_the_list(folder: Path, httpserver: HTTPServer) -> None:
    """Another one is refused with those that there are; without a check it is taken."""
    root = lists(httpserver, ITEM)
    error = refused("add", "llama.cpp", "--base-url", root, "--model", "gone")
    assert "m.gguf" in str(error)
    assert run("add", "llama.cpp", "--base-url", root, "--model", "gone", "--no-check").exit_code == 0
    assert env(folder) == [f"LLAMA_CPP_BASE_URL={root}/v1", "LLAMA_CPP_MODEL=gone"]


def test_a_default_model_that_is_gone_is_replaced(folder: Path, httpserver: HTTPServer) -> None:
    """By the best that the vendor lists: one that it does not end, and that calls tools."""
    items = [
        {"id": "old", "context_length": 131072, "supported_parameters": ["tools"], "expiration_date": "2027-01-01"},
        {"id": "mute", "context_length": 131072, "supported_parameters": []},
        {"id": "good", "context_length": 65536, "supported_parameters": ["tools"]},
    ]
    root = lists(httpserver, *items)
    httpserver.expect_request("/v1/key").respond_with_json({"data": {}})
    result = run("add", "openrouter", "--base-url", f"{root}/v1", "--key-stdin", typed=f"{KEY}\n")
    assert "no longer has openai/gpt-oss-120b" in result.output
    assert env(folder)[-1] == "OPENROUTER_MODEL=good"
    listed = json.loads(run("models", "openrouter", "--json").stdout)["models"]
    assert [model["id"] for model in listed] == ["good", "mute", "old"]
    assert "2027-01-01" in run("models", "openrouter").stdout


def test_a_wrong_path_is_corrected(folder: Path, httpserver: HTTPServer) -> None:
    """The base URL that answers is written, not the one that was given."""
    root = lists(httpserver, ITEM)
    httpserver.expect_request("/v1/chat/completions/models").respond_with_data("", status=404)
    result = run("add", "llama.cpp", "--base-url", f"{root}/v1/chat/completions")
    assert f"{root}/v1 is" in result.output
    assert env(folder) == [f"LLAMA_CPP_BASE_URL={root}/v1"]


def test_any_other_server_is_declared(folder: Path, httpserver: HTTPServer) -> None:
    """In isabella.toml, with the variable of its key if it has one; what was there stays."""
    (folder / "isabella.toml").write_text("# Ours.\n")
    root = lists(httpserver, ITEM)
    key = "canary-attic-key-0005"
    assert run("add", "attic", "--base-url", f"{root}/v1", "--key-stdin", typed=f"{key}\n").exit_code == 0
    assert env(folder) == [f"ATTIC_API_KEY={key}"]
    text = (folder / "isabella.toml").read_text()
    assert text == (
        f'# Ours.\n\n[[providers]]\nname = "attic"\nbase_url = "{root}/v1"\napi_key_env = "ATTIC_API_KEY"\n'
    )
    assert "Delete its [[providers]] table" in str(refused("remove", "attic"))


def test_a_vendor_is_removed_with_all_its_variables(folder: Path, httpserver: HTTPServer) -> None:
    """Nothing of it is left, and nothing else is gone."""
    root = lists(httpserver, ITEM)
    run("add", "llama.cpp", "--base-url", root, "--model", "m.gguf")
    assert len(env(folder)) == 2
    assert run("remove", "llama.cpp").exit_code == 0
    assert env(folder) == []
