"""No printed text can drive a terminal, whoever wrote it, and nothing is printed past the place that sees to that."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import pty
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

import isabella
from isabella.chat.client import TurnEvent
from isabella.chat.session import Screen
from isabella.cli import app, main
from isabella.cli.commands import commands
from isabella.errors import IsabellaError
from isabella.system.logging import configure_logs
from isabella.system.terminal import clean, console, guard_output

SOURCE = Path(isabella.__file__).parent

#: What a terminal obeys, or what makes a person read another text than there is.
EVIL = {
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "screen": "\x1b[2J\x1b[8m",
    "C1 CSI": "\x9b31m",
    "C1 OSC": "\x9d0;title\x9c",
    "carriage return": "all is well\rEVIL",
    "backspace": "x\b\b\bEVIL",
    "delete": "a\x7fb",
    "NUL and form feed": "\x00\x0b\x0c",
    "override": "\u202eevil\u202c",
    "isolate": "\u2066evil\u2069",
    "half a character": "\ud83d",
}
ALL = " ".join(EVIL.values())


def harmful(text: str) -> list[str]:
    """The characters that must not reach a terminal."""
    bidi = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
    return [c for c in text if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or ord(c) in bidi]


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL.keys())
def test_clean(evil: str) -> None:
    """Each character is shown as its escape, one by one, so that it does not matter where a sequence is cut."""
    assert harmful(evil)
    assert harmful(clean(evil)) == []
    assert clean(evil) == "".join(clean(piece) for piece in evil)
    assert json.loads(f'"{clean(evil)}"') == evil.replace("\r\n", "\n")


def test_what_is_harmless_stays() -> None:
    """Newlines, tabs, accents, scripts from right to left and signs are as they were; a line may end in CR LF."""
    text = "a\tb\nÄpfel שלום سلام 🐈 → ✓"
    assert clean(text) == text
    assert clean("one\r\ntwo\r\n") == "one\ntwo\n"


def _print(text: str) -> None:
    print(text)


def _standard_error(text: str) -> None:
    print(text, file=sys.stderr)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.writelines([text, text])


def _echo(text: str) -> None:
    typer.echo(text)


def _console(text: str) -> None:
    console().print(Text(text, style="bold"), text)
    console(stderr=True).print(text)


def _table(text: str) -> None:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console().print(table)


def _usage(text: str) -> None:
    raise typer.BadParameter(text)


def _abort(text: str) -> None:
    raise IsabellaError(text, remedy=text)


WAYS = (_print, _standard_error, _write, _echo, _console, _table, _usage)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL.keys())
def test_a_new_command_is_safe_without_doing_anything_for_it(way: Callable[[str], None], evil: str) -> None:
    """Whichever way a command prints a text."""
    group = commands()
    group.command("one")(lambda: way(f"<{evil}>"))
    group.command("two")(lambda: None)
    result = CliRunner().invoke(group, ["one"])
    assert "<" in result.output
    assert harmful(result.output) == []


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL.keys())
def test_what_a_command_fails_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], evil: str
) -> None:
    """An error and its remedy, which quote Letta and vendors."""
    monkeypatch.setattr("isabella.cli.for_command_line", lambda _arguments: lambda **_options: _abort(evil))
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr()
    assert "isabella: " in printed.err
    assert harmful(printed.out + printed.err) == []


def test_a_traceback_is_clean() -> None:
    """What nobody foresaw is printed by Python itself, when the program is left."""
    program = (
        "import isabella.cli as cli\n"
        "def broken(**options): raise ValueError('\\x1b]52;c;eA==\\x07\\x9b2J\\u202e')\n"
        "cli.for_command_line = lambda arguments: broken\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ValueError: \\u001b]52" in done.stderr
    assert harmful(done.stderr) == []


def test_help_and_unknown_commands_are_clean() -> None:
    """Typer repeats what was typed, which may have been pasted."""
    for arguments in (["--help"], [ALL.replace("\x00", "")], ["agents", "show", "--\x1b[2J"]):
        assert harmful(CliRunner().invoke(app, arguments).output) == []


def test_colours_of_ours_stay_and_those_of_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A style is ours; a sequence in a text is shown; markup in a text is no markup, and makes no link."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    guard_output()
    out = console(force_terminal=True, color_system="standard")
    out.print(Text("mine\x1b[31mtheirs", style="bold red"))
    out.print("[link=http://evil]x[/link] [red]y[/red] :smile:")
    assert stream.getvalue() == (
        "\x1b[1;31mmine\\u001b[31mtheirs\x1b[0m\n[link=http://evil]x[/link] [red]y[/red] :smile:\n"
    )


EVENTS: dict[str, Any] = {
    "text": {"text": ALL},
    "reasoning": {"text": ALL},
    "held": {"reason": ALL, "provider": ALL},
    "failover": {"handle": ALL, "message": ALL},
    "tool_call": {"name": ALL, "arguments": ALL},
    "tool_result": {"ok": False, "text": ALL},
    "error": {"message": ALL, "remedy": ALL},
    "end": {"reason": "completed", "handle": ALL, "seconds": 1.0},
}


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("terminal", [True, False])
def test_a_chat_shows_each_event_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, terminal: bool
) -> None:
    """On a terminal only the sequences of our own styles are there, which are SGR; through a pipe none."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    Screen().show([TurnEvent(kind, EVENTS[kind])])
    printed = "".join(capsys.readouterr())
    for own in ("\x1b[2m", "\x1b[31m", "\x1b[0m"):
        printed = printed.replace(own, "")
    assert harmful(printed) == []


