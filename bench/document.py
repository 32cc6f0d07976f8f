"""`docs/benchmarks.md` and its plots, written from the history: `python -m bench.document` measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import history, machine
from bench.figures import FIGURES, Figure
from bench.history import Run, latest
from bench.plots import Panel, Point, sheet
from bench.results import Measured, Results, Series

_PAGE = history.PROJECT / "docs" / "benchmarks.md"
_PLOTS, _MANY = "bench-history.svg", "bench-many.svg"
#: The names of the series, and what each varies.
_SERIES = {
    "agents": "Agents in one Letta",
    "messages": "Messages of one agent",
}

_HEAD = """\
# Benchmarks

Written by `python -m bench --publish`; `make bench` measures again, `make bench QUICK=1` in a short form with fewer
subjects and runs, below ten minutes on two cores. Ratios compare runs that alternate in one process, against the same
embedded Letta 0.16.8 and the same practice vendors. The value is the median of the pairs; the spread is the smallest
and the largest, with the number of pairs in brackets. Counts have no spread, and rows from before spreads were kept
have none either.

If other programs use more than a quarter of a processor, the run says so, and judges no limit of time. A figure that
a run does not measure keeps its former value; the last column names the commit of its run.

Last measured on {machine}.

| figure | value | spread | limit | what it is | behind it | run |
|---|---|---|---|---|---|---|
"""

_HISTORY = """
## Over commits

One point for each published run that measured the figure, its spread as a bar, and its limit as a dashed line.
A hollow point was measured on a busy machine. `bench/history.jsonl` has the numbers.

![Every figure over the published runs](images/{plots})
"""

_MANY_HEAD = """
## Many agents, many messages

`python -m bench --only many`: four Letta servers run at once, each with a Postgres and a backend, and with one size
of each table; turns alternate between them. Agents have blocks, tools and messages of their own; the messages are
older ones, outside the context. Rows are copied in the database. An idle agent is one that had no turn for half a
minute, so that it is looked up in Letta by its name.

Of Isabella, the start grows with the agents: it reads them with their tags from Letta's Postgres, so that turns find
them while Letta is away, and to decide how their archival memory is searched. After the start, the texts of all
blocks are compared with their histories in the background. Nothing in a turn goes through all agents or messages.
If the window of a model changes, all its agents are bound again, those in use first, one by one and with pauses, so
that Letta has time for turns.
"""


def publish(results: Results) -> None:
    """Add the run that has just ended to the history, and write the page and its plots."""
    history.append(Run.now(results))
    write()


def write() -> None:
    """Write the page and its plots from the history."""
    runs = history.read()
    images = _PAGE.parent / "images"
    _PAGE.write_text(page(runs))
    for name, image in plots(runs).items():
        (images / name).write_text(image)


def page(runs: Sequence[Run]) -> str:
    """Return the text of the page."""
    rows = [_row(figure, *found) for figure in FIGURES if (found := latest(runs, figure.name)) is not None]
    head = _HEAD.format(machine=runs[-1].machine if runs else machine.description())
    return head + "\n".join(rows) + "\n" + "".join(_many(runs)) + _HISTORY.format(plots=_PLOTS)


def plots(runs: Sequence[Run]) -> dict[str, str]:
    """Return the plots by the name of their file."""
    drawn = {_PLOTS: sheet([*_history_panels(runs)], "Every figure over the published runs")}
    many = [panel for name in _SERIES for panel in _series_panels(runs, name)]
    return drawn | ({_MANY: sheet(many, "Costs of a turn with many agents and many messages")} if many else {})


def _row(figure: Figure, run: Run, measured: Measured) -> str:
    detail = measured.detail.replace("|", "\\|")
    if measured.load > machine.BUSY:
        busy = f"on a busy machine: others used {measured.load:.1f} processors"
        detail = f"{detail}; {busy}" if detail else busy
    cells = (
        f"`{figure.name}`",
        f"{measured.value:g}",
        str(measured.spread or ""),
        figure.limit,
        figure.description,
        detail,
        run.commit,
    )
    return f"| {' | '.join(cells)} |"


# --- over commits ---------------------------------------------------------------------------------------------------


def _history_panels(runs: Sequence[Run]) -> Iterator[Panel]:
    places = [run.commit for run in runs]
    for figure in FIGURES:
        points = [
            _point(place, run, run.figures[figure.name])
            for place, run in enumerate(runs)
            if figure.name in run.figures
        ]
        if points:
            limits = [limit for limit in {figure.least, figure.most} if limit is not None]
            note = f"{points[-1].value:g}" + (f", limit {figure.limit}" if figure.limited else "")
            yield Panel(figure.name, points, places, limits, note)


def _point(place: int, run: Run, measured: Measured) -> Point:
    spread = measured.spread
    least, most = (measured.value, measured.value) if spread is None else (spread.least, spread.most)
    return Point(
        place,
        measured.value,
        least,
        most,
        f"{run.commit}, {run.date}: {measured.value:g}",
        measured.load > machine.BUSY,
    )


# --- over sizes -----------------------------------------------------------------------------------------------------


def _many(runs: Sequence[Run]) -> Iterator[str]:
    tables = [(name, found) for name in _SERIES if (found := _latest_series(runs, name)) is not None]
    if not tables:
        return
    yield _MANY_HEAD
    for name, series in tables:
        yield f"\n{_SERIES[name]}:\n\n"
        yield f"| {' | '.join([series.size, *series.columns])} |\n|{'---|' * (len(series.columns) + 1)}\n"
        for size, row in series.rows.items():
            yield f"| {size:,} | {' | '.join(f'{value:g}' for value in row)} |\n"
    yield f"\n![Every column over the sizes](images/{_MANY})\n"


def _series_panels(runs: Sequence[Run], name: str) -> Iterator[Panel]:
    series = _latest_series(runs, name)
    if series is None:
        return
    places = [f"{size:,}" for size in series.rows]
    for column, title in enumerate(series.columns):
        points = [
            Point(place, row[column], row[column], row[column], f"{size:,}: {row[column]:g}")
            for place, (size, row) in enumerate(series.rows.items())
        ]
        yield Panel(title, points, places, note=f"over {series.size}")


def _latest_series(runs: Sequence[Run], name: str) -> Series | None:
    return next((run.series[name] for run in reversed(runs) if name in run.series), None)


if __name__ == "__main__":
    write()
