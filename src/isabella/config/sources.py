"""The sources of configuration values: the environment, which wins, and `.env`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dotenv.parser import parse_stream

from isabella.errors import ConfigurationError, FileAbsent
from isabella.system import files
from isabella.system.english import english

ENVIRONMENT = "environment"
DEFAULT = "default"


@dataclass(frozen=True)
class ConfigValue:
    """A raw configuration value; its origin is `environment`, the path of `.env` or a key file, or an entry."""

    text: str = field(repr=False)
    origin: str


@dataclass(frozen=True)
class Sources:
    """One consistent reading of the environment and of `.env`."""

    environment: Mapping[str, str] = field(repr=False)
    file: Path = Path(".env")  #: the path of the `.env` file, which need not exist
    dotenv: Mapping[str, str] = field(default_factory=dict, repr=False)  #: the variables in the `.env` file
    lines: Mapping[str, int] = field(default_factory=dict)  #: the last line of the file on which a variable is set
    #: values that win over both, such as those of the practice vendors
    overlay: Mapping[str, ConfigValue] = field(default_factory=dict, repr=False)
    overlaid_from: Path | None = None  #: the file with the keys of the overlay, if there is one
    overlay_until_key: bool = False  #: whether the overlay ends as soon as the other sources have a usable key

    @classmethod
    def read(cls, env_file: Path | None = None, environment: Mapping[str, str] | None = None) -> Sources:
        """Read the environment and `.env`, or another file, which must then exist; raise `ConfigurationError`."""
        environment = dict(os.environ if environment is None else environment)
        path = Path(".env") if env_file is None else env_file
        try:
            text = files.read(path).text
        except FileAbsent:
            if env_file is not None:
                raise
            return cls(environment, path)
        values: dict[str, str] = {}
        lines: dict[str, int] = {}
        for binding in parse_stream(io.StringIO(text)):
            # The parser counts the blank lines before a binding as part of it.
            original = binding.original.string
            line = binding.original.line + original[: len(original) - len(original.lstrip())].count("\n")
            if binding.error:
                raise ConfigurationError(
                    english("%(path)s, line %(line)s: this is not NAME=value.", path=path, line=str(line)),
                    remedy=english("Check for an unclosed quote or a missing '='; comments begin with '#'."),
                )
            if binding.key is None:
                continue
            if binding.value is None:
                raise ConfigurationError(
                    english(
                        "%(path)s, line %(line)s: %(name)s has no '=' after it.",
                        path=path,
                        line=str(line),
                        name=binding.key,
                    ),
                    remedy=english("Write %(name)s=value, or put '#' before the line.", name=binding.key),
                )
            values[binding.key] = binding.value
            lines[binding.key] = line
        return cls(environment, path, values, lines)

    def without(self, names: Iterable[str]) -> Sources:
        """Return a copy in which these variables are not set."""
        left_out = set(names)
        return replace(
            self,
            environment={name: text for name, text in self.environment.items() if name not in left_out},
            dotenv={name: text for name, text in self.dotenv.items() if name not in left_out},
        )

    def get(self, name: str) -> ConfigValue | None:
        """Return the value of a variable. The environment wins over `.env`, as is usual."""
        if name in self.overlay:
            return self.overlay[name]
        if name in self.environment:
            return ConfigValue(self.environment[name], ENVIRONMENT)
        if name in self.dotenv:
            return ConfigValue(self.dotenv[name], str(self.file))
        return None

    def origin(self, name: str) -> str:
        """Return the origin of a variable's value; `default` if it is not set."""
        value = self.get(name)
        return DEFAULT if value is None else value.origin

    def contradictions(self, names: Iterable[str]) -> list[str]:
        """Return those variables that the environment and `.env` set to different values."""
        return [
            name
            for name in names
            if name in self.environment
            and name in self.dotenv
            and self.environment[name].strip() != self.dotenv[name].strip()
        ]
