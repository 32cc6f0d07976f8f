"""A real Postgres that Isabella does not run: what Letta needs of it, and the locks in it that outlive its end."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import anyio.to_thread
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from bench.own_postgres import ROLE, OperatorsPostgres, operators_postgres
from isabella.embedded.own_postgres import OwnPostgres
from isabella.embedded.supervised_parts import OwnPostgresPart
from isabella.errors import ConfigurationError, LockTimeout, StartFailed
from isabella.locks import postgres as locks
from isabella.locks.postgres import AdvisoryLocks, leads, lock_key

KEY = lock_key("turn", "agent-1")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorsPostgres]:
    """One for all tests here."""
    with operators_postgres(tmp_path_factory.mktemp("own") / "home") as running:
        running.create()
        yield running


def own(url: str) -> OwnPostgres:
    """What Isabella knows of a database."""
    return OwnPostgres.of(SecretStr(url), "ISABELLA_POSTGRES_URL")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:p@h/letta",
        "postgresql:///letta",
        "postgresql://u:p@h",
        "host=h dbname=l",
        "postgresql://letta:canary@word@127.0.0.1/db",
        "postgresql://letta:canary/word@127.0.0.1/db",
        "postgresql://letta:12/canary@127.0.0.1/db",
        "postgresql://letta:canary%zz@127.0.0.1/db",
    ],
)
def test_a_url_that_is_none_is_not_quoted(url: str) -> None:
    """A part of the password may be anywhere in it."""
    with pytest.raises(ConfigurationError, match="ISABELLA_POSTGRES_URL is not a URL") as error:
        own(url)
    assert "canary" not in str(error.value)


def test_options_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protection is the same for Letta's connections and for Isabella's; the password is shown nowhere."""
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    url = "postgresql://u:canary@h:6432/letta?sslmode=verify-full&sslrootcert=/a/ca.crt&application_name=x"
    found = own(url)
    assert (found.where, found.port, found.tls) == ("h:6432/letta", 6432, "verify-full")
    assert found.environment == {"PGSSLROOTCERT": "/a/ca.crt"}
    expected = "postgresql://u:canary@h:6432/letta?sslmode=verify-full&sslrootcert=/a/ca.crt"
    assert found.client_url.get_secret_value() == expected
    assert "canary" not in f"{found!r} {found.where} {found.silence()}"
    assert own("postgresql://u:p@[::1]/letta").where == "[::1]:5432/letta"


def test_a_database_that_letta_can_use(database: OperatorsPostgres) -> None:
    """It has had no migration."""
    assert own(database.url()).prepare() is None
    assert own(database.url()).ready


def test_a_database_without_pgvector(database: OperatorsPostgres) -> None:
    """The role may not create the extension: the message says where, and what a superuser runs."""
    database.create("plain", extension=False)
    with pytest.raises(StartFailed, match=r"pgvector.*127\.0\.0\.1:\d+/plain") as error:
        own(database.url("plain")).prepare()
    assert error.value.remedy is not None
    assert "CREATE EXTENSION vector" in error.value.remedy
    assert database.password.get_secret_value() not in str(error.value)


def test_a_role_without_rights(database: OperatorsPostgres) -> None:
    """The migrations would fail after Letta's imports."""
    database.create("owned")
    with database.connect() as connection:
        connection.execute("ALTER DATABASE owned OWNER TO postgres")
    with pytest.raises(StartFailed, match=f"{ROLE} may not create tables"):
        own(database.url("owned")).prepare()


def test_other_reasons_are_told_without_the_password(database: OperatorsPostgres) -> None:
    """A database that does not exist, another password, and a port where nothing listens."""
    secret = database.password.get_secret_value()
    for url in (
        database.url("missing"),
        database.url().replace(secret, "canary-word"),
        "postgresql://u:canary-word@127.0.0.1:1/letta",
    ):
        with pytest.raises(StartFailed, match="cannot be used") as error:
            own(url).prepare()
        assert secret not in str(error.value)
        assert "canary-word" not in str(error.value)
        assert "ISABELLA_POSTGRES_URL" in str(error.value.remedy)


