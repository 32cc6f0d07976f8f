"""What Letta's providers API does, case by case, on the fake Letta and on the real server: the same on both.

The state machine and other fast tests rest on the fake Letta; these cases are what makes it worth resting on.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx2
import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.fake_letta import FakeLetta
from tests.support.letta_admin import LettaAdmin, open_admin
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal, unseal

PROVIDERS = "/v1/providers/"
KEY, OTHER_KEY = "csk-contract-0001", "csk-contract-0002"
#: To Letta this looks sealed once it is not itself: it has the length, and only characters of base64.
LONG_KEY = "c0ffee5eed" * 6 + "cafe"
#: Nothing listens there.
NOWHERE = "http://127.0.0.1:9/v1"
MASTER_KEY = "ab" * 32
_TRIES = 3


class Database(Protocol):
    """What stands in the key's place, past the API."""

    def read(self, id: str) -> str | None:
        """The text there."""

    def write(self, id: str, text: str | None) -> None:
        """Put another there."""


@dataclass
class Subject:
    """A Letta, real or not."""

    http: httpx2.Client
    database: Database
    master_key: str | None
    base_name: str
    vendors: PracticeVendors
    is_real: bool = False
    made: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, Any]:
        answer = self.http.request(method, f"{PROVIDERS}{path}", json=body, params=query)
        return answer.status_code, answer.json()

    def name(self) -> str:
        name = f"contract-{secrets.token_hex(4)}"
        self.made.append(name)
        return name

    def post(self, name: str | None = None, key: str = KEY, **fields: str) -> tuple[int, Any]:
        body = {"name": name or self.name(), "provider_type": "openai", "base_url": NOWHERE, "api_key": key}
        return self.ask("POST", "", body | fields)

    def provider(self, key: str = KEY, **fields: str) -> dict[str, Any]:
        status, made = self.post(key=key, **fields)
        assert status == 200, made
        row: dict[str, Any] = made
        return row

    def asking(self, vendor: str, key: str = KEY, **fields: str) -> dict[str, Any]:
        """A new provider for which Letta has asked the vendor; if it cannot connect, it only logs that."""
        for _ in range(_TRIES):
            before = self.vendors.requests(vendor)
            row = self.provider(key=key, **fields)
            if not self.is_real or self.vendors.requests(vendor) != before:
                return row
        raise AssertionError(f"Letta did not reach {vendor} in {_TRIES} attempts")

    def patch(self, id: str, key: str = OTHER_KEY, **fields: str) -> tuple[int, Any]:
        return self.ask("PATCH", id, {"api_key": key, **fields})

    def listed(self, name: str) -> list[dict[str, Any]]:
        status, rows = self.ask("GET", "", name=name)
        assert status == 200
        found: list[dict[str, Any]] = rows
        return found

    def opened(self, id: str) -> str | None:
        """The key in a row, as the master key of this Letta opens it."""
        text = self.database.read(id)
        return text if text is None or self.master_key is None else unseal(text, self.master_key)


class _OfDouble:
    def __init__(self, fake: FakeLetta) -> None:
        self._double = fake

    def read(self, id: str) -> str | None:
        return next(row.enc for row in self._double.rows if row.id == id)

    def write(self, id: str, text: str | None) -> None:
        next(row for row in self._double.rows if row.id == id).enc = text


class _OfLetta:
    def __init__(self, opened: LettaAdmin) -> None:
        self._admin = opened

    def read(self, id: str) -> str | None:
        return self._admin.key_text(id)

    def write(self, id: str, text: str | None) -> None:
        self._admin.database.execute("UPDATE providers SET api_key_enc = %s WHERE id = %s", (text, id))


def subject_double(vendors: PracticeVendors, master_key: str | None) -> Subject:
    """A fake Letta whose vendors take what the practice vendors take."""
    accepted = {(vendors.base_url(name), vendors.key(name).get_secret_value()) for name in ("cerebras", "groq")}
    fake = FakeLetta(master_key=master_key, takes=lambda url, key: (url, key) in accepted, base_names=("letta",))
    http = httpx2.Client(transport=fake.transport(), base_url="http://double")
    return Subject(http, _OfDouble(fake), master_key, "letta", vendors)


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """Vendors for the whole file."""
    with PracticeVendors() as running:
        yield running


