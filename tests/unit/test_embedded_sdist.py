"""Fetching a release: which file, from where, and what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from isabella.embedded import Step, sdist
from isabella.errors import InstallFailed
from isabella.letta.releases import pinned_hashes

JSON = "application/vnd.pypi.simple.v1+json"
RELEASE = "9.9.9"


def archive(release: str = RELEASE, names: tuple[str, ...] = ("uv.lock", "alembic.ini", "pyproject.toml")) -> bytes:
    """A source distribution with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name if name.startswith((".", "/")) else f"letta-{release}/{name}")
            tar.addfile(entry, io.BytesIO(b""))
    return buffer.getvalue()


@pytest.fixture
def events() -> list[Step]:
    """What was told."""
    return []


@pytest.fixture
def index(httpserver: HTTPServer) -> str:
    """Address of the package index."""
    return httpserver.url_for("/simple")


def offer(httpserver: HTTPServer, content: bytes, *, release: str = RELEASE, sha256: str | None = None) -> None:
    """Let the index offer one file of a release."""
    file = {
        "filename": f"letta-{release}.tar.gz",
        "url": "../../files/it.tar.gz",
        "hashes": {"sha256": sha256 or hashlib.sha256(content).hexdigest()},
    }
    page = {"files": [{"filename": f"letta-{release}-py3-none-any.whl", "url": "no", "hashes": {}}, file]}
    httpserver.expect_request("/simple/letta/").respond_with_json(page, content_type=JSON)
    httpserver.expect_request("/files/it.tar.gz").respond_with_data(content)


def no_pip(*_: object) -> Path:
    """In place of pip, where it must not be asked."""
    raise AssertionError("pip was not to be asked")


