"""What public packages say of the catalog's models, for `make catalog`: `python -m compat.catalog [FOLDER]`.

With a folder, the packages are there already.

The SDKs of OpenAI, Groq and xAI name models in their types, and litellm has a table with windows and ends of life.
They are installed into a folder of their own, without their dependencies, and only read: nothing of them runs. While
Isabella runs, a vendor's own list wins; the catalog is for what it leaves out, and for a start without a network.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isabella.config.vendors import Vendor, catalog_date, known_vendors

_TABLE = Path("litellm/model_prices_and_context_window_backup.json")


@dataclass(frozen=True)
class Source:
    """Where a vendor's models are named: in a file of a package, and with this prefix in litellm's table."""

    package: str | None
    file: str | None
    prefix: str


SOURCES: Mapping[str, Source] = {
    "cerebras": Source(None, None, "cerebras/"),
    "groq": Source("groq", "groq/types/chat/completion_create_params.py", "groq/"),
    "mistral": Source(None, None, "mistral/"),
    "openai": Source("openai", "openai/types/shared/chat_model.py", ""),
    "openrouter": Source(None, None, "openrouter/"),
    "deepseek": Source(None, None, "deepseek/"),
    "together": Source(None, None, "together_ai/"),
    "fireworks": Source(None, None, "fireworks_ai/"),
    "xai": Source("xai-sdk", "xai_sdk/types/model.py", "xai/"),
    "gemini": Source(None, None, "gemini/"),
}


def literals(source: str) -> frozenset[str]:
    """Return all texts in the `Literal[…]` types of a Python source."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            found |= {
                one.value
                for one in ast.walk(node.slice)
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
    return frozenset(found)


def differences(vendor: Vendor, source: Source, named: frozenset[str], table: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the SDK's types and the table say otherwise of a vendor's models in the catalog, a line each."""
    for model, window in vendor.models.items():
        entry = table.get(f"{source.prefix}{model}")
        if named and model not in named:
            yield f"{model}: {source.package} does not name it"
        if entry is None:
            yield f"{model}: litellm does not know it"
            continue
        known = entry.get("max_input_tokens")
        if isinstance(known, int) and known != window:
            yield f"{model}: a window of {window:,} here, {known:,} in litellm"
        end = entry.get("deprecation_date")
        if isinstance(end, str):
            yield f"{model}: ends on {end}, says litellm"
    if vendor.default_model is not None and vendor.default_model not in vendor.models:
        yield f"{vendor.default_model}: the default model has no window here"


def install(folder: Path) -> None:
    """Install the packages into a folder, without their dependencies."""
    packages = sorted({"litellm", *(one.package for one in SOURCES.values() if one.package)})
    command = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    subprocess.run([sys.executable, "-m", *command], check=True)


def report(folder: Path, today: date) -> Iterator[str]:
    """Yield the lines for people: the date of the catalog, and what each vendor's sources say otherwise."""
    checked = catalog_date()
    yield f"The catalog was compared on {checked.isoformat()}, {(today - checked).days} days ago."
    table: dict[str, Any] = json.loads((folder / _TABLE).read_text("utf-8"))
    for vendor in known_vendors():
        source = SOURCES.get(vendor.name)
        if source is None:
            continue
        named = literals((folder / source.file).read_text("utf-8")) if source.file else frozenset[str]()
        lines = list(differences(vendor, source, named, table))
        yield f"{vendor.title}: {'they say the same' if not lines else f'see {vendor.models_page}'}"
        yield from (f"  {line}" for line in lines)
    unseen = [vendor.title for vendor in known_vendors() if vendor.name not in SOURCES]
    yield f"Named nowhere: {', '.join(unseen)}."


def main() -> None:
    """Print the report."""
    with TemporaryDirectory() as made:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else made)
        if len(sys.argv) == 1:
            install(folder)
        print("\n".join(report(folder, datetime.now(UTC).date())))


if __name__ == "__main__":
    main()
