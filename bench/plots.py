"""Plots as SVG: sheets of small panels, each with one figure over runs, or over sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _COLUMNS = 300, 150, 3
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 34, 26
_INK, _FAINT, _LINE, _LIMIT = "#24292f", "#6e7781", "#0969da", "#cf222e"
#: A limit beyond this many times the largest value is written, and not drawn: the values would be a flat line.
_FAR = 4.0


@dataclass(frozen=True)
class Point:
    """A value at a place of the horizontal axis.

    Attributes:
        place: the number of the place, from 0.
        value: what was measured.
        least, most: its spread; both are the value without one.
        title: shown on hover.
        doubtful: whether it was measured on a busy machine; drawn hollow.
    """

    place: int
    value: float
    least: float
    most: float
    title: str
    doubtful: bool = False


@dataclass(frozen=True)
class Panel:
    """A plot.

    Attributes:
        title: written above it.
        points: in the order of their places.
        places: the labels of all places; the first and the last are always written, the others if they fit.
        limits: values that are drawn as dashed lines.
        note: written at the right of the title's line below, such as the limit in words.
    """

    title: str
    points: Sequence[Point]
    places: Sequence[str]
    limits: Sequence[float] = ()
    note: str = ""


def sheet(panels: Sequence[Panel], title: str) -> str:
    """Return an SVG image with these panels in rows of three."""
    columns = min(_COLUMNS, len(panels))
    width, height = columns * _WIDTH, -(-len(panels) // columns) * _HEIGHT
    drawn = [
        f'<g transform="translate({number % columns * _WIDTH} {number // columns * _HEIGHT})">{_panel(one)}</g>'
        for number, one in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" font-family="ui-sans-serif, system-ui, sans-serif" font-size="9">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _panel(panel: Panel) -> str:
    top = max((point.most for point in panel.points), default=0.0)
    limits = [limit for limit in panel.limits if limit <= top * _FAR or not top]
    ceiling = max([top, *limits]) * 1.08 or 1.0
    parts = [
        _text(_LEFT, 16, panel.title, weight=600, size=10.5),
        _text(_LEFT, 28, panel.note, colour=_FAINT),
        *_axes(panel.places, ceiling),
    ]
    for limit in limits:
        y = _y(limit, ceiling)
        parts.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="{_LIMIT}" stroke-dasharray="4 3"/>')
    line = " ".join(f"{_x(point.place, panel.places)},{_y(point.value, ceiling)}" for point in panel.points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_LINE}" stroke-width="1.2"/>')
    parts += [_point(point, _x(point.place, panel.places), ceiling) for point in panel.points]
    return "".join(parts)


def _axes(places: Sequence[str], ceiling: float) -> list[str]:
    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<path d="M{_LEFT} {_TOP}V{floor}H{right}" fill="none" stroke="#d0d7de"/>']
    for share in (0.0, 0.5, 1.0):
        value = ceiling * share
        parts.append(_text(_LEFT - 5, _y(value, ceiling) + 3, _number(value), anchor="end", colour=_FAINT))
    every = max(1, -(-len(places) // 4))
    last = len(places) - 1
    for place, label in enumerate(places):
        if place == last or (place % every == 0 and last - place >= every):
            anchor = "start" if place == 0 and last else "end" if place == last and last else "middle"
            parts.append(_text(_x(place, places), floor + 13, label, anchor=anchor, colour=_FAINT, size=8))
    return parts


def _point(point: Point, x: float, ceiling: float) -> str:
    y, low, high = (_y(value, ceiling) for value in (point.value, point.least, point.most))
    fill = "#ffffff" if point.doubtful else _LINE
    bar = f'<path d="M{x} {low}V{high}" stroke="{_LINE}" stroke-width="3" stroke-opacity="0.3"/>'
    dot = f'<circle cx="{x}" cy="{y}" r="2.5" fill="{fill}" stroke="{_LINE}"/>'
    return f"<g><title>{escape(point.title)}</title>{bar if low != high else ''}{dot}</g>"


def _x(place: int, places: Sequence[str]) -> float:
    left, right = _LEFT + 8, _WIDTH - _RIGHT - 8
    return round(left + (right - left) * (place / (len(places) - 1) if len(places) > 1 else 0.5), 1)


def _y(value: float, ceiling: float) -> float:
    floor = _HEIGHT - _BOTTOM
    return round(floor - (floor - _TOP) * value / ceiling, 1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = _INK, weight: int = 400, size: float = 9
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}" '
        f'font-size="{size}">{escape(text)}</text>'
    )
