"""A thousand providers in one Letta, all configured and all in sync: how far proving them scales."""

from __future__ import annotations

import secrets

import psycopg

from bench.baseline import bare_listing
from bench.provider_rows import BASE_URL, delete_providers, insert_providers
from bench.results import Results
from bench.setup import Servers
from bench.timing import Way, alternate, medians

_COUNT = 1000


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure a start that proves all of them, over the bare listing of them, without a master key."""
    results = Results()
    keys = {f"t-{number:04}": f"thousand-{number:04}-{secrets.token_hex(12)}" for number in range(_COUNT)}
    environment = {_variable(provider): key for provider, key in keys.items()}
    declared = "\n".join(
        f'[[providers]]\nname = "{provider}"\nbase_url = "{BASE_URL}"\napi_key_env = "{_variable(provider)}"\n'
        for provider in keys
    )
    letta = servers.letta(sealed=False)
    insert_providers(letta, keys)
    try:
        with servers.setup(environment, sealed=False, declared=declared) as setup:

            async def start() -> None:
                report = await setup.start()
                assert len(report.configured) == _COUNT

            async def list_them() -> None:
                assert len(await bare_listing(setup.connection)) == _COUNT

            await start()
            ours, listing = await alternate(5 if quick else 21, Way(start), Way(list_them))
            results.compare("thousand_over_listing", ours, listing, medians(ours=ours, listing=listing))
    finally:
        with psycopg.connect(letta.database_url.get_secret_value()) as database:
            delete_providers(database)
    return results


def _variable(provider: str) -> str:
    return provider.upper().replace("-", "_") + "_KEY"
