"""`isabella settings`."""

from __future__ import annotations

import json

import typer

from isabella.cli.options import AsJson, EnvFile


def settings(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show every setting, and where its value comes from. Keys are masked."""
    from pydantic import SecretStr

    from isabella.cli.tables import show_notices, show_settings
    from isabella.config.settings import Settings, variable
    from isabella.practice.overlay import load_served_settings
    from isabella.providers.desired import desired_providers
    from isabella.system.redaction import mask

    current = load_served_settings(env_file)
    desired = desired_providers(current)
    rows: list[tuple[str, str, str]] = []
    for field in Settings.model_fields:
        if field == "sources":
            continue
        value = getattr(current, field)
        if field == "database_url" and value is not None:
            shown = "(set)"
        elif isinstance(value, SecretStr):
            shown = mask(value.get_secret_value())
        else:
            shown = "-" if value is None else str(value)
        rows.append((variable(field), shown, current.origin(field)))
    for provider in desired:
        vendor = provider.vendor
        rows.append((vendor.api_key_env, provider.masked_key or provider.problem or "-", provider.key_source))
        for name, shown in ((vendor.base_url_env, provider.base_url), (vendor.type_env, provider.type)):
            if name is not None:
                rows.append((name, shown, current.sources.origin(name)))
    notices = current.contradictions(tuple(provider.vendor for provider in desired))
    if as_json:
        document = {name: {"value": value, "from": origin} for name, value, origin in rows}
        print(json.dumps({"settings": document, "notices": notices}, indent=2))
        raise typer.Exit
    show_notices(notices)
    show_settings(rows)
    for provider in desired:
        for note in provider.notes:
            typer.echo(f"{provider.name}: {note}", err=True)
