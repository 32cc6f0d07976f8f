"""Make the secrets of compose.yaml, once: `python3 deploy/make_secrets.py [FOLDER]`. Existing files stay as they are.

FOLDER/secrets gets random passwords, the master key and the token of the backend. Its folder `config` gets `.env`: a
copy of the project's, if that sets a key of a vendor, otherwise keys of practice vendors. The profile is printed.

The folder is closed to other users. What is in it is readable, because the users in containers are others.
"""

from __future__ import annotations

import re
import secrets
import shutil
import sys
from pathlib import Path

#: Each practice vendor: the prefix of its keys, and the path of its base URL.
VENDORS = {
    "cerebras": ("csk-", "cerebras/v1"),
    "groq": ("gsk_", "groq/openai/v1"),
    "mistral": ("", "mistral/v1"),
    "longcat": ("ak_", "longcat/openai/v1"),
}
_VENDOR_KEY = re.compile(
    r"^\s*(?:export\s+)?(?!LETTA_)[A-Z0-9_]+(_API_KEY(_FILE|_COMMAND)?|_BASE_URL)\s*=\s*\S", re.MULTILINE
)
_PRACTICE = "# Practice vendors. Put a real key in place of these lines, and run `make stack` again.\n"


def main(folder: Path, project: Path) -> None:
    """Make what is missing."""
    passwords = folder / "secrets"
    config = passwords / "config"
    for path, mode in ((passwords, 0o700), (config, 0o755)):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
    for name in ("postgres-password", "database-password", "letta-password", "master-key", "token"):
        _write(passwords / name, secrets.token_hex(32))
    password = (passwords / "database-password").read_text().strip()
    _write(passwords / "database-url", f"postgresql://letta:{password}@postgres:5432/letta")
    if not (config / ".env").exists():
        own = project / ".env"
        if own.exists() and _VENDOR_KEY.search(own.read_text()):
            shutil.copyfile(own, config / ".env")
            (config / ".env").chmod(0o644)
        else:
            _write(config / ".env", _practice_keys())
    if (config / ".env").read_text().startswith(_PRACTICE):
        print("practice")


def _practice_keys() -> str:
    lines = []
    for vendor, (prefix, path) in VENDORS.items():
        lines.append(f"{vendor.upper()}_API_KEY={prefix}{secrets.token_hex(20)}\n")
        lines.append(f"{vendor.upper()}_BASE_URL=http://practice:8090/{path}\n")
    return _PRACTICE + "".join(lines)


def _write(path: Path, text: str) -> None:
    if not path.exists():
        path.write_text(text if text.endswith("\n") else f"{text}\n")
        path.chmod(0o644)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here, here.parent)
