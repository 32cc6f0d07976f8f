"""The patched lock of Letta: `python -m compat.letta_lock`.

The lock, `letta-RELEASE.txt`, is resolved from the lock of the release and `letta-RELEASE.toml` beside it. A package
that the file does not mention keeps the version of the release's own lock. The tables of `docs/security.md` are
written from the same file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import uv

from compat import ROOT
from isabella.embedded import sdist
from isabella.embedded.instance import DEFAULT_RELEASE
from isabella.embedded.progress import no_progress

FOLDER = ROOT / "src" / "isabella" / "embedded" / "dependencies"
SOURCE = FOLDER / f"letta-{DEFAULT_RELEASE}.toml"
LOCK = FOLDER / f"letta-{DEFAULT_RELEASE}.txt"
DOCS = ROOT / "docs" / "security.md"
_BEGIN, _END = "<!-- {}: written by python -m compat.letta_lock -->\n", "<!-- end of {} -->\n"
#: `onnxruntime`, which Letta needs, has no wheels for others.
_ENVIRONMENTS = [
    "sys_platform == 'linux' and platform_machine == 'x86_64'",
    "sys_platform == 'linux' and platform_machine == 'aarch64'",
    "sys_platform == 'darwin'",
]
_HEADER = (
    f"# The dependencies of Letta {DEFAULT_RELEASE}, without known holes. Written by python -m compat.letta_lock.\n"
)


def source() -> dict[str, Any]:
    """Return the content of the TOML file."""
    return tomllib.loads(SOURCE.read_text())


def changed() -> dict[str, str]:
    """Return the version of each package that has another one than in the release's own lock, by name."""
    content = source()
    return {entry["package"]: entry["to"] for entry in (*content["override"], *content["follow"])}


def locked(text: str) -> dict[str, str]:
    """Return the versions in a requirements file with hashes, by package."""
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", text, re.MULTILINE))


def write_lock() -> None:
    """Resolve the lock again."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = sdist.unpack(sdist.fetch(DEFAULT_RELEASE, Path(scratch), no_progress), Path(scratch), DEFAULT_RELEASE)
        (tree / "pyproject.toml").write_text(
            _project(tomllib.loads((tree / "pyproject.toml").read_text())["project"])
        )
        # The release's own lock is there: uv keeps its versions wherever that is possible.
        _uv("lock", "--exclude-newer", str(source()["until"]), cwd=tree)
        exported = _uv("export", "--frozen", "--no-header", "--no-annotate", "--no-emit-project", cwd=tree)
    LOCK.write_text(_HEADER + exported)


def _project(project: dict[str, Any]) -> str:
    """Return a `pyproject.toml` with Letta's requirements, but the versions and without the packages of the file."""
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["postgres"], *extras["server"], *source()["parts"]]
    versions = changed()
    # `mcp` asks for pywin32 on Windows; uv would write it without a hash.
    left_out = [*(entry["package"] for entry in source()["left_out"]), "pywin32"]
    return f"""
[project]
name = "letta"
version = "{project["version"]}"
requires-python = "{project["requires-python"]}"
dependencies = {json.dumps([_pinned(requirement, versions) for requirement in required])}
[tool.uv]
package = false
environments = {json.dumps(_ENVIRONMENTS)}
constraint-dependencies = {json.dumps([f"{name}=={version}" for name, version in versions.items()])}
exclude-dependencies = {json.dumps(left_out)}
"""


def _pinned(requirement: str, versions: dict[str, str]) -> str:
    """Return one of Letta's requirements; its version is that of the file if the file has one."""
    found = re.match(r"([A-Za-z0-9._-]+)(\[.*?\])?", requirement)
    if found is None or found[1] not in versions:
        return requirement
    return f"{found[0]}=={versions[found[1]]}"


def _uv(*arguments: str, cwd: Path) -> str:
    command = [uv.find_uv_bin(), *arguments, "--quiet", "--python", sys.executable]
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout


def tables() -> dict[str, str]:
    """Return the tables of the documentation, by name."""
    content = source()
    return {
        "overrides": _table(
            ("package", "from", "to", "advisories", "public by"),
            [
                (entry["package"], entry["from"], entry["to"], ", ".join(entry["advisories"]), str(entry["date"]))
                for entry in content["override"]
            ],
        ),
        "followers": _table(
            ("package", "from", "to", "because"),
            [(entry["package"], entry["from"], entry["to"], entry["because"]) for entry in content["follow"]],
        ),
        "left out": _table(
            ("package", "why Letta does without it here"),
            [(entry["package"], entry["because"]) for entry in content["left_out"]],
        ),
    }


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_tables(text: str) -> str:
    """Return the text of the documentation with the tables of now."""
    for name, table in tables().items():
        begin, end = _BEGIN.format(name), _END.format(name)
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found and found_end):
            raise ValueError(f"{DOCS} has no place for the table {name!r}")
        text = before + begin + table + end + after
    return text


def main() -> None:
    """Write the lock and the tables."""
    write_lock()
    DOCS.write_text(with_tables(DOCS.read_text()))
    print(f"{LOCK.relative_to(ROOT)} has {len(locked(LOCK.read_text()))} packages.")


if __name__ == "__main__":
    main()
