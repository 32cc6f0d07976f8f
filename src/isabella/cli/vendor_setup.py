"""`isabella vendors add`: ask for what is missing, try it at the vendor, and write it."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from pydantic import SecretStr

from isabella.agents.model_catalog import ordered_models
from isabella.cli.backend import running_backend
from isabella.cli.commands import find_vendor, run
from isabella.config.api_keys import NO_KEY, KeyRefused, clean_key
from isabella.config.custom_vendors import custom_vendor
from isabella.config.editing import append_table, set_variables
from isabella.config.key_commands import Failed
from isabella.config.keyring_entries import KeyringEntry
from isabella.config.settings import Settings, http_address
from isabella.config.vendors import Vendor, vendor_of_prefix
from isabella.errors import ConfigurationError
from isabella.providers.desired import desired_providers, with_path
from isabella.system import audit, redaction
from isabella.system.redaction import mask
from isabella.system.terminal import print_message
from isabella.vendors.client import KeyVerdict, VendorAnswer, ask_about_key, ask_vendor
from isabella.vendors.model_lists import ListedModel

_SHOWN = 12


def set_up(
    settings: Settings,
    name: str,
    *,
    base_url: str | None,
    model: str | None,
    key_stdin: bool,
    in_keyring: bool,
    check: bool,
) -> None:
    """Set a vendor up; the arguments are those of `isabella vendors add`. Nothing is written if this raises.

    Raises:
        ConfigurationError: the vendor cannot be set up like this.
    """
    vendor, declared = _vendor(settings, name, base_url)
    address = _address(settings, vendor, base_url)
    entry = _keyring_entry(settings, vendor) if in_keyring else None
    key = _given_key(settings, vendor, key_stdin=key_stdin)
    answer: VendorAnswer | None = None
    if check:
        address, key, answer = _tried(vendor, address, key)
    chosen = _chosen_model(vendor, model, answer)
    if entry is not None:
        _store(settings, vendor, entry, key)
    _write(settings, vendor, address, key, chosen, declared=declared, entry=entry)
    _report(settings, vendor, address, chosen, answer)


def _vendor(settings: Settings, name: str, base_url: str | None) -> tuple[Vendor, bool]:
    """Return the vendor to set up, and whether `isabella.toml` must declare it."""
    try:
        return find_vendor(settings, name).vendor, False
    except ConfigurationError:
        if base_url is None:
            raise
    return custom_vendor(settings.config_file, name=name, base_url=base_url), True


def _address(settings: Settings, vendor: Vendor, base_url: str | None) -> str:
    """Return the given base URL; without one, the answer to a prompt for a self-hosted server, or the usual one."""
    current = find_vendor(settings, vendor.name).upstream if vendor.base_url_env else vendor.base_url
    if base_url is None:
        if not (vendor.key_optional and vendor.base_url_env and _is_terminal()):
            return current
        base_url = typer.prompt(f"Address of {vendor.title}", default=current, err=True)
    elif vendor.base_url_env is None and base_url != vendor.base_url:
        what = f"{vendor.title} is declared in {settings.config_file}"
        raise ConfigurationError(f"{what}, with {vendor.base_url}.", remedy="Change base_url there.")
    try:
        return with_path(http_address(base_url), vendor)
    except ValueError as error:
        remedy = f"Give one such as {vendor.base_url}."
        raise ConfigurationError(f"The base URL cannot be used: {error}.", remedy=remedy) from None


def _given_key(settings: Settings, vendor: Vendor, *, key_stdin: bool) -> SecretStr | None:
    """Return the key from standard input, from its variable, or from a prompt; None for a vendor that needs none."""
    if key_stdin:
        return _cleaned(vendor, sys.stdin.readline())
    (one,) = desired_providers(settings, (vendor,), every=True)
    if one.problem is not None and not _is_terminal():
        raise ConfigurationError(f"{one.problem}.", remedy=one.remedy)
    if one.key is not None and not one.keyless:
        print_message(f"The key of {vendor.title} is in {one.key_source}.")
        return one.key
    return None if vendor.key_optional else _asked_key(vendor)


def _keyring_entry(settings: Settings, vendor: Vendor) -> KeyringEntry:
    """Return the entry to store the key in: the configured one, else `isabella/NAME`.

    Raises `ConfigurationError` if another variable gives the key and would win over the entry. A key in `.env` does
    not: it is removed from there.
    """
    sources = settings.sources
    for name in (vendor.api_key_env, vendor.api_key_file_env, vendor.api_key_command_env):
        found = sources.get(name)
        if found is not None and (name != vendor.api_key_env or name in sources.environment):
            what = f"{name} ({found.origin}) is set and would win over the keyring, so nothing was stored."
            raise ConfigurationError(what, remedy=f"Remove {name}, then run the command again.")
    named = sources.get(vendor.api_key_keyring_env)
    if named is None:
        return KeyringEntry("isabella", vendor.name)
    try:
        return KeyringEntry.parse(named.text)
    except ValueError as error:
        what = f"{vendor.api_key_keyring_env} ({named.origin}) cannot be used: {error}."
        raise ConfigurationError(what, remedy="Correct or remove it.") from None


def _store(settings: Settings, vendor: Vendor, entry: KeyringEntry, key: SecretStr | None) -> None:
    """Store the key in the keyring; raise `ConfigurationError` if it cannot be stored."""
    if key is None:
        what = f"{vendor.title} has no key that the keyring could hold; nothing was written."
        raise ConfigurationError(what, remedy="Pipe one in with --key-stdin, or leave --keyring out.")
    text = key.get_secret_value()
    with audit.change("setting.changed", f"keyring entry {entry}", home=settings.home, key=mask(text)):
        try:
            keyring = entry.store(text)
        except Failed as failed:
            what = f"The key cannot be stored in entry {entry} of the keyring, so nothing was written: {failed}."
            raise ConfigurationError(what, remedy=failed.remedy) from None
    typer.echo(f"Stored the key in {keyring}, entry {entry}.")


def _asked_key(vendor: Vendor) -> SecretStr:
    """Ask for a key on the terminal, without echo."""
    if not _is_terminal():
        piped = f"isabella vendors add {vendor.name} --key-stdin"
        remedy = f"Set {vendor.api_key_env}, or pipe the key into `{piped}`."
        raise ConfigurationError(f"{vendor.title} needs a key.", remedy=remedy)
    page = f" (from {vendor.keys_page})" if vendor.keys_page else ""
    return _cleaned(vendor, typer.prompt(f"Key of {vendor.title}{page}", hide_input=True, err=True))


def _cleaned(vendor: Vendor, text: str) -> SecretStr:

    try:
        cleaned = clean_key(text)
    except KeyRefused as refused:
        remedy = f"Copy it again{f' from {vendor.keys_page}' if vendor.keys_page else ''}."
        raise ConfigurationError(f"This cannot be a key of {vendor.title}: {refused}.", remedy=remedy) from None
    redaction.remember(cleaned.value)
    other = vendor_of_prefix(cleaned.value)
    if other is not None and vendor.key_prefix != other.key_prefix:
        print_message(f"The key begins with {other.key_prefix}, as keys of {other.title} do.", level="warning")
    return SecretStr(cleaned.value)


def _tried(vendor: Vendor, address: str, key: SecretStr | None) -> tuple[str, SecretStr | None, VendorAnswer]:
    """Ask the vendor for its models; return base URL and key with which it answers.

    A server that asks for a key after all gets one from the terminal, and a base URL that is a little wrong is
    corrected. Raises `ConfigurationError` for any answer that is not one to a valid key.
    """
    answer = _ask(vendor, address, key)
    if answer.verdict is KeyVerdict.REFUSED and key is None and _is_terminal():
        print_message(f"{vendor.title} asks for a key ({answer.said}).")
        key = _asked_key(vendor)
        answer = _ask(vendor, address, key)
    if answer.verdict is KeyVerdict.WRONG_ADDRESS:
        from isabella.doctor.collect.configuration import nearby_base_urls

        for near in nearby_base_urls(address, vendor.base_url):
            other = _ask(vendor, near, key)
            if other.verdict is KeyVerdict.ACCEPTED:
                print_message(f"{address} is not the base URL; {near} is.")
                return near, key, other
    if not answer.takes_key:
        refuse(vendor, address, answer)
    return address, key, answer


def _ask(vendor: Vendor, address: str, key: SecretStr | None) -> VendorAnswer:

    sent = key or SecretStr(NO_KEY)

    async def asked() -> VendorAnswer:
        answer = await ask_vendor(address, sent)
        if vendor.key_route is None or answer.verdict is not KeyVerdict.ACCEPTED:
            return answer
        known = await ask_about_key(f"{address}/{vendor.key_route}", sent)
        # The operator's proxy in front of the vendor may not have the route.
        return answer if known.verdict in (KeyVerdict.ACCEPTED, KeyVerdict.WRONG_ADDRESS) else known

    return run(asked, as_json=False)


def refuse(vendor: Vendor, address: str, answer: VendorAnswer) -> NoReturn:
    """Raise the error for an answer with which a vendor cannot be set up."""
    again = f"isabella vendors add {vendor.name}"
    page = f"Make one at {vendor.keys_page}, then: {again}" if vendor.keys_page else f"Then: {again}"
    at_home = f"Start it, or name its address: {again} --base-url http://HOST:PORT/v1"
    match answer.verdict:
        case KeyVerdict.REFUSED:
            what = f"{vendor.title} at {address} refuses the key: {answer.said}."
            remedy = f"It needs one: {again}" if vendor.key_optional else page
        case KeyVerdict.UNREACHABLE:
            what, remedy = f"{vendor.title} at {address} does not answer: {answer.said}.", "Check the network."
            remedy = at_home if vendor.key_optional else remedy
        case KeyVerdict.WRONG_ADDRESS:
            what = f"{address} is not the base URL of an OpenAI-compatible API: {answer.said}."
            remedy = "Correct the address: it often ends in /v1."
        case _:
            what = f"{vendor.title} at {address} gives no list of models: {answer.said}."
            remedy = f"Try again later, or write it as it is: {again} --no-check"
    raise ConfigurationError(what, remedy=remedy)


def _chosen_model(vendor: Vendor, model: str | None, answer: VendorAnswer | None) -> str | None:
    """Return the default model to write; None if the vendor's own default, or its only model, will do."""
    known = answer is not None and bool(answer.models)
    offered = ordered_models(vendor, answer) if answer is not None else []
    if model is not None:
        if known and answer is not None and model not in answer.models:
            shown = ", ".join(offered[:_SHOWN]) + (", …" if len(offered) > _SHOWN else "")
            raise ConfigurationError(f"{vendor.title} has no model {model!r}.", remedy=f"It has: {shown}")
        return model
    if not known or vendor.default_model in offered or len(offered) == 1:
        return None
    if not offered:
        remedy = "Agents need a model for conversations, with a window of 4,096 tokens or more."
        raise ConfigurationError(f"{vendor.title} has no model for an agent.", remedy=remedy)
    if vendor.default_model is not None:
        print_message(f"{vendor.title} no longer has {vendor.default_model}.")
    if not _is_terminal():
        return offered[0]
    for id in offered[:_SHOWN]:
        typer.echo(f"  {id}", err=True)
    picked = str(typer.prompt("Model", default=offered[0], err=True)).strip()
    return _chosen_model(vendor, picked, answer)


