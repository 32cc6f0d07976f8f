"""Errors over HTTP: one form, the right status, and no secret."""

from __future__ import annotations

import inspect

import pytest
from pydantic import SecretStr

from isabella import errors
from isabella.errors import IsabellaError, LettaRefused
from isabella.server.errors import answer_to, code_of, problem_of, status_of
from isabella.system import redaction


def every() -> list[type[IsabellaError]]:
    """Every class of the tree."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in kinds if issubclass(kind, IsabellaError)]


def made(kind: type[IsabellaError], what: str = "It went wrong.") -> IsabellaError:
    """An error of a class, with whatever that class asks for besides."""
    given = {"status": 404, "detail": "gone", "version": "v", "retry_after": 2.0, "source": "mistral"}
    wanted = inspect.signature(kind).parameters
    needed = {
        name: given[name]
        for name, parameter in wanted.items()
        if parameter.default is inspect.Parameter.empty and name in given
    }
    return kind(what, **needed)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", every())
def test_every_error_has_a_status_and_a_word(kind: type[IsabellaError]) -> None:
    """No error of ours comes out as a 500, and each has a code in snake case."""
    error = made(kind)
    assert status_of(error) in {404, 409, 422, 429, 502, 503}
    assert code_of(error) == code_of(error).lower()
    assert problem_of(error).message == "It went wrong."


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.AgentUnknown, 404),
        (errors.ModelUnknown, 409),
        (errors.MemoryChanged, 409),
        (errors.MemoryTooLong, 422),
        (errors.MemoryUnknown, 404),
        (errors.AgentFileRefused, 422),
        (errors.AgentExists, 409),
        (errors.LettaUnreachable, 503),
        (errors.LettaBroken, 502),
        (errors.NotReady, 503),
    ],
)
def test_the_status_says_whose_mistake_it_was(kind: type[IsabellaError], status: int) -> None:
    """4xx for the client's, 502 for Letta's, 503 for what may be better soon."""
    assert status_of(made(kind)) == status


@pytest.mark.parametrize(("letta", "ours"), [(400, 422), (404, 404), (409, 409), (422, 422), (401, 502), (402, 502)])
def test_what_letta_refuses_is_the_clients_mistake_where_it_is(letta: int, ours: int) -> None:
    """Letta's 400 is our 422; what it refuses us for reasons of its own is not the client's."""
    assert status_of(LettaRefused("No.", status=letta, detail="no")) == ours


def test_a_secret_in_an_error_is_masked() -> None:
    """Whatever Letta or a vendor said, a known key does not come out."""
    secret = SecretStr("practice-secret-in-an-error")
    redaction.remember(secret.get_secret_value())
    error = errors.LettaBroken(f"It said {secret.get_secret_value()}.", remedy=f"Use {secret.get_secret_value()}.")
    assert secret.get_secret_value() not in bytes(answer_to(error).body).decode()


def test_an_error_that_may_pass_says_when_to_try_again() -> None:
    """503 and 429 carry Retry-After."""
    assert answer_to(made(errors.LettaUnreachable)).headers["retry-after"] == "5"
    assert answer_to(made(errors.QueueFull)).headers["retry-after"] == "2"
