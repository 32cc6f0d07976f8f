"""Which models would work, from what vendors answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic import SecretStr

from isabella.agents.model_catalog import ModelCatalog
from isabella.config.vendors import Vendor
from isabella.errors import ModelUnknown
from isabella.letta.releases import GENERIC, OPENAI, client_for
from isabella.providers.desired import Desired
from isabella.vendors.client import KeyVerdict, VendorAnswer, accepted_answer
from isabella.vendors.model_lists import ListedModel

BIG = Vendor(
    name="big",
    title="Big",
    provider="big",
    type="openai",
    base_url="http://big/v1",
    api_key_env="BIG_API_KEY",
    default_model="large",
    default_window=50_000,
    models={"large": 60_000},
)
SMALL = Vendor(
    name="small", title="Small", provider="small", type="openai", base_url="http://small/v1", api_key_env="SMALL_KEY"
)


def desired(vendor: Vendor, key: str | None = "a-key", problem: str | None = None) -> Desired:
    """A provider as the configuration wants it."""
    return Desired(
        vendor,
        vendor.provider,
        vendor.type,
        vendor.base_url,
        SecretStr(key) if key else None,
        f"{vendor.api_key_env} is not set",
        problem,
    )


def accepted(models: dict[str, int | None], unfit: set[str] | None = None) -> VendorAnswer:
    """A vendor that lists models."""
    return VendorAnswer(KeyVerdict.ACCEPTED, "", 200, models, frozenset(unfit or ()))


class Vendors:
    """Vendors that answer as they are told, and count how often they are asked."""

    def __init__(self, **answers: VendorAnswer) -> None:
        self.answers = {f"http://{name}/v1": answer for name, answer in answers.items()}
        self.asked: list[str] = []
        self.now = 0.0

    async def ask(self, base_url: str, _key: SecretStr) -> VendorAnswer:
        """Answer for the vendor at an address."""
        self.asked.append(base_url)
        await anyio.lowlevel.checkpoint()
        return self.answers[base_url]

    def models(self, *providers: Desired) -> ModelCatalog:
        """Models that ask these vendors, by a clock of the test's own."""
        return ModelCatalog(providers or (desired(BIG), desired(SMALL)), self.ask, lambda: self.now)


def run(work: Callable[[], Any]) -> Any:
    """Run an async function."""
    return anyio.run(work)


GOOD = accepted({"large": None, "other": 9000, "embed": 8192, "tiny": 448}, {"embed"})


def test_the_window_is_the_vendors_word_then_the_catalogs() -> None:
    """Never 8192 by accident: the vendor's list, the catalog's model, the catalog's vendor, in this order."""
    models = Vendors(big=GOOD, small=accepted({"unknown": None})).models()
    assert run(lambda: models.binding("big/large")).window == 60_000
    assert run(lambda: models.binding("big/other")).window == 9000
    assert run(lambda: models.binding("small/unknown")).window == SMALL.default_window
    assert run(lambda: models.binding("big/large", window=10_000)).window == 10_000
    assert run(lambda: models.binding("big/other", window=10_000)).window == 9000


def test_a_provider_alone_means_its_usual_model() -> None:
    """`big` is its default model, `small` the first that it lists."""
    models = Vendors(big=GOOD, small=accepted({"first": None, "second": None})).models()
    assert run(lambda: models.binding("big")).handle == "big/large"
    assert run(lambda: models.binding("small")).handle == "small/first"


def test_handles_list_what_would_work_usual_models_first() -> None:
    """Models for embeddings and speech are left out, as is a vendor without a key or with a problem."""
    vendors = Vendors(big=GOOD, small=accepted({"m/x": None}))
    assert run(vendors.models().handles) == ["big/large", "big/other", "small/m/x"]
    keyless = vendors.models(desired(BIG, key=None), desired(SMALL, problem="a slash"))
    assert run(keyless.handles) == []


@pytest.mark.parametrize(
    ("handle", "said"),
    [
        ("nobody/x", "no provider 'nobody'"),
        ("big/gone", "no model 'gone'"),
        ("big/embed", "for conversations"),
        ("big/tiny", "for conversations"),
        ("", "no provider ''"),
    ],
)
def test_what_would_not_work_is_refused_with_what_would(handle: str, said: str) -> None:
    """The error names the handles of every vendor that answers."""
    models = Vendors(big=GOOD, small=accepted({"first": None})).models()
    with pytest.raises(ModelUnknown, match=said) as refused:
        run(lambda: models.binding(handle))
    assert refused.value.handles == ("big/large", "big/other", "small/first")
    assert "small/first" in (refused.value.remedy or "")