def _write(
    settings: Settings,
    vendor: Vendor,
    address: str,
    key: SecretStr | None,
    model: str | None,
    *,
    declared: bool,
    entry: KeyringEntry | None = None,
) -> None:
    """Write variables to `.env`, and a new server to `isabella.toml`, unless they are there already."""
    sources = settings.sources
    values: dict[str, str | None] = {}
    if entry is not None:
        values |= {vendor.api_key_env: None, vendor.api_key_keyring_env: str(entry)}
    elif key is not None:
        values[vendor.api_key_env] = key.get_secret_value()
    if vendor.base_url_env is not None and (address != vendor.base_url or vendor.key_optional):
        values[vendor.base_url_env] = address
    if vendor.model_env is not None and model is not None:
        values[vendor.model_env] = model
    if declared:
        entries: dict[str, str | list[str]] = {"name": vendor.provider, "base_url": address}
        entries |= {} if key is None else {"api_key_env": vendor.api_key_env}
        entries |= {} if model is None else {"default_model": model}
        append_table(settings.config_file, entries, home=settings.home)
        typer.echo(f"Wrote a [[providers]] table to {settings.config_file}.")
    elif vendor.model_env is None and model is not None and model != vendor.default_model:
        print_message(f'For this model, set default_model = "{model}" in {settings.config_file}.', level="warning")
    # The file, command or entry that a key came from stays the place where it is kept.
    new = {name: value for name, value in values.items() if _current(settings, name) != value}
    (configured,) = desired_providers(settings, (vendor,), every=True)
    if configured.key == key and sources.get(vendor.api_key_env) is None:
        new.pop(vendor.api_key_env, None)
    if new:
        set_variables(sources.file, new, home=settings.home)
    if written := [name for name in new if new[name] is not None]:
        typer.echo(f"Wrote to {sources.file}: {', '.join(written)}.")
    if vendor.api_key_env in new and entry is not None:
        typer.echo(f"Removed from {sources.file}: {vendor.api_key_env}.")
    elif vendor.api_key_env in new and sources.file.stat().st_mode & 0o004:
        print_message(f"Other users can read {sources.file}: run `chmod 600 {sources.file}`.", level="warning")
    for name in new:
        if name in sources.environment:
            print_message(f"{name} is also set in the environment, which wins: `unset {name}`.", level="warning")


