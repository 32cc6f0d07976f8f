"""The API keeps to its own description: schemathesis sends what that allows, and what it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.server.app import create_app
from isabella.server.runtime import Runtime
from tests.support.backend_server import TOKEN, Backend, backend

EXAMPLES = int(os.environ.get("ISABELLA_TEST_EXAMPLES", "6"))
#: Requests that are refused for what no description of their form can say.
BEYOND_DESCRIPTION = ("POST /api/agents/import", "POST /v1/chat/completions", "POST /v1/responses")


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend to send all kinds of things to."""
    home: Path = tmp_path_factory.mktemp("home")
    with PracticeVendors() as vendors, backend(letta_server, home, vendors) as running:
        yield running


async def _nothing() -> None:
    """An application that is only looked at."""


DESCRIPTION = schemathesis.openapi.from_dict(create_app(Runtime(), _nothing).openapi())
OPERATIONS = {
    f"{operation.method.upper()} {operation.path}": operation
    for operation in (result.ok() for result in DESCRIPTION.get_all_operations() if isinstance(result, Ok))
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_api_keeps_to_its_description(served: Backend, name: str) -> None:
    """Every answer has a status, a content type and a body that the description allows, whatever is sent."""
    excluded: Any = [positive_data_acceptance] if name in BEYOND_DESCRIPTION else []

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=st.one_of([OPERATIONS[name].as_strategy(mode) for mode in schemathesis.GenerationMode]))
    def keeps(case: schemathesis.Case[Any]) -> None:
        response = case.call(base_url=served.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        case.validate_response(response, excluded_checks=excluded)

    keeps()