def test_a_release_is_fetched_and_checked(
    httpserver: HTTPServer, index: str, tmp_path: Path, events: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sdist, not the wheel, comes from the index's page, relative addresses and all."""
    monkeypatch.setattr(sdist, "_from_pip", no_pip)
    content = archive()
    offer(httpserver, content)
    assert sdist.fetch(RELEASE, tmp_path, events.append, index=index).read_bytes() == content


def test_a_release_without_a_pinned_hash_is_said_to_be_so(
    httpserver: HTTPServer, index: str, tmp_path: Path, events: list[Step]
) -> None:
    """Where only the index vouches for a file, the operator is told."""
    offer(httpserver, archive())
    sdist.fetch(RELEASE, tmp_path, events.append, index=index)
    assert any(event.state == "note" and "verified only against the index" in event.detail for event in events)


def test_a_known_release_must_have_its_pinned_hash(
    httpserver: HTTPServer, index: str, tmp_path: Path, events: list[Step]
) -> None:
    """An index that offers another file, with that file's right hash, is not believed."""
    offer(httpserver, archive("0.16.8"), release="0.16.8")
    with pytest.raises(InstallFailed, match="sha256") as failure:
        sdist.fetch("0.16.8", tmp_path, events.append, index=index)
    assert failure.value.remedy


def test_a_file_that_is_not_what_the_index_says_is_refused(
    httpserver: HTTPServer, index: str, tmp_path: Path, events: list[Step]
) -> None:
    """A damaged download is noticed."""
    offer(httpserver, archive(), sha256="0" * 64)
    with pytest.raises(InstallFailed, match="sha256"):
        sdist.fetch(RELEASE, tmp_path, events.append, index=index)


def test_a_release_that_does_not_exist(
    httpserver: HTTPServer, index: str, tmp_path: Path, events: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the index and the releases that would work; pip is not asked for what is not there."""
    monkeypatch.setattr(sdist, "_from_pip", no_pip)
    offer(httpserver, archive())
    with pytest.raises(InstallFailed, match=r"There is no Letta 8\.8\.8 on") as failure:
        sdist.fetch("8.8.8", tmp_path, events.append, index=index)
    assert "0.16.8" in str(failure.value)


@pytest.mark.parametrize("answer", ["html", "500", "broken", "absent", "silent"])
def test_pip_is_asked_where_the_index_is_no_use(
    answer: str,
    httpserver: HTTPServer,
    index: str,
    tmp_path: Path,
    events: list[Step],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An index that speaks only HTML, fails, lacks a release we know, or is not there: pip knows the machine."""
    page = httpserver.expect_request("/simple/letta/")
    match answer:
        case "html":
            page.respond_with_data("<html></html>", content_type="text/html")
        case "500":
            page.respond_with_data("", status=500)
        case "broken":
            page.respond_with_data("{", content_type=JSON)
        case "absent":
            page.respond_with_json({"files": []}, content_type=JSON)
        case "silent":
            index = "http://user:hunter22@127.0.0.1:9/simple"
    brought = tmp_path / "brought"
    brought.write_bytes(b"what pip brought")
    monkeypatch.setattr(sdist, "_from_pip", lambda *_: brought)
    monkeypatch.setattr(sdist, "pinned_hashes", lambda: {RELEASE: hashlib.sha256(brought.read_bytes()).hexdigest()})
    assert sdist.fetch(RELEASE, tmp_path, events.append, index=index) == brought
    assert any("using pip instead" in event.detail for event in events)
    assert not any("hunter22" in event.detail for event in events)


def test_what_pip_brings_is_checked_as_well(
    tmp_path: Path, events: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second way is no way around the hash, and without any hash nothing is installed."""
    brought = tmp_path / "brought"
    brought.write_bytes(b"something else")
    monkeypatch.setattr(sdist, "_from_pip", lambda *_: brought)
    for release in ("0.16.8", RELEASE):
        with pytest.raises(InstallFailed, match="not installed"):
            sdist.fetch(release, tmp_path, events.append, index="http://127.0.0.1:9/simple")


def test_the_index_of_the_machine() -> None:
    """Those for uv count before those for pip, an index may have a name, and PyPI is the default."""
    assert sdist.index_url({}) == "https://pypi.org/simple"
    assert sdist.index_url({"PIP_INDEX_URL": "https://p/simple"}) == "https://p/simple"
    assert sdist.index_url({"PIP_INDEX_URL": "https://p/s", "UV_DEFAULT_INDEX": "corp=https://u/s"}) == "https://u/s"
    assert sdist.index_url({"UV_INDEX_URL": "https://u/s?a=b"}) == "https://u/s?a=b"


def test_unpacking_gives_the_tree(tmp_path: Path) -> None:
    """What Isabella needs of a release is there."""
    path = tmp_path / "it.tar.gz"
    path.write_bytes(archive())
    assert (sdist.unpack(path, tmp_path, RELEASE) / "uv.lock").is_file()


@pytest.mark.parametrize("name", ["../outside", "/outside"])
def test_an_archive_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    """No member is written outside."""
    folder = tmp_path / "inside"
    folder.mkdir()
    path = tmp_path / "it.tar.gz"
    path.write_bytes(
        archive(names=("uv.lock", "alembic.ini", "pyproject.toml", f"../{name}" if name[0] == "." else name))
    )
    with suppress(InstallFailed):
        sdist.unpack(path, folder, RELEASE)
    assert not (tmp_path / "outside").exists()
    assert not Path("/outside").exists()


@pytest.mark.parametrize(
    "content",
    [b"no archive", archive(names=("pyproject.toml",)), archive()[:60]],
    ids=["no archive", "without a lock", "cut short"],
)
def test_an_archive_that_is_no_letta_is_refused(content: bytes, tmp_path: Path) -> None:
    """Not an archive, cut short, or a wheel's worth of files without lock and migrations (fact R2)."""
    path = tmp_path / "it.tar.gz"
    path.write_bytes(content)
    with pytest.raises(InstallFailed):
        sdist.unpack(path, tmp_path, RELEASE)


def test_every_release_of_the_facts_is_pinned() -> None:
    """The releases that were measured can be installed without trusting the index."""
    assert set(pinned_hashes()) == {f"0.16.{patch}" for patch in (0, 1, 2, 4, 5, 6, 7, 8)}
    assert all(len(value) == 64 for value in pinned_hashes().values())