def test_the_supervisor_asks_it_and_never_starts_it() -> None:
    """A Postgres of the operator's that is away is told, with where it is."""
    part = OwnPostgresPart(own("postgresql://u:canary@127.0.0.1:1/letta"))
    sight = part.look()
    assert (sight.problem, sight.wanted, part.answers()) == (None, True, False)
    assert sight.process is not None
    with pytest.raises(StartFailed, match=r"Postgres at 127\.0\.0\.1:1/letta does not answer") as error:
        part.start(sight.process)
    assert "canary" not in str(error.value)


def test_a_running_part_needs_no_start(database: OperatorsPostgres) -> None:
    """It has come back meanwhile."""
    part = OwnPostgresPart(own(database.url()))
    assert part.answers()
    part.start(None)


def test_one_of_several_leads_until_its_session_ends(database: OperatorsPostgres) -> None:
    """The others ask again each time, and one of them follows it."""

    async def play() -> list[bool]:
        one, other = (AdvisoryLocks(SecretStr(database.url()), several=True) for _ in range(2))
        led = [await leads(one, "job"), await leads(other, "job"), await leads(one, "job")]
        led += [await leads(other, "another job"), await leads(None, "job")]
        await one.close()
        # Postgres learns of it a moment later.
        while not await leads(other, "job"):
            pass
        led.append(await leads(one, "job"))
        await other.close()
        await one.close()
        return led

    assert anyio.run(play) == [True, False, True, True, True, False]


def test_a_lock_outlives_the_end_of_postgres(database: OperatorsPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Postgres is killed: its holder takes the lock again, and one that asks meanwhile does not get it."""

    async def play() -> None:
        holder, other = (AdvisoryLocks(SecretStr(database.url()), several=True) for _ in range(2))
        async with holder.held(KEY, timeout=5):
            await anyio.to_thread.run_sync(database.kill)
            await anyio.to_thread.run_sync(database.start)
            # The holder asks each second whether somebody waits. Its former session fails, the next one is new.
            assert await holder.is_waited_for(KEY) is False
            assert await holder.is_waited_for(KEY) is False
            with pytest.raises(LockTimeout):
                async with other.held(KEY, timeout=0.1):
                    pytest.fail("it is held")
        async with other.held(KEY, timeout=5):
            pass
        await holder.close()
        await other.close()

    monkeypatch.setattr(locks, "_FIRST_SECONDS", 0.0)
    anyio.run(play)


def test_others_ask_later_than_former_holders(database: OperatorsPostgres) -> None:
    """After a restart, a process that knows the former Postgres waits before it takes new locks."""

    async def play() -> tuple[float, float, float]:
        known = AdvisoryLocks(SecretStr(database.url()), several=True)
        alone = AdvisoryLocks(SecretStr(database.url()))
        for one in (known, alone):
            await one.leads(lock_key("opens a session"))
        before = known._not_before
        await anyio.to_thread.run_sync(database.restart)
        for one in (known, alone):
            assert await one.is_waited_for(KEY) is False
            assert await one.is_waited_for(KEY) is False
        times = before, known._not_before, alone._not_before
        await known.close()
        await alone.close()
        return times

    before, several, single = anyio.run(play)
    assert several > before
    assert single == 0.0


def test_the_extension_is_created_if_that_is_allowed(database: OperatorsPostgres) -> None:
    """As on platforms where the owner of a database may."""
    database.create("allowed", extension=False)
    with database.connect() as connection:
        connection.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(ROLE)))
        try:
            assert own(database.url("allowed")).prepare() is None
        finally:
            connection.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(sql.Identifier(ROLE)))
    with psycopg.connect(database.url("allowed")) as connection:
        assert connection.execute("SELECT '[1,2]'::vector <-> '[1,2]'").fetchone() == (0.0,)