@pytest.fixture(scope="module", params=["fake", "real"])
def sealing(request: pytest.FixtureRequest, vendors: PracticeVendors) -> Iterator[Subject]:
    """A Letta that runs under a master key."""
    if request.param == "fake":
        yield subject_double(vendors, MASTER_KEY)
        return
    letta: Letta = request.getfixturevalue("letta_server")
    assert letta.master_key is not None
    yield from _real(letta, vendors, letta.master_key.get_secret_value())


@pytest.fixture(scope="module", params=["fake", "real"])
def open_(request: pytest.FixtureRequest, vendors: PracticeVendors) -> Iterator[Subject]:
    """A Letta that runs without one."""
    if request.param == "fake":
        yield subject_double(vendors, None)
        return
    yield from _real(request.getfixturevalue("unsealed_letta"), vendors, None)


def _real(letta: Letta, vendors: PracticeVendors, master_key: str | None) -> Iterator[Subject]:
    with open_admin(letta) as opened:
        opened.clear("contract-*")
        # Letta makes a base provider of its own, whatever is in its environment.
        yield Subject(opened.http, _OfLetta(opened), master_key, "letta", vendors, is_real=True)
        opened.clear("contract-*")


# --- making -------------------------------------------------------------------------------------------------------


def test_a_provider_is_made_and_listed(sealing: Subject) -> None:
    """POST makes a provider that the list shows: name, type, base URL, no plaintext, and the key sealed (P2)."""
    made = sealing.provider()
    (row,) = sealing.listed(made["name"])
    assert {field: row[field] for field in ("id", "provider_type", "base_url", "api_key", "last_synced")} == {
        "id": made["id"],
        "provider_type": "openai",
        "base_url": NOWHERE,
        "api_key": None,
        "last_synced": None,
    }
    assert row["api_key_enc"] == sealing.database.read(made["id"])
    assert row["api_key_enc"] != KEY
    assert sealing.opened(made["id"]) == KEY


def test_a_name_is_taken_once(sealing: Subject) -> None:
    """POST of a name that exists: 409, and the row stays as it was (P10)."""
    made = sealing.provider()
    status, _ = sealing.post(made["name"], OTHER_KEY)
    assert status == 409
    assert sealing.opened(made["id"]) == KEY


def test_a_base_providers_name_is_refused(sealing: Subject) -> None:
    """POST of the name of a provider that Letta made itself: 400 (P10)."""
    status, said = sealing.post(sealing.base_name)
    assert (status, "base provider" in said["detail"]) == (400, True)


@pytest.mark.parametrize(
    "fields", [{"provider_type": "no-such-type"}, {"is_deleted": "false"}, {"api_key": None}, {"name": None}]
)
def test_a_body_that_is_not_understood_is_refused(sealing: Subject, fields: dict[str, Any]) -> None:
    """POST with an unknown type, a field too many, or without name or key: 422 (P10)."""
    body = {"name": sealing.name(), "provider_type": "openai", "base_url": NOWHERE, "api_key": KEY} | fields
    assert sealing.ask("POST", "", body)[0] == 422


def test_an_empty_key_and_a_slash_are_taken(sealing: Subject) -> None:
    """POST of an empty key makes a row without one; a name with a slash is taken, too (P10)."""
    made = sealing.provider(key="")
    assert sealing.database.read(made["id"]) is None
    assert sealing.post(f"{sealing.name()}/and/more")[0] == 200


def test_white_space_around_a_key_is_taken_away(sealing: Subject) -> None:
    """From 0.16.5 on the key is stored without it, by POST as by PATCH (O9)."""
    made = sealing.provider(key=f"  {KEY}\n")
    assert sealing.opened(made["id"]) == KEY
    assert sealing.patch(made["id"], f"\t{OTHER_KEY} ")[0] == 200
    assert sealing.opened(made["id"]) == OTHER_KEY


