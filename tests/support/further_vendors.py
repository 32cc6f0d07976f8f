"""Practice vendors for all vendors known by name: the usual four, and those of `further_vendors.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from isabella.practice.wire import Profile, profiles, profiles_of


def _read() -> Mapping[str, Profile]:
    data = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    refusals = data.pop("common_refusals")
    for table in data.values():
        table["refusals"] = refusals | table.get("refusals", {})
    return profiles_of(data)


#: The vendors that no user practices with, by name.
FURTHER = _read()
#: All of them. llama.cpp has none: a real one runs in `tests/letta/test_real_model.py`.
PROFILES: Mapping[str, Profile] = {**profiles(), **FURTHER}
