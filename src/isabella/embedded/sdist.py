"""Source distributions of Letta: downloaded by release, verified against a hash, and unpacked safely.

The JSON API of the package index (PEP 691) is tried first. If the index cannot be used that way, pip downloads the
file, with the machine's configuration of indexes, mirrors and credentials. The file is verified in both cases.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpx2

from isabella.embedded import child_processes
from isabella.embedded.progress import Progress, Step
from isabella.errors import InstallFailed
from isabella.letta.releases import pinned_hashes
from isabella.system.redaction import redact

_PYPI = "https://pypi.org/simple"
_JSON = "application/vnd.pypi.simple.v1+json"
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
_MOST_BYTES = 100 * 1024 * 1024


class IndexUnusable(Exception):
    """The package index cannot be used by PEP 691: it does not answer, answers with an error, or only with HTML."""


def index_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the package index that uv's or pip's variables configure, otherwise PyPI."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        value = environ.get(name, "").strip()
        if value:
            # uv allows a name before the URL: `name=https://…`.
            before, _, after = value.partition("=")
            return after if "://" not in before and "://" in after else value
    return _PYPI


def fetch(release: str, folder: Path, progress: Progress, *, index: str | None = None) -> Path:
    """Download the sdist of a release into a folder, verify its hash, and return the file.

    `progress` receives notes if pip is used, or the hash of the release is not pinned. `index` is the URL of the
    package index, by default the one that the machine is configured for.
    """
    pinned = pinned_hashes().get(release)
    index = index or index_url()
    try:
        path, offered = _from_index(release, folder, index)
    except IndexUnusable as reason:
        progress(Step("fetch", "note", f"{reason}; using pip instead"))
        path, offered = _from_pip(release, folder, reason), None
    expected = pinned or offered
    if expected is None:
        raise InstallFailed(
            f"The hash of Letta {release} is unknown, so it was not installed.",
            remedy=f"Releases with a known hash: {', '.join(pinned_hashes())}.",
        )
    if pinned is None:
        progress(Step("fetch", "note", f"Letta {release} has no pinned hash: it is verified only against the index"))
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallFailed(
            f"The source distribution of Letta {release} has sha256 {actual}, not {expected}; it was not installed.",
            remedy="A proxy or mirror may have changed it. Repeat the command on another network.",
        )
    return path


def unpack(archive: Path, folder: Path, release: str) -> Path:
    """Unpack an sdist below a folder, and return the tree. Members outside the folder are refused."""
    try:
        with tarfile.open(archive) as tar:
            _extract(tar, folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InstallFailed(
            f"The source distribution of Letta {release} cannot be unpacked: {error}.",
            remedy="Repeat the command.",
        ) from error
    tree = folder / f"letta-{release}"
    missing = [name for name in ("uv.lock", "alembic.ini", "pyproject.toml") if not (tree / name).is_file()]
    if missing:
        raise InstallFailed(
            f"The source distribution of Letta {release} lacks {', '.join(missing)}; Isabella cannot run it.",
            remedy=f"Releases known to work: {', '.join(pinned_hashes())}.",
        )
    return tree


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    # Python before 3.11.4, such as Debian 12's, has no filters: only plain files and folders inside are extracted.
    members = tar.getmembers()
    for member in members:
        inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
        if not inside or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is not a plain file or folder inside the archive")
    tar.extractall(folder, members=members)  # noqa: S202 - checked above


def _from_index(release: str, folder: Path, index: str) -> tuple[Path, str | None]:
    page_url = f"{index.rstrip('/')}/letta/"
    shown = _without_credentials(index)
    try:
        with httpx2.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
            answer = client.get(page_url, headers={"Accept": _JSON})
            answer.raise_for_status()
            if not answer.headers.get("content-type", "").startswith(_JSON):
                raise IndexUnusable(f"{shown} does not offer the JSON API")
            name = f"letta-{release}.tar.gz"
            file = next((file for file in answer.json().get("files", ()) if file.get("filename") == name), None)
            if file is None:
                if release in pinned_hashes():
                    raise IndexUnusable(f"{shown} does not have letta {release}")
                raise InstallFailed(
                    f"There is no Letta {release} on {shown}.",
                    remedy=f"Releases known to work: {', '.join(pinned_hashes())}.",
                )
            path = folder / name
            with client.stream("GET", urljoin(str(answer.url), file["url"])) as stream, path.open("wb") as target:
                stream.raise_for_status()
                for block in stream.iter_bytes():
                    target.write(block)
                    if target.tell() > _MOST_BYTES:
                        raise InstallFailed(
                            f"The source distribution of Letta {release} on {shown} is larger than 100 MiB.",
                            remedy=f"Check the package index {shown}: the distributions of Letta are far smaller.",
                        )
            return path, file.get("hashes", {}).get("sha256")
    except httpx2.HTTPStatusError as error:
        raise IndexUnusable(f"{shown} answered {error.response.status_code}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexUnusable(f"{shown} could not be queried ({type(error).__name__})") from error


def _from_pip(release: str, folder: Path, reason: IndexUnusable) -> Path:
    import uv

    finished = subprocess.run(
        [
            *(uv.find_uv_bin(), "tool", "run", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary", "letta", "--dest", str(folder), f"letta=={release}"),
        ],
        cwd=folder,
        env=child_processes.install_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    path = folder / f"letta-{release}.tar.gz"
    if finished.returncode != 0 or not path.is_file():
        if "No space left" in finished.stderr:
            raise InstallFailed(
                f"The disk is full: Letta {release} could not be downloaded to {folder}.",
                remedy="Free about 1.5 GB, or set ISABELLA_HOME to a folder on another disk.",
            )
        last = redact("\n".join(finished.stderr.strip().splitlines()[-3:]))
        raise InstallFailed(
            f"Letta {release} could not be downloaded: {reason}; pip failed as well: {last or 'no reason given'}",
            remedy="Check the network connection, the proxy (HTTPS_PROXY) and the index (UV_DEFAULT_INDEX).",
        )
    return path


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
