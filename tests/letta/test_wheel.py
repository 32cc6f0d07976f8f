"""The wheel works by itself, in an environment that has never seen the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of an environment that holds the wheel and what it needs, nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = find_uv_bin()
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", folder / "venv/bin/python", wheel], check=True)
    return folder / "venv/bin"


def run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of that environment, where nothing of the checkout can be imported."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    return subprocess.run([program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True)


def test_the_installed_command_knows_its_version(installed: Path, tmp_path: Path) -> None:
    """`isabella --version` and `--help` work from the wheel alone."""
    assert run(installed / "isabella", "--version", cwd=tmp_path).stdout.startswith("isabella ")
    assert "providers" in run(installed / "isabella", "--help", cwd=tmp_path).stdout


def test_the_wheel_carries_its_data_and_its_types(installed: Path, tmp_path: Path) -> None:
    """The catalog, the pinned releases, the practice vendors and the mark of typed packages are in the wheel."""
    program = (
        "from importlib.resources import files; from isabella.config.vendors import usual_vendors;"
        "root = files('isabella');"
        "print(len(usual_vendors()), *(root.joinpath(name).is_file() for name in"
        " ('py.typed', 'config/vendors.toml', 'letta/releases.toml', 'practice/vendors.toml',"
        " 'embedded/dependencies/letta-0.16.8.txt')))"
    )
    assert run(installed / "python", "-c", program, cwd=tmp_path).stdout.split() == ["4", *["True"] * 5]


def test_the_console_is_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    """The console's templates, style, script, and what is vendored with its licence, work from the wheel alone."""
    program = (
        "from importlib.resources import files;"
        "from isabella.server.web.rendering import template_environment as environment;"
        "made = environment(); [made.get_template(name) for name in made.list_templates()];"
        "static = files('isabella.server.web') / 'static';"
        "print(len(made.list_templates()) >= 10, *((static / name).is_file() for name in ('console.css', 'icon.svg',"
        " 'console.js', 'chat.js', 'conversations.js', 'attachments.js', 'vendor/htmx-2.0.11.min.js',"
        " 'vendor/htmx-LICENSE')))"
    )
    assert run(installed / "python", "-c", program, cwd=tmp_path).stdout.split() == ["True"] * 9


def test_the_public_names_can_all_be_imported(installed: Path, tmp_path: Path) -> None:
    """What `isabella.__all__` promises is there without the development dependencies."""
    program = "import isabella; print(all(getattr(isabella, name) for name in isabella.__all__))"
    assert run(installed / "python", "-c", program, cwd=tmp_path).stdout.strip() == "True"
