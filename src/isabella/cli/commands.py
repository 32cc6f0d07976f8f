"""Shared parts of the commands: groups, options, completion, settings with logs, and errors in JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from isabella.errors import ConfigurationError, IsabellaError
from isabella.system.terminal import LogFormat, guard_output, is_json, set_message_format

if TYPE_CHECKING:
    from isabella.config.settings import Settings
    from isabella.providers.desired import Desired

#: The exit code of a command line that cannot be parsed, as in sysexits.h. Typer's own, 2, means changes pending.
USAGE = 64
ERROR, PENDING, NOT_RUNNING = 1, 2, 3
_TYPER_USAGE = 2

EnvFile = Annotated[
    Path | None, typer.Option("--env-file", help="Read this file instead of .env in the working directory.")
]
Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="FOLDER", help="Isabella's home. Default: ISABELLA_HOME, or user data."),
]


def _completed(names: Callable[[Settings], Iterable[str]]) -> Callable[[typer.Context, str], list[str]]:
    """Return a completion with names that are known without Letta. It completes nothing if they cannot be read."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        from isabella.config.settings import load_settings

        with suppress(IsabellaError):
            settings = load_settings(context.params.get("env_file"))
            return [name for name in names(settings) if name.startswith(incomplete)]
        return []

    return complete


def _provider_names(settings: Settings) -> Iterable[str]:
    from isabella.providers.desired import desired_providers

    # A vendor's name stands for its provider.
    return sorted({name for one in desired_providers(settings) for name in (one.name, one.vendor.name)})


def _agent_names(settings: Settings) -> Iterable[str]:
    from isabella.agents.definitions import load_definitions

    return [definition.name for definition in load_definitions(settings)]


def _handles(settings: Settings) -> Iterable[str]:
    from isabella.providers.desired import desired_providers

    return [f"{one.name}/{model}" for one in desired_providers(settings) if one.key for model in one.vendor.models]


def find_vendor(settings: Settings, name: str) -> Desired:
    """Return a vendor by its name or the name of its provider; raise `ConfigurationError` if there is none."""
    from isabella.providers.desired import desired_providers

    every = desired_providers(settings, every=True)
    wanted = name.lower()
    found = next((one for one in every if wanted in (one.vendor.name.lower(), one.name.lower())), None)
    if found is None:
        known = ", ".join(one.vendor.name for one in every)
        remedy = f"It knows {known}. Any other OpenAI-compatible server needs its address: --base-url URL."
        raise ConfigurationError(f"There is no vendor {name!r}.", remedy=remedy)
    return found


complete_provider, complete_agent, complete_handle = map(_completed, (_provider_names, _agent_names, _handles))

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]

Result = TypeVar("Result")


class _Group(TyperGroup):
    """A group of commands whose output is cleaned, and that exits with `USAGE` on a wrong command line."""

    def main(self, *args: Any, **options: Any) -> Any:
        guard_output()
        return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _usage_code():
            return super().make_context(*args, **options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from isabella.system import audit

        name, command, rest = super().resolve_command(ctx, args)
        audit.set_command(f"{ctx.command_path} {name}")
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        with _usage_code():
            return super().invoke(ctx)


def commands(**options: Any) -> typer.Typer:
    """Return a group of commands with plain help, which loads three times faster than help drawn by rich."""
    return typer.Typer(cls=_Group, rich_markup_mode=None, **options)


@contextmanager
def as_usage() -> Iterator[None]:
    """Turn an error about the value of an option or argument into a usage error."""
    try:
        yield
    except IsabellaError as error:
        raise typer.BadParameter(str(error)) from None


def configured_settings(
    env_file: Path | None, *, served: bool = False, service: bool = False, quiet: bool = False, **overrides: Any
) -> Settings:
    """Load the settings, with `overrides` from options, and configure the logs by them.

    With `served`, practice vendors are included if the running backend uses them. The lines of a `service`, which
    runs until it is interrupted, are for machines unless they go to a terminal. `quiet` logs only warnings.
    """
    from isabella.config.settings import load_settings
    from isabella.system.logging import configure_logs

    auto = LogFormat.JSON if service else LogFormat.TEXT
    # The errors of the settings are printed in the format of the environment.
    configure_logs(_format_in_environment(), auto=auto, quiet=quiet)
    if served:
        from isabella.practice.overlay import load_served_settings

        settings = load_served_settings(env_file, **overrides)
    else:
        settings = load_settings(env_file, **overrides)
    configure_logs(settings.log_format, auto=auto, quiet=quiet)
    return settings


def service_settings(env_file: Path | None) -> tuple[Settings, Callable[[], None]]:
    """Load the settings of a service that answers before its logs are configured; return a function that does that.

    The format of messages is set at once. The logs are left to that function, because their library takes longer to
    import than the HTTP server.
    """
    from isabella.config.settings import load_settings

    def set_up_logs() -> None:
        from isabella.system.logging import configure_logs

        configure_logs(settings.log_format, auto=LogFormat.JSON)

    set_message_format(as_json=is_json(_format_in_environment(), LogFormat.JSON))
    settings = load_settings(env_file)
    set_message_format(as_json=is_json(settings.log_format, LogFormat.JSON))
    return settings, set_up_logs


def _format_in_environment() -> LogFormat:
    value = os.environ.get("ISABELLA_LOG_FORMAT", "").strip()
    return LogFormat(value) if value in tuple(LogFormat) else LogFormat.AUTO


def run(work: Callable[[], Coroutine[Any, Any, Result]], as_json: bool) -> Result:
    """Run a coroutine function and return its result. With --json, an error is also printed as a JSON object."""
    import asyncio

    try:
        return asyncio.run(work())
    except IsabellaError as error:
        if as_json:
            print(json.dumps({"error": {"what": error.what, "remedy": error.remedy}}))
        raise


def print_json(document: Any, *, ensure_ascii: bool = True) -> None:
    """Print a document as indented JSON."""
    print(json.dumps(document, indent=2, ensure_ascii=ensure_ascii))


@contextmanager
def _usage_code() -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        if error.exit_code == _TYPER_USAGE:
            error.exit_code = USAGE
        raise
