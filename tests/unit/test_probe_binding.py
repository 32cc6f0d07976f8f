"""The model of a receipt: one that the vendor lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from isabella.agents.model_catalog import probe_binding
from isabella.config.settings import load_settings
from isabella.providers.desired import Desired, desired_providers
from isabella.vendors.client import KeyVerdict, VendorAnswer


def provider(**fields: Any) -> Desired:
    """A provider whose vendor has these fields."""
    desired = desired_providers(load_settings(environment={"GROQ_API_KEY": "gsk_x"}))
    (groq,) = (one for one in desired if one.name == "byok-groq")
    usual: dict[str, Any] = {"default_model": "usual", "models": {"usual": 100, "spare": 200}}
    return replace(groq, vendor=replace(groq.vendor, **(usual | fields)))


@pytest.mark.parametrize(
    ("listed", "unfit", "model", "window"),
    [
        ({"other": 5, "usual": None}, set(), "usual", 100),
        ({"other": 5, "spare": 7}, set(), "spare", 7),  # the default model is gone
        ({"speech": 5, "other": 6}, {"speech"}, "other", 6),
        ({}, set(), "usual", 100),  # the vendor lists nothing
    ],
)
def test_a_model_that_the_vendor_lists(
    listed: dict[str, int | None], unfit: set[str], model: str, window: int
) -> None:
    """The default model first, then those of the catalog, then any that holds conversations."""
    answer = VendorAnswer(KeyVerdict.ACCEPTED, "", 200, listed, frozenset(unfit))
    binding = probe_binding(provider(), answer)
    assert (binding.model, binding.window) == (model, window)


def test_a_vendor_that_does_not_answer_is_asked_for_its_usual_model() -> None:
    """What it says then belongs into the receipt."""
    answer = VendorAnswer(KeyVerdict.UNREACHABLE, "no answer")
    assert probe_binding(provider(), answer).model == probe_binding(provider(), None).model == "usual"
    assert probe_binding(provider(default_model=None, models={}), None).model == "default"
