"""The file of a backup: what is written comes back, and nothing else ever does."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
from pyrage import x25519

from isabella.embedded import archive
from isabella.embedded.archive import Part
from isabella.errors import BackupRefused, EmbeddedError, NoKeyOpens

KEY = x25519.Identity.generate()
ABOUT = b'{"rows": {"messages": 3}}'
DATABASE = [os.urandom(300_000) for _ in range(4)]


def parts() -> Iterator[Part]:
    """A small part, and one in pieces."""
    yield "backup.json", [ABOUT]
    yield "database/", iter(DATABASE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An archive of these parts."""
    path = tmp_path / "isabella.age"
    archive.write(path, [KEY.to_public()], parts())
    return path


def read(path: Path, key: x25519.Identity = KEY) -> list[tuple[str, bytes]]:
    """Everything in an archive."""
    return list(archive.read(path, [key]))


def test_the_parts_come_back_as_they_were_written(file: Path) -> None:
    """In their order, a long one in its pieces; the file is for its owner only, and nothing is left beside it."""
    assert read(file) == [("backup.json", ABOUT), *(("database", piece) for piece in DATABASE)]
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert ABOUT not in file.read_bytes()


def test_it_can_be_opened_without_isabella(file: Path) -> None:
    """It is what `age -d | tar x` expects, and the pieces of a part in their order are the part."""
    with tarfile.open(fileobj=io.BytesIO(pyrage.decrypt(file.read_bytes(), [KEY]))) as tar:
        contents = {member.name: tar.extractfile(member) for member in tar}
        found = {name: content.read() for name, content in contents.items() if content is not None}
    assert b"".join(found[name] for name in sorted(found) if name.startswith("database/")) == b"".join(DATABASE)
    assert [part["name"] for part in json.loads(found["manifest.json"])["parts"]] == ["backup.json", "database/"]


def test_a_flipped_bit_is_refused_wherever_it_is(file: Path) -> None:
    """One in the header, in the database, in the manifest, at the very end: the part is named."""
    data, named = file.read_bytes(), set()
    for at in [*range(0, 400, 13), *range(400, len(data), len(data) // 40), len(data) - 1]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        file.write_bytes(damaged)
        with pytest.raises(BackupRefused) as caught:
            read(file)
        assert caught.value.remedy
        named |= {part for part in ("header", "beginning", "the part database") if part in caught.value.what}
    assert named == {"header", "beginning", "the part database"}


def test_one_that_was_cut_off_is_refused(file: Path) -> None:
    """Anywhere, also between two of the units of age."""
    data = file.read_bytes()
    for size in [0, 10, 150, *range(400, len(data), 65_552), len(data) - 1]:
        file.write_bytes(data[:size])
        with pytest.raises(BackupRefused):
            read(file)


def test_another_key_does_not_open_it(file: Path) -> None:
    """This is told apart from a damage, as far as that can be known."""
    other = x25519.Identity.generate()
    with pytest.raises(NoKeyOpens, match="No key here opens"):
        read(file, other)
    assert archive.opens(file, [other, KEY])
    assert not archive.opens(file, [other])
    file.write_bytes(b"something else")
    assert archive.opens(file, [other])
    with pytest.raises(BackupRefused, match="header"):
        read(file)


def _sealed(path: Path, members: dict[str, bytes]) -> None:
    """Write members as somebody could who has the public key only."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path.write_bytes(pyrage.encrypt(out.getvalue(), [KEY.to_public()]))


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"backup.json": ABOUT}, "manifest.json"),
        ({"backup.json": ABOUT, "manifest.json": b"{"}, "manifest.json"),
        ({"backup.json": ABOUT, "manifest.json": b'{"parts": []}'}, "backup.json"),
        ({"manifest.json": b'{"parts": [{"name": "database/", "bytes": 1, "sha256": ""}]}'}, "database"),
        ({"manifest.json": b'{"parts": []}', "backup.json": ABOUT}, "backup.json"),
    ],
)
def test_parts_and_manifest_have_to_agree(tmp_path: Path, members: dict[str, bytes], named: str) -> None:
    """A part that is missing, or is another one than the manifest says, is named."""
    path = tmp_path / "forged.age"
    _sealed(path, members)
    with pytest.raises(BackupRefused, match=rf"the part {named}"):
        read(path)


def test_a_source_that_fails_leaves_no_file(tmp_path: Path) -> None:
    """Its error is raised as it is, and a generator is closed, with what it runs."""
    closed = []

    def failing() -> Iterator[bytes]:
        try:
            yield b"begun"
            raise EmbeddedError("The database has ended.")
        finally:
            closed.append(True)

    with pytest.raises(EmbeddedError, match="The database has ended"):
        archive.write(tmp_path / "a.age", [KEY.to_public()], [("database/", failing())])
    assert closed == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """With what to do."""
    with pytest.raises(EmbeddedError, match=r"missing/a\.age cannot be written") as caught:
        archive.write(tmp_path / "missing" / "a.age", [KEY.to_public()], parts())
    assert "ISABELLA_BACKUP_FOLDER" in str(caught.value)
