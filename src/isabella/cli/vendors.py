"""`isabella vendors`: which vendors there are, and setting one up in `.env` or `isabella.toml`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isabella.cli.commands import AsJson, EnvFile, commands, configured_settings, find_vendor, print_json, run
from isabella.errors import ConfigurationError
from isabella.system.terminal import print_message

if TYPE_CHECKING:
    from isabella.providers.desired import Desired

app = commands(help="List the vendors that Isabella knows, and set one up.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The vendor, as `isabella vendors` lists it.")]


@app.callback(invoke_without_command=True)
def list_vendors(context: typer.Context, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """List the vendors that Isabella knows, and set one up. Sends no request."""
    if context.invoked_subcommand is not None:
        return
    from isabella.config.vendors import catalog_date
    from isabella.providers.desired import desired_providers

    settings = configured_settings(env_file, served=True, quiet=True)
    every = desired_providers(settings, every=True)
    rows = [_row(one) for one in every]
    if as_json:
        print_json({"catalog": catalog_date().isoformat(), "vendors": rows})
        return
    from isabella.cli.tables import show_vendors

    show_vendors(rows)
    if not any(one.configured for one in every):
        typer.echo("None is set up. `isabella vendors add NAME` asks for what is needed, and tries it.")


def _row(one: Desired) -> dict[str, Any]:
    vendor = one.vendor
    return {
        "name": vendor.name,
        "title": vendor.title,
        "provider": one.name,
        "set_up": one.configured,
        "problem": one.problem,
        "key": one.masked_key,
        "key_source": one.key_source if one.configured else None,
        "key_optional": vendor.key_optional,
        "base_url": one.upstream,
        "default_model": vendor.default_model,
        "keys_page": vendor.keys_page,
        "models_page": vendor.models_page,
    }


@app.command()
def models(name: Name, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """List the models of a vendor that is set up, as it reports them: windows, prices, and ends of life."""
    from dataclasses import asdict

    from isabella.agents.model_catalog import ordered_models
    from isabella.vendors.client import ask_vendor

    one = find_vendor(configured_settings(env_file, served=True, quiet=True), name)
    if one.key is None or one.problem is not None:
        what = f"{one.vendor.title} is not set up: {one.problem or one.key_source}."
        remedy = one.remedy or f"Set it up: isabella vendors add {one.vendor.name}"
        raise ConfigurationError(what, remedy=remedy)
    key = one.key
    answer = run(lambda: ask_vendor(one.reached_at, key), as_json)
    if not answer.models:
        from isabella.cli.vendor_setup import refuse

        refuse(one.vendor, one.upstream, answer)
    listed = [answer.listed[id] for id in ordered_models(one.vendor, answer)]
    if as_json:
        fields = [{**asdict(model), "end": model.end and model.end.isoformat()} for model in listed]
        print_json({"vendor": one.vendor.name, "provider": one.name, "models": fields})
        return
    from isabella.cli.tables import show_models

    show_models(one.name, listed)


@app.command()
def add(
    name: Name,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="Its address, for instance of a server of yours.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="ID", help="The model to use by default, as the vendor names it.")
    ] = None,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the key from standard input.")] = False,
    in_keyring: Annotated[
        bool, typer.Option("--keyring", help="Store the key in the desktop's keyring, not in .env.")
    ] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Write it without trying it.")] = False,
    env_file: EnvFile = None,
) -> None:
    """Set a vendor up: ask for what is missing, try it, and write it.

    A key comes from a prompt, from standard input, or from the variable that holds it already; never from an
    argument, which other users can see. Keys, base URLs and models go to .env; with --keyring, the key goes to the
    desktop's keyring, and is removed from .env. With --base-url, NAME may be a new one: an OpenAI-compatible server,
    which goes to isabella.toml.

    Exit code: 0 set up, 1 not: nothing was written.
    """
    from isabella.cli.vendor_setup import set_up

    set_up(
        configured_settings(env_file, quiet=True),
        name,
        base_url=base_url,
        model=model,
        key_stdin=key_stdin,
        in_keyring=in_keyring,
        check=not no_check,
    )


@app.command()
def remove(name: Name, env_file: EnvFile = None) -> None:
    """Remove a vendor's variables from .env. Its provider in Letta and your agents stay as they are."""
    from isabella.config.editing import set_variables

    settings = configured_settings(env_file, quiet=True)
    one = find_vendor(settings, name)
    vendor, sources = one.vendor, settings.sources
    if vendor.base_url_env is None:
        remedy = f"Delete its [[providers]] table from {settings.config_file}."
        raise ConfigurationError(f"{vendor.title} is declared in {settings.config_file}.", remedy=remedy)
    there = [variable for variable in vendor.variables if variable in sources.dotenv]
    if not there:
        raise ConfigurationError(
            f"{sources.file} has no variable of {vendor.title}: {one.key_source}.",
            remedy=f"If {' or '.join(vendor.variables)} is set elsewhere, remove it there.",
        )
    set_variables(sources.file, dict.fromkeys(there), home=settings.home)
    typer.echo(f"Removed from {sources.file}: {', '.join(there)}.")
    if vendor.api_key_keyring_env in there:
        print_message(f"The keyring keeps its entry {sources.dotenv[vendor.api_key_keyring_env]}.")
    for variable in vendor.variables:
        if variable in sources.environment:
            print_message(f"{variable} is still set in the environment.", level="warning")
