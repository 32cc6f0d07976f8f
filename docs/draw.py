"""Draws the pictures of the documentation from what the commands really print: `python docs/draw.py`."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import pages
from rich.console import Console
from rich.text import Text

from isabella.server.running_backend import published_address

IMAGES = Path(__file__).parent / "images"
WIDTH = 116
_TOKEN = "for-the-pictures-only"  # noqa: S105 - of a backend that lives for half a minute


def capture(command: list[str], *, until: str | None = None) -> str:
    """What a command prints, colours included; it is interrupted once it has printed `until`."""
    environment = os.environ | {
        "FORCE_COLOR": "1",
        "ISABELLA_LOG_FORMAT": "text",
        "COLUMNS": str(WIDTH),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    lines: list[str] = []
    for line in process.stdout or ():
        lines.append(line)
        if until is not None and until in line:
            process.send_signal(signal.SIGINT)
            break
    process.communicate()
    return "".join(lines)


def draw(name: str, title: str, text: str) -> None:
    """Write a terminal's content as an SVG picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text.rstrip()))
    IMAGES.mkdir(exist_ok=True)
    console.save_svg(str(IMAGES / f"{name}.svg"), title=title)


def show_console(isabella: str, home: Path) -> None:
    """Take the pictures of the console, of a backend with nothing in it but a short conversation."""
    environment = os.environ | {"ISABELLA_PORT": "0", "ISABELLA_TOKEN": _TOKEN, "ISABELLA_HOME": str(home)}
    process = subprocess.Popen(
        [isabella, "up"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while (address := published_address(home)) is None:
            if process.poll() is not None:
                raise SystemExit("The backend did not come up: `isabella up` says why.")
            time.sleep(0.2)
        # It answers before agents can be used.
        while httpx2.get(f"{address}/ready", trust_env=False).status_code != 200:
            time.sleep(0.2)
        pages.tell(address, _TOKEN)
        for picture in pages.take(address, _TOKEN, IMAGES):
            print(f"docs/images/{picture.name}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def main() -> None:
    """Draw all pictures, or those that are named."""
    isabella = str(Path(sys.executable).with_name("isabella"))
    wanted = set(sys.argv[1:])
    with tempfile.TemporaryDirectory() as nowhere:
        # No .env of the operator, so that the pictures show practice vendors.
        os.chdir(nowhere)
        os.environ.setdefault("ISABELLA_PORT", "8000")
        if not wanted or "run" in wanted:
            draw("run", "make run", capture([isabella, "up", "--verify"], until="Ready: "))
        if not wanted or "demo" in wanted:
            draw("demo", "make demo", capture([isabella, "demo"]))
        if not wanted or "console" in wanted:
            show_console(isabella, Path(nowhere) / "home")


if __name__ == "__main__":
    main()
