"""`python -m compat [RELEASE …]`: run the cases on these releases, and write the table."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

from compat import ROOT, table
from compat.cases import OPEN, SEALING, Case
from compat.target import open_target
from isabella.embedded import Letta, Server
from isabella.errors import IsabellaError
from isabella.practice import PracticeVendors

RELEASES = ("0.16.0", "0.16.1", "0.16.2", "0.16.4", "0.16.5", "0.16.6", "0.16.7", "0.16.8")
#: Releases are installed here once; the tests use them, too. Git ignores it.
HOME = ROOT / ".isabella" / "tests"


def main(wanted: list[str]) -> int:
    """Test the releases in turn. Return 0 if every case passed, 1 if one failed, 2 for an unknown release."""
    unknown = [release for release in wanted if release not in RELEASES]
    if unknown:
        print(f"compat: {unknown[0]} is not one of {', '.join(RELEASES)}", file=sys.stderr)
        return 2
    results = table.read()
    failed = 0
    for release in [release for release in RELEASES if not wanted or release in wanted]:
        print(f"Letta {release}", flush=True)
        results[release] = _try_release(release)
        failed += sum(came.startswith(table.FAILED) for came in results[release].values())
        table.write(results)
    print(f"{table.PATH.relative_to(ROOT)} written; {failed or 'no'} case{'' if failed == 1 else 's'} failed.")
    return 1 if failed else 0


def _try_release(release: str) -> dict[str, str]:
    # The tests erase instances of this name if their process is gone.
    server = Server(HOME, release=release, instance=f"tests-{os.getpid()}-compat")
    came: dict[str, str] = {}
    try:
        with PracticeVendors() as vendors, tempfile.TemporaryDirectory() as scratch:
            came |= _try_cases(SEALING, server.up(), vendors, Path(scratch) / "sealing")
            came |= _try_cases(OPEN, server.restart_letta(encrypt=False), vendors, Path(scratch) / "open")
    except IsabellaError as error:
        print(f"  {error.what}", flush=True)
        came = dict.fromkeys((*SEALING, *OPEN), f"{table.FAILED}: it did not start") | came
    finally:
        server.erase()
    return came


def _try_cases(cases: Mapping[str, Case], letta: Letta, vendors: PracticeVendors, home: Path) -> dict[str, str]:
    came: dict[str, str] = {}
    with open_target(letta, vendors, home) as opened:
        for title, case in cases.items():
            try:
                came[title] = case(opened)
            except Exception:  # noqa: BLE001 - the other cases go on, and the table records the failure
                came[title] = table.FAILED
                traceback.print_exc()
            print(f"  {title}: {came[title]}", flush=True)
    return came


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