@pytest.mark.parametrize(
    "verdict", [KeyVerdict.REFUSED, KeyVerdict.OUT_OF_FUNDS, KeyVerdict.UNREACHABLE, KeyVerdict.FAILING]
)
def test_a_vendor_that_would_not_answer_is_not_offered(verdict: KeyVerdict) -> None:
    """Whatever the reason, its models are refused, and the others are offered."""
    models = Vendors(big=VendorAnswer(verdict, "no"), small=accepted({"first": None})).models()
    with pytest.raises(ModelUnknown) as refused:
        run(lambda: models.binding("big/large"))
    assert refused.value.handles == ("small/first",)


def test_a_vendor_that_is_asked_too_often_still_has_its_models() -> None:
    """429 says that the key is good: the catalog's models are taken."""
    models = Vendors(big=VendorAnswer(KeyVerdict.RATE_LIMITED, "slow down", 429), small=GOOD).models()
    assert run(lambda: models.binding("big/large")).window == 60_000


def test_answers_are_kept_for_a_while_and_failures_for_less() -> None:
    """A good list is asked for again after minutes, a failure after seconds, and callers at once ask once."""
    vendors = Vendors(big=GOOD, small=VendorAnswer(KeyVerdict.FAILING, "500"))
    models = vendors.models()

    async def many() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(models.handles)

    run(many)
    assert sorted(vendors.asked) == ["http://big/v1", "http://small/v1"]
    vendors.now = 60
    run(models.handles)
    assert vendors.asked.count("http://big/v1") == 1
    assert vendors.asked.count("http://small/v1") == 2
    vendors.now = 600
    run(models.handles)
    assert vendors.asked.count("http://big/v1") == 2


def test_an_agent_gets_the_first_that_works_or_any_or_the_first_with_a_key() -> None:
    """Preference, then whatever answers, then the catalog's word; without any key there is no agent."""
    small = accepted({"first": None})
    choose = Vendors(big=VendorAnswer(KeyVerdict.REFUSED, "no"), small=small).models().choose
    assert run(lambda: choose(["big/large", "small/first"])).handle == "small/first"
    assert run(lambda: choose(["big/large"])).handle == "small/first"
    dead = Vendors(
        big=VendorAnswer(KeyVerdict.UNREACHABLE, "no"), small=VendorAnswer(KeyVerdict.UNREACHABLE, "no")
    ).models()
    assert run(lambda: dead.choose(["big/large"])).handle == "big/large"
    with pytest.raises(ModelUnknown, match="No vendor has a key"):
        run(lambda: Vendors().models(desired(BIG, key=None)).choose(["big/large"]))


@pytest.mark.parametrize(
    ("release", "client"),
    [("0.16.8", GENERIC), ("0.16.7", GENERIC), ("0.17.0", GENERIC), ("unknown", GENERIC), ("0.16.6", OPENAI)],
)
def test_older_releases_are_bound_with_the_client_that_they_have(release: str, client: str) -> None:
    """The generic client uses stored keys from 0.16.7 on (M13)."""
    assert client_for(release) == client


def test_a_default_model_that_is_gone_is_replaced_and_told_once() -> None:
    """By the vendor's best listed one, for a handle of the default model; another handle is not replaced."""
    listed = {
        "mute": ListedModel("mute", window=200_000, tools=False),
        "ending": ListedModel("ending", window=200_000, end=date(2027, 1, 1)),
        "good": ListedModel("good", window=100_000, tools=True),
        "small": ListedModel("small", window=8000, tools=True),
        "embed": ListedModel("embed", converses=False),
    }
    vendors = Vendors(big=accepted_answer(listed), small=GOOD)
    models, told = vendors.models(), list[str]()
    models.on_replaced = told.append
    assert run(lambda: models.choose(["big/large", "small/large"])).handle == "big/good"
    assert run(lambda: models.choose(["big/gone", "small/large"])).handle == "small/large"
    assert run(lambda: models.binding("big")).handle == "big/good"
    with pytest.raises(ModelUnknown):
        run(lambda: models.binding("big/large"))
    assert run(models.handles)[:4] == ["big/good", "big/small", "big/mute", "big/ending"]
    vendors.now += 1000
    run(lambda: models.choose(["big/large"]))
    assert told == ["Big no longer has large; good takes its place."]


def test_a_cap_is_told_if_it_is_new_or_was_met() -> None:
    """The lowest cap of a provider and its model counts. A cap with which no agent could work is ignored."""
    catalog, told = ModelCatalog([desired(BIG)]), []
    catalog.on_capped = lambda: told.append(catalog.cap_of("big", "large"))
    catalog.cap("big", 54_000, "It takes 60,000.")
    catalog.cap("big", 54_000, "It takes 60,000.")
    assert len(told) == 1
    catalog.cap("big", 54_000, "It takes 60,000.", refused=True)
    catalog.cap("big/large", 8192, "It has 8,192.")
    catalog.cap("big", 100, "It takes 111.", refused=True)
    assert [cap and cap.tokens for cap in told] == [54_000, 54_000, 8192]
    assert catalog.capped("big", "large", 60_000) == 8192
    assert catalog.capped("big", "other", 60_000) == 54_000
    assert catalog.capped("small", "large", 60_000) == 60_000
