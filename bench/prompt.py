"""The size of the default agent's first prompt, as a practice vendor counts it."""

from __future__ import annotations

from bench.backend import serving, vendor_variables
from bench.conversation import client_of, events
from bench.results import Results
from bench.setup import Servers

_AGENT = "Isabella"


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Run the first turn of the agent, through the gateway. No other subject talks to it before."""
    results = Results()
    with servers.vendors(sealed=True) as (setup, vendors):
        variables = vendor_variables(vendors) | {"ISABELLA_GATEWAY": "on"}
        with serving(setup, variables) as (address, _process):
            async with client_of(address) as backend:
                (usage,) = [data async for kind, data in events(backend, _AGENT) if kind == "usage"]
    results.add("prompt_tokens_first_turn", usage["prompt_tokens"])
    return results
