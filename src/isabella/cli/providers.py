"""`isabella providers`: plan, sync, status, verify."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isabella.cli.commands import (
    ERROR,
    PENDING,
    AsJson,
    EnvFile,
    commands,
    complete_provider,
    configured_settings,
    print_json,
    run,
)
from isabella.config.choices import Strategy

if TYPE_CHECKING:
    from isabella.config.settings import Settings
    from isabella.providers.report import Report
    from isabella.watch.events import WatchEvent

app = commands(
    no_args_is_help=True, help="Bring the providers in Letta in line with the configuration, and prove it."
)

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="NAME",
        help="Only this provider, or this vendor's; repeatable.",
        autocompletion=complete_provider,
    ),
]
StrategyOption = Annotated[
    Strategy | None,
    typer.Option(
        "--strategy",
        help="auto: without a gap if possible; recreate: DELETE and POST every provider; "
        "in-place: never DELETE. Default: ISABELLA_STRATEGY, or auto.",
    ),
]
NoProbe = Annotated[bool, typer.Option("--no-probe", help="Do not test a key at its vendor before it is stored.")]


@app.command("plan")
def plan_command(
    only: Only = None,
    strategy: StrategyOption = None,
    no_probe: NoProbe = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what sync would do. Changes nothing.

    Like sync, it tests a key that Letta does not hold yet at its vendor.

    Exit code: 0 nothing to do, 2 changes pending, 1 error.
    """
    from isabella.api import compare_providers

    report = _run(compare_providers, env_file, as_json, only=only or (), strategy=strategy, probe=not no_probe)
    _show(report, as_json)
    raise typer.Exit(PENDING if report.pending else 0)


@app.command()
def status(only: Only = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Compare Letta's providers with the configuration, and show the last answer of each vendor.

    Changes nothing and contacts no vendor: the answers are those that a running backend has observed.
    Exit code: 0 all in sync, 2 drift, 1 error. Vendors' answers do not affect it.
    """
    from isabella.api import compare_providers
    from isabella.cli.backend import with_observations

    async def compare() -> Report:
        settings = configured_settings(env_file, served=True)
        report = await compare_providers(settings, only=only or (), count_models=True)
        return with_observations(settings, report)

    report = run(compare, as_json)
    _show(report, as_json, conditions=True)
    raise typer.Exit(0 if report.in_sync else PENDING)


@app.command()
def sync(
    only: Only = None,
    strategy: StrategyOption = None,
    no_probe: NoProbe = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep the providers in sync, as the backend does, until interrupted.")
    ] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Make Letta hold exactly the configured keys, and read every one of them back.

    Exit code: 0 all proven, otherwise 1; with --watch 0 after an interruption.
    """
    from isabella.api import ensure_providers

    if watch:
        if only or no_probe:
            raise typer.BadParameter("--watch syncs all providers and tests their keys: omit --only and --no-probe")
        _watch(env_file, strategy, as_json)
        return

    report = _run(ensure_providers, env_file, as_json, only=only or (), strategy=strategy, probe=not no_probe)
    _show(report, as_json)
    raise typer.Exit(0 if report.all_proven else ERROR)


@app.command()
def verify(only: Only = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Read every key back, and have each provider complete one line through Letta.

    Costs one short completion at each vendor. Exit code: 0 all proven and accepted, otherwise 1.
    """
    from isabella.api import verify_providers

    report = _run(verify_providers, env_file, as_json, only=only or ())
    _show(report, as_json)
    raise typer.Exit(0 if report.all_proven and report.all_accepted else ERROR)


def _run(
    function: Callable[..., Coroutine[Any, Any, Report]], env_file: Path | None, as_json: bool, **options: Any
) -> Report:
    """Run a function of the API with the settings."""
    return run(lambda: function(configured_settings(env_file, served=True), count_models=True, **options), as_json)


def _watch(env_file: Path | None, strategy: Strategy | None, as_json: bool) -> None:
    settings = configured_settings(env_file, served=True, service=True, strategy=strategy)
    with contextlib.suppress(KeyboardInterrupt):
        # Errors before the first report leave like those of a sync.
        run(lambda: _keep_in_sync(settings, as_json), as_json=False)


async def _keep_in_sync(settings: Settings, as_json: bool) -> None:
    """Sync, and watch until cancelled. With --json, each report is one line on standard output."""
    from isabella.api import ensure_providers
    from isabella.providers.health import report_document
    from isabella.system.terminal import print_message
    from isabella.watch.events import Synced, log_sentences
    from isabella.watch.watcher import LettaActions, Watcher

    def on_event(event: WatchEvent) -> None:
        for sentence in log_sentences(event):
            print_message(sentence.text, level="warning" if sentence.warning else "info")
        if as_json and isinstance(event, Synced):
            print(json.dumps(report_document(event.report)), flush=True)

    report = await ensure_providers(settings, count_models=True)
    if as_json:
        print(json.dumps(report_document(report)), flush=True)
    else:
        _show(report, as_json)
        print_message("Watching for changes; stop with Ctrl-C.")
    await Watcher(settings, LettaActions(), on_event, report=report).run()


def _show(report: Report, as_json: bool, *, conditions: bool = False) -> None:
    if as_json:
        from isabella.providers.health import report_document

        print_json(report_document(report))
        return
    from isabella.cli.tables import show_report

    show_report(report, conditions=conditions)
