"""More OpenAI-compatible vendors, declared in `isabella.toml`. The file never holds a key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from isabella.config.quirks import Quirks
from isabella.config.settings import http_address, what_is_wrong
from isabella.config.vendors import Vendor, known_vendors, usual_vendors
from isabella.errors import ConfigurationError, FileAbsent
from isabella.system import files
from isabella.system.english import english, joined
from isabella.system.redaction import KNOWN_PREFIXES

_CORRECT = english("Correct it there; docs/vendors.md describes the file.")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


class _Declaration(BaseModel):
    """One `[[providers]]` table of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: str
    base_url: str
    #: None for a server that needs no key
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    type: Annotated[str, Field(min_length=1)] = "openai"
    title: str | None = None
    key_prefix: str | None = None
    default_model: str | None = None
    default_window: Annotated[int, Field(gt=0)] = 32_768
    models: list[str] | dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=list)
    quirks: Annotated[Quirks, Field(strict=False)] = Field(default_factory=Quirks)

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return http_address(value)

    @field_validator("api_key_env")
    @classmethod
    def _is_no_key(cls, value: str | None) -> str | None:
        # Some keys have the form of a variable name, and variable names are shown.
        if value is not None and value.startswith(KNOWN_PREFIXES):
            raise ValueError(english("it must name the variable that holds the key; this file must not hold a key"))
        return value

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if "/" in value:
            raise ValueError(english("a name must not have a slash: model handles are NAME/MODEL (fact P10)"))
        if not re.fullmatch(_NAME, value):
            raise ValueError(
                english("a name begins with a letter or digit and holds letters, digits, '.', '_' and '-'")
            )
        return value


def all_vendors(path: Path) -> tuple[Vendor, ...]:
    """Return the vendors of the catalog and those that the file declares.

    A table with the name or the key variable of a vendor that is there on demand takes its place. A malformed file
    raises `ConfigurationError`.
    """
    declared = declared_vendors(path)
    names = {vendor.provider for vendor in declared} | {vendor.api_key_env for vendor in declared}
    known = (
        vendor
        for vendor in known_vendors()
        if not (vendor.on_demand and names.intersection((vendor.provider, vendor.api_key_env)))
    )
    return (*known, *declared)


def declared_vendors(path: Path) -> tuple[Vendor, ...]:
    """Return the vendors that the file declares, if it exists; a malformed one raises `ConfigurationError`."""
    try:
        text = files.read(path).text
    except FileAbsent:
        return ()
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what = str(error).replace("at end of document", f"at line {len(text.splitlines()) or 1}, the last one")
        raise ConfigurationError(
            english("%(path)s: not valid TOML: %(what)s.", path=path, what=what), remedy=_CORRECT
        ) from None
    entries = document.pop("providers", [])
    if document:
        unknown = next(iter(document))
        remedy = english("The file holds [[providers]] tables only.")
        raise _malformed(path, _line_of(text, unknown), english("unknown entry %(name)s", name=repr(unknown)), remedy)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        remedy = english("Begin each with [[providers]].")
        raise _malformed(path, _line_of(text, "providers"), english("providers must be tables"), remedy)
    taken = {vendor.provider: english("the catalog") for vendor in usual_vendors()}
    vendors = []
    header = re.compile(r"\s*\[\[\s*providers\s*\]\]")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if header.match(line)]
    for index, entry in enumerate(entries):
        line = lines[index] if index < len(lines) else _line_of(text, "providers")
        vendor = _vendor(path, line, entry)
        if vendor.provider in taken:
            what = english(
                "the name %(name)s is taken by %(whom)s", name=repr(vendor.provider), whom=taken[vendor.provider]
            )
            raise _malformed(path, line, what, english("Give the provider another name."))
        taken[vendor.provider] = english("the table in line %(line)s", line=str(line))
        vendors.append(vendor)
    return tuple(vendors)


def _vendor(path: Path, line: int, entry: dict[str, Any]) -> Vendor:
    if "api_key" in entry or "key" in entry:
        remedy = english("Put it into .env, and name its variable here: api_key_env = 'NAME_API_KEY'.")
        raise _malformed(path, line, english("this file must not hold a key"), remedy)
    try:
        return _of(_Declaration.model_validate(entry))
    except ValidationError as error:
        raise ConfigurationError(
            english(
                "%(path)s, [[providers]] in line %(line)s: %(what)s.",
                path=path,
                line=str(line),
                what=_problem(error),
            ),
            remedy=_CORRECT,
        ) from None


def custom_vendor(path: Path, *, name: str, base_url: str) -> Vendor:
    """Return the vendor that a new table of the file would declare, with a key or without one.

    Raises `ConfigurationError` if it cannot have this name or this base URL.
    """
    try:
        return _of(_Declaration(name=name, base_url=base_url))
    except ValidationError as error:
        remedy = "Give another name or base URL."
        raise ConfigurationError(f"{path} cannot declare {name!r}: {_problem(error)}.", remedy=remedy) from None


def _problem(error: ValidationError) -> str:
    """Return the first problem: where it is, and what."""
    problem = error.errors(include_input=False, include_url=False)[0]
    depth = 2 if problem["loc"][0] == "quirks" else 1
    where = ".".join(str(part) for part in problem["loc"][:depth])
    return joined([where, what_is_wrong(problem)], ": ")


def _of(declared: _Declaration) -> Vendor:
    models = declared.models
    windows = dict.fromkeys(models, declared.default_window) if isinstance(models, list) else models
    return Vendor(
        provider=declared.name,
        **declared.model_dump(exclude={"title", "default_model", "models", "quirks", "api_key_env"}),
        api_key_env=declared.api_key_env or f"{re.sub(r'[^A-Za-z0-9]', '_', declared.name).upper()}_API_KEY",
        key_optional=declared.api_key_env is None,
        title=declared.title or declared.name,
        default_model=declared.default_model or next(iter(windows), None),
        models=windows,
        quirks=declared.quirks,
    )


def _malformed(path: Path, line: int, what: str, remedy: str) -> ConfigurationError:
    what = english("%(path)s, line %(line)s: %(what)s.", path=path, line=str(line), what=what)
    return ConfigurationError(what, remedy=remedy)


def _line_of(text: str, name: str) -> int:
    pattern = re.compile(rf"^\s*\[*\s*[\"']?{re.escape(name)}\b")
    return next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)
