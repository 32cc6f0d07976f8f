"""Defers the import of packages that Letta imports when it starts and uses only for certain vendors, tools or files.

This file runs in Letta's environment, like `launch.py`, and imports nothing of Isabella.

While imports are deferred, a deferred package is a placeholder, and a name imported from it is a `DeferredName`. The
first use of one imports the package itself, and replaces the placeholders in all modules of Letta. An `except` clause
needs the class itself, so a package whose exceptions Letta imports by name cannot be deferred.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Union

_USER = "letta"  # the package whose modules hold names of deferred packages


class DeferredName:
    """A name that was imported from a deferred package. Every use of it imports the package."""

    def __init__(self, imports: DeferredImports, module: str, name: str) -> None:
        self.__dict__.update(_imports=imports, _module=module, _name=name)

    def _real(self) -> Any:
        self._imports.load(self._module)
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call what the name stands for."""
        return self._real()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        # `typing` looks for some special names in an annotation, which does not count as a use. Pydantic makes a
        # field of one.
        if name.startswith("__") and "pydantic" not in name:
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __getitem__(self, item: Any) -> Any:
        return self._real()[item]

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._real())

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    # An annotation such as `Name | None` does not count as a use.
    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - `|` would call this method again

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007


class _Placeholder(ModuleType):
    """A module of a deferred package."""

    def __init__(self, imports: DeferredImports, name: str) -> None:
        super().__init__(name)
        self.__dict__["_imports"] = imports

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_imports"].attribute(self.__name__, name)


class DeferredImports(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Defers the import of some packages and modules until one of their names is used.

    Args:
        packages: their full names. Those that are not installed stay missing.
    """

    def __init__(self, packages: Sequence[str]) -> None:
        self.deferred = {*packages}
        self._placeholders: dict[str, ModuleType] = {}
        self._importing = True
        self._lock = threading.RLock()
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a specification that makes a placeholder; None for all other modules."""
        if self._package(fullname) is None:
            return None
        real = importlib.machinery.PathFinder.find_spec(fullname, path)
        if real is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return a placeholder."""
        return _Placeholder(self, spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Remember the placeholder, to replace it later."""
        self._placeholders[module.__name__] = module

    def attribute(self, module: str, name: str) -> Any:
        """Return a name of a deferred package: a `DeferredName` while Letta is imported, its value afterwards."""
        if self._importing and self._package(module) is not None:
            return DeferredName(self, module, name)
        self.load(module)
        return getattr(importlib.import_module(module), name)

    def finish(self) -> None:
        """Let the next use of a placeholder's attribute import the package: all importing modules are complete."""
        self._importing = False

    def load(self, module: str) -> None:
        """Import the package of a module, and replace its placeholders and names."""
        with self._lock:
            package = self._package(module)
            if package is None:
                return
            self.deferred.remove(package)
            former = {name: held for name, held in self._placeholders.items() if _is_within(name, package)}
            for name in former:
                sys.modules.pop(name, None)
            importlib.import_module(package)
            for name, placeholder in former.items():
                real, own = vars(importlib.import_module(name)), vars(placeholder)
                # Functions that the launcher has replaced.
                real.update({key: value for key, value in own.items() if callable(value)})
                own.update(real)
            self._replace(package)

    def _replace(self, package: str) -> None:
        """Replace the names of a package in all modules of Letta."""
        users = [module for name, module in [*sys.modules.items()] if _is_within(name, _USER)]
        for names in map(vars, users):
            for name, value in [*names.items()]:
                if type(value) is DeferredName and _is_within(vars(value)["_module"], package):
                    names[name] = value._real()

    def _package(self, module: str) -> str | None:
        return next((package for package in self.deferred if _is_within(module, package)), None)


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
