"""The example file shows every setting there is."""

from __future__ import annotations

import re
from pathlib import Path

from isabella.config.settings import Settings, load_settings, secret_files, variable
from isabella.config.vendors import known_vendors, usual_vendors

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def test_every_setting_stands_in_the_example() -> None:
    """Whatever can be set is found in .env.example, and nothing else is."""
    shown = set(re.findall(r"^#([A-Z_]+)=", EXAMPLE.read_text(), re.MULTILINE))
    settings = {variable(name) for name in Settings.model_fields if name != "sources"}
    vendors = {name for vendor in usual_vendors() for name in vendor.variables}
    # Of the others, the variable that sets them up.
    vendors |= {
        str(vendor.base_url_env) if vendor.key_optional else vendor.api_key_env
        for vendor in known_vendors()
        if vendor.on_demand
    }
    assert shown == settings | set(secret_files()) | vendors


def test_the_example_changes_nothing_until_it_is_edited(tmp_path: Path) -> None:
    """A copy of the example as it is sets nothing at all."""
    copy = tmp_path / ".env"
    copy.write_text(EXAMPLE.read_text())
    assert load_settings(copy, environment={}).sources.dotenv == {}
