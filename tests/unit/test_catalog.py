"""`make catalog`: what it reads in the packages, and what it says. The packages themselves are not needed here."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from compat.catalog import SOURCES, Source, differences, literals, report
from isabella.config.vendors import catalog_date, known_vendors

VENDOR = replace(
    next(one for one in known_vendors() if one.name == "xai"), models={"a": 10, "b": 20}, default_model="a"
)


def test_literals_are_read_without_running_the_file() -> None:
    """Wherever they stand; other texts and numbers are not taken."""
    source = 'raise SystemExit("x")\nM: TypeAlias = Union[str, Literal["a", "b-1"]]\nN = Literal[1]\nO = List["c"]\n'
    assert literals(source) == {"a", "b-1"}


def test_every_difference_is_a_line() -> None:
    """An unknown model, another window, an end, and a default model without a window."""
    source = Source("sdk", "f.py", "x/")
    table = {"x/a": {"max_input_tokens": 10}, "x/b": {"max_input_tokens": 30, "deprecation_date": "2027-01-01"}}
    assert list(differences(VENDOR, source, frozenset({"a", "b"}), table)) == [
        "b: a window of 20 here, 30 in litellm",
        "b: ends on 2027-01-01, says litellm",
    ]
    lacking = replace(VENDOR, default_model="c")
    assert list(differences(lacking, source, frozenset({"a"}), {"x/a": {}})) == [
        "b: sdk does not name it",
        "b: litellm does not know it",
        "c: the default model has no window here",
    ]


def test_the_report_has_every_vendor_of_the_catalog(tmp_path: Path) -> None:
    """Each is compared, or said to be named nowhere; the date comes first."""
    (tmp_path / "litellm").mkdir()
    (tmp_path / "litellm" / "model_prices_and_context_window_backup.json").write_text(json.dumps({}))
    for source in SOURCES.values():
        if source.file:
            (tmp_path / source.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / source.file).write_text("")
    lines = list(report(tmp_path, catalog_date() + timedelta(days=7)))
    assert lines[0].endswith("7 days ago.")
    for vendor in known_vendors():
        assert any(vendor.title in line for line in lines), vendor.title
