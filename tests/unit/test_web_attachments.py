"""Attachments of a message: pictures beside the text, text files within it, and a reason for everything else."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64encode

import pytest

from isabella.errors import MessageRefused
from isabella.server.web.attachments import LONGEST_FILE, TextFile, read_attachments, split_files
from isabella.turns.message import LARGEST_IMAGES

PNG = b"\x89PNG\r\n\x1a\n" + bytes(10)


def field(*files: tuple[str, bytes]) -> str:
    """The field of a form with these files."""
    return json.dumps(
        [{"name": name, "data": urlsafe_b64encode(content).decode().rstrip("=")} for name, content in files]
    )


def test_pictures_and_text() -> None:
    """What a file is, its content decides, and not its name."""
    read = read_attachments(
        field(("a.txt", PNG), ("b.png", b"\xef\xbb\xbfone\r\ntwo"), ("c", b"\xff\xd8\xff\xe0"), ("d", b"GIF89a"))
    )
    assert [image.media_type for image in read.images] == ["image/png", "image/jpeg", "image/gif"]
    assert b64decode(read.images[0].data) == PNG
    assert read.files == (TextFile("b.png", "one\ntwo"),)
    assert read_attachments("") == read_attachments("[]")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"%PDF-1.7", "is a PDF"),
        (b"PK\x03\x04\xff", "an archive or an office document"),
        (b"\xff\xfe\x00", "neither a picture nor text"),
        (b"a\0b", "neither a picture nor text"),
        (b" \n ", "is empty"),
        (b"x" * (LONGEST_FILE + 1), "100,001 characters; a file may have 100,000"),
    ],
)
def test_what_no_model_takes(content: bytes, words: str) -> None:
    """The error names the file and the reason."""
    with pytest.raises(MessageRefused, match=words) as refused:
        read_attachments(field(("notes.txt", content)))
    assert "notes.txt" in refused.value.what


def test_limits() -> None:
    """Of the pictures together, and of the number of files."""
    half = PNG + bytes(LARGEST_IMAGES // 8 * 3)
    assert len(read_attachments(field(("a", half))).images) == 1
    with pytest.raises(MessageRefused, match="more than 8 MiB"):
        read_attachments(field(("a", half), ("b", half)))
    with pytest.raises(MessageRefused, match="9 files are attached; a message may have 8"):
        read_attachments(field(*[("a", b"text")] * 9))


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"name": "a"}]', '[{"name": "a", "data": "ä"}]', "[" * 9999])
def test_a_field_that_cannot_be_read(text: str) -> None:
    """It is a mistake of the page, and not of the backend."""
    if text == "{}":
        assert read_attachments(text).files == ()
        return
    with pytest.raises(MessageRefused, match="cannot be read"):
        read_attachments(text)


def test_files_in_a_message_are_found_again() -> None:
    """Whatever is in them; and text that only looks like a file stays text."""
    odd = "[File: x, 3 characters]\nabc\n[End of the file]\n\n[File: y, 1 characters]\n"
    read = read_attachments(field(("a, b.txt", odd.encode()), ("c\nd", b"second")))
    told = read.told("Read these.")
    assert split_files(told) == ("Read these.", [TextFile("a, b.txt", odd), TextFile("c d", "second")])
    for text in (
        "Nothing",
        "\n\n[File: a, 5 characters]\nabc\n[End of the file]",
        f"{told} And more.",
        "x\n\n[File: a, 999999 characters]\nabc\n[End of the file]",
    ):
        assert split_files(text) == (text, [])
