"""The backend under floods: it answers, keeps its memory, sheds what is too much, and recovers. Without a Letta."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from isabella.server.auth import COOKIE
from isabella.system.sockets import allow_files
from tests.support.flood import TOKEN, Clients, FloodedBackend, Prober, flooded_backend, head, status_of
from tests.support.gateway_client import wait_until

_MIB = 1024 * 1024
BEARER = f"Authorization: Bearer {TOKEN}"
JSON = "Content-Type: application/json"
BODY = b" " * (59 * _MIB)
#: No test of this file needs more, and each comes back to about its start.
MOST_GROWTH, MOST_LEFT = 100, 40


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FloodedBackend]:
    """A backend with limits as usual."""
    if allow_files() < 6000:
        pytest.skip("this process may not open 6,000 files")
    with flooded_backend(tmp_path_factory.mktemp("flooded")) as running:
        yield running


@pytest.fixture
def growth(backend: FloodedBackend) -> Iterator[list[int]]:
    """The growth of memory that a test has seen; afterwards it comes back, and no connection is left."""
    before = backend.memory()
    seen: list[int] = []
    yield seen
    wait_until(lambda: backend.connections() == 0, "connections stay open")
    wait_until(lambda: backend.memory() - before <= MOST_LEFT, "the memory does not come back")
    assert max(seen) <= MOST_GROWTH, seen


def alive(prober: Prober) -> None:
    """Whether `/health` answered every time. How fast it did is a figure of the benchmarks."""
    assert set(prober.statuses) == {200}


def cookie_of(backend: FloodedBackend) -> str:
    """Sign in, and return the header of the session."""
    _, answer = backend.ask("/login", method="POST", body=f"token={TOKEN}".encode())
    value = answer.partition(f"{COOKIE}=".encode())[2].partition(b";")[0].decode()
    return f"Cookie: {COOKIE}={value}"


@pytest.mark.parametrize(
    ("count", "start"),
    [
        (5000, b""),
        (5000, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "),
        (1500, head("/login", method="POST", length=100) + b"token="),
    ],
    ids=["nothing", "half a head", "half a form"],
)
def test_half_open_requests(backend: FloodedBackend, growth: list[int], count: int, start: bytes) -> None:
    """Those that have waited longest make room, and one line says so; a request that is sent at once is answered."""
    before, lines = backend.memory(), len(backend.lines())
    with Prober(backend) as prober, Clients(backend) as clients:
        for _ in range(count):
            clients.send(start)
        growth.append(backend.memory() - before)
        # A connection is accepted before an older one is closed for it.
        wait_until(lambda: backend.connections() <= 1000, "older connections are closed")
        assert backend.ask("/api/providers", BEARER)[0] == 200
    alive(prober)
    assert sum("too many connections" in line for line in backend.lines()[lines:]) <= 2


def test_a_hundred_unfinished_bodies(backend: FloodedBackend, growth: list[int]) -> None:
    """One large body is read at a time; the others wait unread, and smaller requests are answered."""
    before = backend.memory()
    with Prober(backend) as prober, Clients(backend) as clients:
        for _ in range(100):
            clients.send(head("/v1/chat/completions", BEARER, method="POST", length=60 * _MIB))
        taken = clients.push(BODY)
        assert max(taken) == len(BODY)
        assert sorted(taken)[-2] < 8 * _MIB
        growth.append(backend.memory() - before)
        small = b'{"model": "nobody", "messages": []}'
        assert backend.ask("/v1/chat/completions", BEARER, JSON, method="POST", body=small)[0] in (400, 503)
    alive(prober)


def test_a_hundred_bodies_in_chunks(backend: FloodedBackend, growth: list[int]) -> None:
    """A body without a length is read beside others up to the size of a small one."""
    before = backend.memory()
    chunks = b"%x\r\n%s\r\n" % (64 * 1024, b" " * 64 * 1024) * 200
    with Prober(backend) as prober, Clients(backend) as clients:
        for _ in range(100):
            clients.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                + BEARER.encode()
                + b"\r\n\r\n"
            )
        clients.push(chunks)
        growth.append(backend.memory() - before)
    alive(prober)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/embeddings/wrong/v1/embeddings", "/console/theme"])
def test_nothing_is_read_of_a_strangers_body(backend: FloodedBackend, growth: list[int], path: str) -> None:
    """Each of a hundred is refused before it has sent more than fits the buffers, and its connection is closed."""
    before = backend.memory()
    with Prober(backend) as prober, Clients(backend) as clients:
        for _ in range(100):
            client = clients.send(head(path, method="POST", length=60 * _MIB))
            assert status_of(client.recv(65536)) == 401
        assert max(clients.push(BODY)) < 8 * _MIB
        growth.append(backend.memory() - before)
        wait_until(lambda: backend.connections() <= 1, "a refused connection stays open")
    alive(prober)


def test_a_body_is_not_asked_for_before_its_sender_is_known(backend: FloodedBackend) -> None:
    """A client that asks before it sends a body is asked for it with the token only."""
    asks = ("Expect: 100-continue", "Content-Type: application/json")
    for fields, start in (((), 401), (("Authorization: Bearer wrong",), 401), ((BEARER,), 100)):
        with Clients(backend) as clients:
            client = clients.send(head("/v1/chat/completions", *asks, *fields, method="POST", length=100))
            assert status_of(client.recv(65536)) == start


def test_two_thousand_event_streams(backend: FloodedBackend, growth: list[int]) -> None:
    """A session has 32, and the token 256; the rest is told so. Signing out ends the session's streams at once."""
    before = backend.memory()
    cookie = cookie_of(backend)
    with Prober(backend) as prober, Clients(backend) as clients:
        statuses = Counter(
            status_of(clients.send(head("/console/activity/live", field)).recv(65536))
            for field in [cookie] * 1000 + [BEARER] * 1000
        )
        assert statuses == {200: 32 + 256, 429: 2000 - 32 - 256}
        growth.append(backend.memory() - before)
        assert backend.ask("/console/activity", cookie)[0] == 200
        page = backend.ask("/console/activity", cookie)[1].decode()
        csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
        out = backend.ask("/console/sign-out", cookie, f"X-Isabella-Csrf: {csrf}", method="POST")
        assert out[0] == 303
        for client in clients.open[:32]:
            assert client.recv(65536).endswith((b"0\r\n\r\n", b"")), "the stream has an end"
            while client.recv(65536):
                pass
        assert backend.ask("/console/activity", cookie)[0] == 401
    alive(prober)


