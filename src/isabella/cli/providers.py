"""`isabella providers`: plan, sync, status, verify."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isabella.cli.commands import commands
from isabella.cli.options import AsJson, EnvFile, Only
from isabella.config.strategy import Strategy
from isabella.errors import IsabellaError

if TYPE_CHECKING:
    from isabella.providers.report import Report

app = commands(
    no_args_is_help=True,
    help="Bring the providers in Letta in line with the configuration, and prove it.",
)

StrategyOption = Annotated[
    Strategy | None,
    typer.Option(
        "--strategy",
        help="auto: without a gap wherever that is possible; recreate: DELETE and POST every provider; "
        "in-place: never DELETE. Default: ISABELLA_STRATEGY, or auto.",
    ),
]
NoProbe = Annotated[
    bool, typer.Option("--no-probe", help="Do not ask the vendor about a key that Letta does not hold yet.")
]

ERROR, PENDING = 1, 2


@app.command("plan")
def plan_command(
    only: Only = None,
    strategy: StrategyOption = None,
    no_probe: NoProbe = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what sync would do. Changes nothing.

    A vendor is asked about a key that Letta does not hold yet, as sync would.

    Exit code: 0 nothing to do, 2 changes pending, 1 error.
    """
    from isabella.api import compare_providers
    from isabella.practice.overlay import load_served_settings

    report = _run(
        lambda: compare_providers(
            load_served_settings(env_file),
            only=only or (),
            strategy=strategy,
            probe=not no_probe,
            count_models=True,
        ),
        as_json,
    )
    _show(report, as_json)
    raise typer.Exit(PENDING if report.pending else 0)


@app.command()
def status(only: Only = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show what Letta holds, compared with the configuration, and what the vendors did when they were asked last.

    Changes nothing, and asks no vendor: a running backend tells what it has seen of them.
    Exit code: 0 all in sync, 2 drift, 1 error. What vendors do does not count for it.
    """
    from isabella.api import compare_providers
    from isabella.cli.vendor_status import vendors_seen
    from isabella.practice.overlay import load_served_settings
    from isabella.providers.headline import with_vendors

    async def look() -> Report:
        settings = load_served_settings(env_file)
        report = await compare_providers(settings, only=only or (), count_models=True)
        return with_vendors(report, vendors_seen(settings, report.base_url).get)

    report = _run(look, as_json)
    _show(report, as_json, conditions=True)
    raise typer.Exit(0 if report.in_sync else PENDING)


@app.command()
def sync(
    only: Only = None,
    strategy: StrategyOption = None,
    no_probe: NoProbe = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on keeping them in line, as the backend does, until interrupted.")
    ] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Make Letta hold exactly the configured keys, and read every one of them back.

    Exit code: 0 all proven, otherwise 1; with --watch 0 after an interruption.
    """
    from isabella.api import ensure_providers
    from isabella.practice.overlay import load_served_settings

    if watch:
        _watch(only, strategy, no_probe, env_file, as_json)
        return
    report = _run(
        lambda: ensure_providers(
            load_served_settings(env_file),
            only=only or (),
            strategy=strategy,
            probe=not no_probe,
            count_models=True,
        ),
        as_json,
    )
    _show(report, as_json)
    raise typer.Exit(0 if report.all_proven else ERROR)


@app.command()
def verify(only: Only = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Read every key back, and have an agent on each provider say one line through Letta.

    Costs one short completion at each vendor. Exit code: 0 all proven and accepted, otherwise 1.
    """
    from isabella.api import verify_providers
    from isabella.practice.overlay import load_served_settings

    report = _run(
        lambda: verify_providers(load_served_settings(env_file), only=only or (), count_models=True), as_json
    )
    _show(report, as_json)
    raise typer.Exit(0 if report.all_proven and report.all_accepted else ERROR)


def _watch(
    only: list[str] | None, strategy: Strategy | None, no_probe: bool, env_file: Path | None, as_json: bool
) -> None:
    import asyncio

    from isabella.cli.watch import watch
    from isabella.practice.overlay import load_served_settings
    from isabella.system.logging import configure_logs

    if only or no_probe:
        raise typer.BadParameter("--watch keeps all providers in line, and asks vendors: leave --only and --no-probe")
    configure_logs()
    settings = load_served_settings(env_file, strategy=strategy)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(watch(settings, as_json=as_json))


def _run(ask: Callable[[], Awaitable[Report]], as_json: bool) -> Report:
    """Run it; with --json, a failure is an object too, beside the message that goes to standard error."""
    import asyncio

    from isabella.system.logging import configure_logs

    configure_logs()

    async def asked() -> Report:
        return await ask()

    try:
        return asyncio.run(asked())
    except IsabellaError as error:
        if as_json:
            print(json.dumps({"error": {"what": error.what, "remedy": error.remedy}}))
        raise


def _show(report: Report, as_json: bool, *, conditions: bool = False) -> None:
    if as_json:
        from isabella.providers.headline import document

        print(json.dumps(document(report), indent=2))
        return
    from isabella.cli.tables import show_report

    show_report(report, conditions=conditions)
