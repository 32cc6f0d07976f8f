"""The views in which the console is tested: three widths, two themes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # All tests read this module: the browser is loaded by those that use it.
    from playwright.sync_api import ViewportSize

#: Sizes of a window, by width.
SIZES: dict[int, ViewportSize] = {
    360: {"width": 360, "height": 740},
    768: {"width": 768, "height": 1024},
    1440: {"width": 1440, "height": 900},
}
#: What a browser is opened with, by the name of the view.
VIEWS: dict[str, dict[str, Any]] = {
    f"{width}-{theme}": {"viewport": size, "color_scheme": theme}
    for width, size in SIZES.items()
    for theme in ("light", "dark")
}
