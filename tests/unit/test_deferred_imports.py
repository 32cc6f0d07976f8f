"""Deferred imports, with a made-up package and a made-up module of Letta that uses it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from isabella.embedded.deferred_imports import DeferredImports, DeferredName

_HEAVY = {
    "heavy/__init__.py": "from heavy.parts import Part\ndef download():\n    return 'downloaded'\n",
    "heavy/parts.py": "class Part:\n    made = 0\n    def __class_getitem__(cls, item):\n        return item\n",
}
_LETTA = {
    "letta/__init__.py": "",
    "letta/uses.py": """
from typing import List, Optional, Union

import heavy
from heavy import parts
from heavy.parts import Part

def annotated(one: Part | None, two: Optional[Part], three: Union[Part, str], four: None | Part) -> List[Part]:
    return [Part()]

def is_part(value):
    return isinstance(value, Part)

def of_module():
    return heavy.Part()
""",
    "letta/derives.py": "from heavy.parts import Part\n\nclass Own(Part):\n    pass\n",
    "letta/misses.py": "import missing_package_of_letta\n",
}


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeferredImports]:
    """Imports that defer the made-up package, and one that is not installed."""
    for name, text in {**_HEAVY, **_LETTA}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = {*sys.modules}
    imports = DeferredImports(["heavy", "missing_package_of_letta"])
    yield imports
    sys.meta_path.remove(imports)
    for name in {*sys.modules} - before:
        del sys.modules[name]


def letta(name: str = "uses") -> ModuleType:
    """Import a module of the made-up Letta."""
    return importlib.import_module(f"letta.{name}")


def test_annotations_import_nothing(imports: DeferredImports) -> None:
    """A module that only names the package does not import it."""
    uses = letta()
    assert type(uses.Part) is DeferredName
    assert "heavy" in imports.deferred


def test_the_first_call_imports_the_package_and_replaces_its_names(imports: DeferredImports) -> None:
    """Afterwards the module holds the class itself, so that an `except` clause could have it."""
    uses = letta()
    imports.finish()
    made = uses.annotated(None, None, "", None)[0]
    real = sys.modules["heavy.parts"].Part
    assert type(made) is real
    assert uses.Part is real
    assert uses.is_part(made)
    assert not uses.is_part("made")
    assert uses.parts.Part.made == 0
    assert "heavy" not in imports.deferred


def test_a_check_of_an_instance_imports_the_package(imports: DeferredImports) -> None:
    """The answer is that of the class."""
    uses = letta()
    imports.finish()
    assert not uses.is_part("made")
    assert "heavy" not in imports.deferred


def test_after_the_imports_an_attribute_of_the_module_is_the_real_one(imports: DeferredImports) -> None:
    """A module that was imported as a whole is read at run time."""
    uses = letta()
    imports.finish()
    assert type(uses.of_module()) is sys.modules["heavy.parts"].Part


def test_a_class_that_derives_from_a_name_imports_the_package(imports: DeferredImports) -> None:
    """The class statement needs the base itself."""
    derived = letta("derives").Own
    assert derived.__mro__[1] is sys.modules["heavy.parts"].Part


def test_an_item_of_a_name_is_that_of_the_class(imports: DeferredImports) -> None:
    """As for generic classes."""
    assert letta().Part[int] is int
    assert "heavy" not in imports.deferred


def test_what_was_replaced_stays_replaced(imports: DeferredImports) -> None:
    """The launcher replaces a function before the package is imported."""
    heavy = importlib.import_module("heavy")
    vars(heavy)["download"] = lambda: "skipped"
    letta()
    imports.finish()
    assert heavy.Part is sys.modules["heavy.parts"].Part
    assert heavy.download() == sys.modules["heavy"].download() == "skipped"


def test_a_package_that_is_not_installed_is_missing(imports: DeferredImports) -> None:
    """As if nothing were deferred."""
    with pytest.raises(ModuleNotFoundError, match="missing_package_of_letta"):
        letta("misses")


def test_special_names_import_nothing_but_those_of_pydantic(imports: DeferredImports) -> None:
    """`typing` asks for some; Pydantic asks how a field is validated, which only the class knows."""
    part = letta().Part
    assert not hasattr(part, "__typing_subst__")
    assert not hasattr(importlib.import_module("heavy"), "__wrapped__")
    assert "heavy" in imports.deferred
    assert not hasattr(part, "__get_pydantic_core_schema__")
    assert "heavy" not in imports.deferred