def _current(settings: Settings, name: str) -> str | None:
    value = settings.sources.get(name)
    return None if value is None else value.text.strip()


def _report(settings: Settings, vendor: Vendor, address: str, model: str | None, answer: VendorAnswer | None) -> None:
    """Print the result and the next step."""
    best = model
    if answer is not None:
        best = model or next(iter(ordered_models(vendor, answer)), None)
        listed = answer.listed.get(best or "")
        accepted = answer.verdict is KeyVerdict.ACCEPTED
        typer.echo(
            f"{vendor.title} at {address} {'lists ' if accepted else 'knows the key, but says: '}{answer.said}."
        )
        if listed is not None:
            typer.echo(f"Model: {_described(listed, vendor)}")
    handle = f"{vendor.provider}/{best}" if best else vendor.provider
    if running_backend(settings) is not None:
        typer.echo(
            f"The running backend takes it over in a few seconds. Then: isabella agents switch Isabella {handle}"
        )
    else:
        typer.echo("Talk with: isabella chat")


def _described(model: ListedModel, vendor: Vendor) -> str:
    window = model.window or vendor.models.get(model.id)
    words = [
        model.id,
        f"a window of {window:,} tokens" if window else f"window not reported, {vendor.default_window:,} assumed",
    ]
    words += ["no tools: it cannot remember by itself"] if model.tools is False else []
    words += [f"ends {model.end or 'soon'}"] if model.ending else []
    return ", ".join(words)


def _is_terminal() -> bool:
    return sys.stdin.isatty()