@pytest.mark.parametrize("vendor", ["cerebras", "groq"])
def test_only_an_accepted_key_syncs_the_models(sealing: Subject, vendor: str) -> None:
    """POST succeeds with any key; whether the vendor took it shows only in `last_synced` (P9)."""
    fields = {"provider_type": vendor, "base_url": sealing.vendors.base_url(vendor)}
    accepted = sealing.asking(vendor, key=sealing.vendors.key(vendor).get_secret_value(), **fields)
    refused = sealing.asking(vendor, **fields)
    assert sealing.listed(accepted["name"])[0]["last_synced"] is not None
    assert sealing.listed(refused["name"])[0]["last_synced"] is None


# --- changing -----------------------------------------------------------------------------------------------------


def test_a_key_is_changed_in_place(sealing: Subject) -> None:
    """PATCH changes the key, and the base URL where one is given, under the same id (P3)."""
    made = sealing.provider()
    assert sealing.patch(made["id"])[0] == 200
    assert (sealing.opened(made["id"]), sealing.listed(made["name"])[0]["base_url"]) == (OTHER_KEY, NOWHERE)
    assert sealing.patch(made["id"], KEY, base_url=f"{NOWHERE}/else")[0] == 200
    (row,) = sealing.listed(made["name"])
    assert (sealing.opened(made["id"]), row["base_url"], row["id"]) == (KEY, f"{NOWHERE}/else", made["id"])


@pytest.mark.parametrize(
    "body",
    [
        {"base_url": NOWHERE},
        {"api_key": None},
        {"api_key": KEY, "name": "contract-else"},
        {"api_key": KEY, "provider_type": "groq"},
        {"api_key": KEY, "is_deleted": False},
    ],
)
def test_nothing_else_can_be_changed(sealing: Subject, body: dict[str, Any]) -> None:
    """PATCH needs the key, and takes neither name nor type nor what it does not know: 422 (P3)."""
    made = sealing.provider()
    assert sealing.ask("PATCH", made["id"], body)[0] == 422
    assert sealing.opened(made["id"]) == KEY


def test_the_same_key_is_not_sealed_anew(sealing: Subject) -> None:
    """PATCH with the key that is there leaves the row's text as it is, sealed or in plaintext (P5)."""
    made = sealing.provider()
    text = sealing.database.read(made["id"])
    assert sealing.patch(made["id"], KEY)[0] == 200
    assert sealing.database.read(made["id"]) == text
    sealing.database.write(made["id"], KEY)
    assert sealing.patch(made["id"], KEY)[0] == 200
    assert sealing.database.read(made["id"]) == KEY


def test_plaintext_is_sealed_when_the_key_changes(sealing: Subject) -> None:
    """PATCH with another key seals a row that stood there in plaintext."""
    made = sealing.provider()
    sealing.database.write(made["id"], KEY)
    assert sealing.patch(made["id"])[0] == 200
    assert sealing.opened(made["id"]) == OTHER_KEY


@pytest.mark.parametrize("stored", ["sealed under another master key", "long plaintext"])
def test_what_cannot_be_opened_cannot_be_changed(sealing: Subject, stored: str) -> None:
    """PATCH decrypts first: 400, and nothing changes, also where plaintext is taken for ciphertext (P4)."""
    made = sealing.provider()
    text = LONG_KEY if stored == "long plaintext" else seal(KEY, OTHER_MASTER_KEY)
    sealing.database.write(made["id"], text)
    status, said = sealing.patch(made["id"])
    assert (status, "Failed to decrypt data" in said["detail"]) == (400, True)
    assert sealing.database.read(made["id"]) == text


@pytest.mark.parametrize("stored", [None, ""])
def test_a_missing_key_is_mended_in_place(sealing: Subject, stored: str | None) -> None:
    """PATCH of a row without a key writes one (O4)."""
    made = sealing.provider()
    sealing.database.write(made["id"], stored)
    assert sealing.patch(made["id"])[0] == 200
    assert sealing.opened(made["id"]) == OTHER_KEY


def test_an_empty_key_is_taken_in_place(sealing: Subject) -> None:
    """PATCH with an empty key is accepted, and sealed as any other (O9)."""
    made = sealing.provider()
    assert sealing.patch(made["id"], "")[0] == 200
    assert sealing.opened(made["id"]) == ""