def test_sixty_four_file_descriptors(tmp_path: Path) -> None:
    """With more half-open requests and streams than descriptors it sheds load, logs little, and recovers."""
    with flooded_backend(tmp_path, files=64) as backend:
        with Prober(backend) as prober, Clients(backend) as clients:
            for _ in range(1500):
                clients.send(b"GET / HTTP/1.1\r\n")
            assert backend.process.num_fds() <= 64
            assert backend.ask("/api/providers", BEARER)[0] == 200
        alive(prober)
        wait_until(lambda: backend.connections() == 0, "connections stay open")
        with Clients(backend) as clients:
            began = [status_of(clients.send(head("/console/activity/live", BEARER)).recv(65536)) for _ in range(100)]
            streams = began.count(200)
            assert began == [200] * streams + [503] * (100 - streams)
            # No admitted request is broken for a later one; a refused one is closed after its answer.
            wait_until(lambda: backend.connections() == streams, "a refused connection stays open")
            assert streams
            assert backend.process.num_fds() <= 64
        wait_until(lambda: backend.connections() == 0, "connections stay open")
        assert backend.ask("/api/providers", BEARER)[0] == 200
        events = Counter(json.loads(line)["event"] for line in backend.lines())
        assert events["too many connections"] <= 2
        assert sum(events.values()) < 20, events


@pytest.mark.skipif(
    not hasattr(psutil.Process, "rlimit"), reason="the limit of a running process can be set on Linux"
)
def test_too_little_memory(tmp_path: Path) -> None:
    """A body that does not fit is refused, one line says so, and when there is more memory the same one is read."""
    with flooded_backend(tmp_path) as backend:
        whole = int(backend.process.memory_info().vms)
        limits = backend.process.rlimit(psutil.RLIMIT_AS)
        backend.process.rlimit(psutil.RLIMIT_AS, (whole + 40 * _MIB, limits[1]))
        with Prober(backend) as prober:
            for _ in range(5):
                status, _ = backend.ask("/v1/chat/completions", BEARER, JSON, method="POST", body=BODY)
                assert status in (0, 503), status
        # A request that comes when nothing at all is left may fail, too.
        assert prober.statuses[-1] == 200
        backend.process.rlimit(psutil.RLIMIT_AS, limits)
        assert backend.ask("/v1/chat/completions", BEARER, JSON, method="POST", body=BODY)[0] == 400
        assert sum('"level": "error"' in line for line in backend.lines()) <= 3
