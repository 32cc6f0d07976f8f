"""The Markdown export of an agent as one ZIP file, for downloads and uploads."""

from __future__ import annotations

import tempfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import anyio

from isabella.agents.exports.folder import FolderWriter, temporary_folder
from isabella.agents.exports.markdown import MANIFEST, write_markdown
from isabella.agents.import_export import configured_secrets
from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.errors import ExportRefused

#: The first bytes of a ZIP file.
MAGIC = b"PK\x03\x04"

_MOST_BYTES = 1_000_000_000  # of all files that are unpacked
_MOST_FILES = 100_000


async def export_zip(service: AgentService, record: AgentRecord, name: str) -> IO[bytes]:
    """Return an open file without a name: a ZIP file with the folder `name`, the complete export of an agent.

    It is made in Isabella's home, and needs little memory. The agent's turns wait while Letta is read. Raises
    `ExportRefused`, `ExportFailed` or `LettaError`.
    """
    home = service.connection.home
    with temporary_folder(home, secrets=configured_secrets(service.models, service.connection)) as folder:
        async with service.memory.hold(record.id):
            await write_markdown(service, record, folder)
        return await anyio.to_thread.run_sync(partial(_packed, folder, name, home))


def _packed(folder: FolderWriter, name: str, home: Path) -> IO[bytes]:
    packed = tempfile.TemporaryFile(dir=home)  # noqa: SIM115 - it is returned open
    try:
        with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
            for path in folder.written:
                archive.write(folder.root / path, f"{name}/{path}")
    except BaseException:
        packed.close()
        raise
    packed.seek(0)
    return packed


def unpack(content: IO[bytes], folder: Path) -> Path:
    """Unpack a ZIP file of `export_zip` into a folder, and return the folder of the export in it.

    Raises `ExportRefused`. The export itself is not checked.
    """
    try:
        with ZipFile(content) as archive:
            members = archive.infolist()
            if len(members) > _MOST_FILES or sum(one.file_size for one in members) > _MOST_BYTES:
                raise ExportRefused(
                    f"Unpacked, the ZIP file has more than {_MOST_BYTES // 1_000_000:,} MB or {_MOST_FILES:,} files.",
                    remedy="Unpack it, and import the folder with `isabella agents import`.",
                )
            tops = [path.parent for path in map(PurePosixPath, archive.namelist()) if path.name == MANIFEST]
            if len(tops) != 1 or len(tops[0].parts) > 1:
                raise ExportRefused(
                    f"The ZIP file is not an Isabella export, or is incomplete: it has no {MANIFEST}.",
                    remedy="Choose the file that Isabella exported.",
                )
            # No member gets out of the folder, and none is larger than it says.
            archive.extractall(folder)
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise ExportRefused(
            f"The ZIP file is damaged, or of a kind that is not read: {str(error)[:200]}.",
            remedy="Choose the file that Isabella exported.",
        ) from None
    return folder / tops[0]
