"""Pictures and text files that are attached to a message on the chat page.

Pictures go to the model beside the text. A text file becomes a part of the text, with its name.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Iterator
from dataclasses import dataclass

from isabella.errors import MessageRefused
from isabella.letta.messages import Image
from isabella.system.english import english
from isabella.turns.message import too_large

#: Of a form with attachments, in bytes.
LARGEST_FORM = 12 * 1024 * 1024
#: How many files a message may have.
MOST_FILES = 8
#: Of a text file, in characters.
LONGEST_FILE = 100_000
_LONGEST_NAME = 200

#: How a picture of each type begins.
_BEGINNINGS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)
#: What other files begin with, for a clearer message than that they are not text.
_KNOWN_OTHERS = ((b"%PDF-", english("a PDF")), (b"PK\x03\x04", english("an archive or an office document")))
_HEAD = re.compile(r"\n\n\[File: ([^\n]{1,200}), (\d{1,6}) characters\]\n")
_TAIL = "\n[End of the file]"


@dataclass(frozen=True)
class TextFile:
    """A text file in a message."""

    name: str
    text: str


@dataclass(frozen=True)
class Attachments:
    """The attachments of a message."""

    images: tuple[Image, ...] = ()
    files: tuple[TextFile, ...] = ()

    def told(self, message: str) -> str:
        """Return a message with the files behind its text."""
        parts = (f"\n\n[File: {file.name}, {len(file.text)} characters]\n{file.text}{_TAIL}" for file in self.files)
        return message + "".join(parts)


def read_attachments(field: str) -> Attachments:
    """Return the attachments in the field of a form: a JSON list of objects with `name` and `data` in base64url.

    Raises `MessageRefused` for what no model takes.
    """
    images: list[Image] = []
    files: list[TextFile] = []
    for name, content in _items(field):
        media_type = next((type for begin, type in _BEGINNINGS if begin.match(content)), None)
        if media_type is None:
            files.append(TextFile(name, _text(name, content)))
        else:
            images.append(Image(media_type, b64encode(content).decode()))
    if (problem := too_large(images)) is not None:
        raise MessageRefused(problem, remedy=english("Send smaller ones, or fewer at once."))
    return Attachments(tuple(images), tuple(files))


def split_files(message: str) -> tuple[str, list[TextFile]]:
    """Return the text of a message, and the files behind it."""
    files: list[TextFile] = []
    first, position = None, 0
    while (head := _HEAD.search(message, position) if first is None else _HEAD.match(message, position)) is not None:
        end = head.end() + int(head[2])
        if not message.startswith(_TAIL, end):
            if first is not None:
                break
            position = head.end()
            continue
        first = head.start() if first is None else first
        files.append(TextFile(head[1], message[head.end() : end]))
        position = end + len(_TAIL)
    if first is None or position != len(message):
        # Text like that of a file, but in the middle.
        return message, []
    return message[:first], files


def _items(field: str) -> Iterator[tuple[str, bytes]]:
    if not field:
        return
    try:
        listed = json.loads(field)
        items = [(str(item["name"]), urlsafe_b64decode(str(item["data"]) + "==")) for item in listed]
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
        raise MessageRefused(
            english("The attachments cannot be read."), remedy=english("Reload the page, and attach them again.")
        ) from None
    if len(items) > MOST_FILES:
        raise MessageRefused(
            english("%(count)s files are attached; a message may have %(most)s.", count=len(items), most=MOST_FILES),
            remedy=english("Send fewer."),
        )
    for name, content in items:
        name = "".join(character if character.isprintable() else " " for character in name).strip()
        yield name[-_LONGEST_NAME:] or "file", content


def _text(name: str, content: bytes) -> str:
    """Return the content of a text file; raise `MessageRefused` if it is none, is empty, or is too long."""
    other = next((what for begin, what in _KNOWN_OTHERS if content.startswith(begin)), None)
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        text = "\0"
    if other is not None or "\0" in text:
        raise MessageRefused(
            english("%(name)s is %(what)s.", name=name, what=other or english("neither a picture nor text")),
            remedy=english("Attach PNG, JPEG, GIF or WebP pictures, or text in UTF-8."),
        )
    if not text.strip():
        raise MessageRefused(english("%(name)s is empty.", name=name), remedy=english("Attach another file."))
    if len(text) > LONGEST_FILE:
        raise MessageRefused(
            english(
                "%(name)s has %(count)s characters; a file may have %(most)s.",
                name=name,
                count=len(text),
                most=LONGEST_FILE,
            ),
            remedy=english("Attach a part of it, or several parts one after the other."),
        )
    return text