# --- deleting -----------------------------------------------------------------------------------------------------


def test_deleting_is_soft(sealing: Subject) -> None:
    """After DELETE the list has it no more, but its id answers 200, without a key (P6, O8)."""
    made = sealing.provider()
    assert sealing.ask("DELETE", made["id"])[0] == 200
    assert sealing.listed(made["name"]) == []
    status, row = sealing.ask("GET", made["id"])
    assert (status, row["api_key_enc"]) == (200, None)


def test_what_is_deleted_cannot_be_changed(sealing: Subject) -> None:
    """PATCH and DELETE of a deleted provider: 404; refreshing its models answers 200 (O1, O8)."""
    made = sealing.provider()
    sealing.ask("DELETE", made["id"])
    assert sealing.patch(made["id"])[0] == 404
    assert sealing.ask("DELETE", made["id"])[0] == 404
    assert sealing.ask("PATCH", f"{made['id']}/refresh")[0] == 200


def test_a_deleted_name_comes_back_under_its_id(sealing: Subject) -> None:
    """POST of a deleted name restores the row: same id, new key, new type, new base URL (P6, O2)."""
    made = sealing.provider()
    sealing.database.write(made["id"], seal(KEY, OTHER_MASTER_KEY))
    sealing.ask("DELETE", made["id"])
    status, again = sealing.post(made["name"], OTHER_KEY, provider_type="cerebras", base_url=f"{NOWHERE}/else")
    assert (status, again["id"]) == (200, made["id"])
    (row,) = sealing.listed(made["name"])
    assert (row["provider_type"], row["base_url"]) == ("cerebras", f"{NOWHERE}/else")
    assert sealing.opened(made["id"]) == OTHER_KEY


def test_an_unknown_id_is_not_found(sealing: Subject) -> None:
    """PATCH and DELETE of an id that never was: 404."""
    id = "provider-00000000-0000-4000-8000-000000000000"
    assert sealing.patch(id)[0] == 404
    assert sealing.ask("DELETE", id)[0] == 404


# --- listing ------------------------------------------------------------------------------------------------------


def test_the_list_is_paged(sealing: Subject) -> None:
    """Without a limit 50 rows come; `limit`, `after` and `order` page through all of them (P1)."""
    names = [sealing.provider()["name"] for _ in range(51)]
    assert len(sealing.ask("GET", "")[1]) == 50
    found: list[str] = []
    query: dict[str, Any] = {"limit": 20, "order": "asc"}
    while page := sealing.ask("GET", "", **query)[1]:
        found += [row["name"] for row in page]
        query["after"] = page[-1]["id"]
    assert [name for name in found if name in set(names)] == names
    newest = sealing.ask("GET", "", limit=3)[1]
    assert [row["name"] for row in newest] == names[:-4:-1]


# --- without a master key -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, LONG_KEY, "5eed" * 16])
def test_without_a_master_key_keys_stand_there_as_they_are(open_: Subject, key: str) -> None:
    """POST and PATCH store the key itself, whatever it looks like (P2; O7 up to 0.16.6)."""
    made = open_.provider(key=key)
    assert open_.listed(made["name"])[0]["api_key_enc"] == key
    assert open_.patch(made["id"])[0] == 200
    assert open_.patch(made["id"], key)[0] == 200
    assert open_.database.read(made["id"]) == key


def test_without_a_master_key_a_sealed_row_is_overwritten(open_: Subject) -> None:
    """PATCH of a row that was sealed before stores the key in plaintext (O6)."""
    made = open_.provider()
    open_.database.write(made["id"], seal(KEY, OTHER_MASTER_KEY))
    assert open_.patch(made["id"], KEY)[0] == 200
    assert open_.database.read(made["id"]) == KEY


def test_without_a_master_key_an_empty_key_is_an_empty_text(open_: Subject) -> None:
    """PATCH with an empty key leaves an empty text (O9)."""
    made = open_.provider()
    assert open_.patch(made["id"], "")[0] == 200
    assert open_.database.read(made["id"]) == ""
