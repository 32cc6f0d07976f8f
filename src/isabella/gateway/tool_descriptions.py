"""Letta's own tools in fewer words: every request carries the descriptions of all tools of an agent."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any


def with_short_descriptions(tools: object) -> object:
    """Return the tools of a chat request with shorter descriptions of those that are Letta's own; see `tools.toml`.

    Names, types and required parameters stay. Whatever else a request has in place of tools is returned as it is.
    """
    return [_shortened(tool) for tool in tools] if isinstance(tools, list) else tools


def _shortened(tool: Any) -> Any:
    match tool:
        case {"function": {"name": str(name), "description": str(text), "parameters": {"properties": dict(known)}}}:
            short = _descriptions().get(name)
        case _:
            return tool
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if short is None or not digest.startswith(short["replaces"]) or known.keys() != short["parameters"].keys():
        return tool
    properties = {name: {**known[name], "description": short["parameters"][name]} for name in known}
    parameters = {**tool["function"]["parameters"], "properties": properties}
    return {**tool, "function": {**tool["function"], "description": short["description"], "parameters": parameters}}


@cache
def _descriptions() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(resources.files("isabella.gateway").joinpath("tools.toml").read_text("utf-8"))