def test_an_answer_whose_sequence_comes_in_pieces_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever a vendor cuts it, down to single characters."""
    Screen().show([TurnEvent("text", {"text": character}) for character in ALL])
    printed = capsys.readouterr().out
    assert harmful(printed) == []
    assert "\\u001b]52;c;ZXZpbA==" in printed


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL.keys())
def test_a_log_line_is_clean(monkeypatch: pytest.MonkeyPatch, evil: str) -> None:
    """Through a pipe it is one JSON object with the same text."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    guard_output()
    configure_logs()
    structlog.get_logger().warning(evil, said=evil, deep={"a": [evil]})
    logging.getLogger("library").warning("%s", evil)
    lines = stream.getvalue().splitlines()
    assert harmful(stream.getvalue()) == []
    assert json.loads(lines[0])["event"] == json.loads(lines[1])["event"] == evil


def test_a_log_line_on_a_terminal_is_clean_and_coloured(tmp_path: Path) -> None:
    """Events, values, tracebacks and the lines of libraries are clean; the colours of the renderer are there."""
    program = tmp_path / "program.py"
    program.write_text(
        "import logging, structlog\nfrom isabella.system.logging import configure_logs\n"
        "from isabella.system.terminal import guard_output\nguard_output()\nconfigure_logs()\n"
        f"evil = {ALL!r}\n"
        "log = structlog.get_logger()\nlog.warning(evil, said=evil, deep={'a': [evil]})\n"
        "logging.getLogger('library').warning('%s', evil)\n"
        "try:\n    raise ValueError(evil)\nexcept ValueError:\n    log.exception('broken')\n"
        "    logging.getLogger('library').exception('broken too')\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(program)], stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0
    assert "\x1b[" in text
    assert text.count("ValueError") >= 2
    # The terminal's driver writes CR LF for every newline.
    left = harmful(text.replace("\r\n", "\n").replace("\x1b[", "["))
    assert left == []
    for evil in ("\x1b[2J", "\x1b[8m"):
        assert evil not in text


#: The only places that may print past the guard, and why they may.
_CLEANERS = {"system/terminal.py", "system/logging.py"}
#: One runs in the process of Letta, whose log `isabella letta logs` reads; the other writes to its own file.
_ELSEWHERE = {"embedded/launch.py", "system/audit.py"}


def _breaches(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="rich.console", names=names) if any(one.name == "Console" for one in names):
                found.append("rich.console.Console")
            case ast.ImportFrom(module="rich", names=names) if any(one.name == "print" for one in names):
                found.append("rich.print")
            case ast.ImportFrom(module="isabella.system.terminal", names=names):
                found += [one.name for one in names if one.name == "unguarded"]
            case ast.Attribute(attr="__stdout__" | "__stderr__" as name):
                found.append(name)
            case ast.Attribute(
                value=ast.Attribute(attr="stdout" | "stderr"), attr="buffer" | "detach" | "fileno" as name
            ):
                found.append(name)
            case ast.Attribute(value=ast.Name(id="typer"), attr="Typer"):
                # As an annotation it makes nothing.
                found += ["typer.Typer"] if _called(tree, node) else []
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="write" | "system" | "popen" as name)):
                found.append(f"os.{name}")
            case ast.Call(func=ast.Attribute(attr="StreamHandler")):
                found.append("StreamHandler")
            case ast.Call(
                func=ast.Attribute(attr="status" | "pager" | "capture" as name, value=ast.Name(id="console"))
            ):
                found.append(f"console.{name}")
            case ast.Constant(value="/dev/tty" | "/dev/stdout" | "/dev/stderr" as name):
                found.append(name)
    return found


def _called(tree: ast.Module, attribute: ast.Attribute) -> bool:
    return any(isinstance(node, ast.Call) and node.func is attribute for node in ast.walk(tree))


def test_nothing_prints_past_the_guard() -> None:
    """A console of another kind, a group of commands without a guard, or a raw descriptor would get around it."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = str(path.relative_to(SOURCE))
        breaches = _breaches(ast.parse(path.read_text()))
        if name == "cli/commands.py":
            breaches.remove("typer.Typer")
        if breaches and name not in _CLEANERS | _ELSEWHERE:
            found[name] = breaches
    assert found == {}


@pytest.mark.parametrize("line", [
    "from rich.console import Console",
    "from rich import print",
    "from isabella.system.terminal import unguarded",
    "sys.__stdout__.write(x)",
    "sys.stdout.buffer.write(x)",
    "app = typer.Typer(help='x')",
    "os.write(1, x)",
    "open('/dev/tty', 'w')",
])  # fmt: skip
def test_the_walk_finds_a_breach(line: str) -> None:
    """Each way around the guard, in a module of its own."""
    assert _breaches(ast.parse(line))
