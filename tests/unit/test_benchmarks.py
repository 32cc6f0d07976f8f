"""The figures of the benchmarks: their limits, their history, and the page and plots that are written from it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from bench import document, history
from bench.figures import FIGURES, Figure, table, verdict
from bench.history import Run
from bench.machine import BUSY
from bench.results import Measured, Results, Series, Spread

SVG = "{http://www.w3.org/2000/svg}"


def run(commit: str, value: float, *, load: float = 0.0) -> Run:
    """A run that measured one figure."""
    measured = Measured(value, "ours | theirs", Spread(value - 1, value + 1, 5), load)
    return Run(commit, "2026-11-27", "Linux, 2 cores", {"help_over_bare": measured})


def test_a_comparison_is_the_median_of_its_pairs_with_their_spread() -> None:
    """Pairs are compared, not medians: 3 over 1 and 2 over 2 and 2 over 1."""
    results = Results()
    results.compare("help_over_bare", [3.0, 2.0, 2.0], [1.0, 2.0, 1.0], "told")
    assert results.figures["help_over_bare"] == Measured(2.0, "told", Spread(1.0, 3.0, 3))


def test_a_busy_machine_judges_counts_and_no_times() -> None:
    """The run says so, and does not fail for its times; a count that is over its limit fails all the same."""
    slow, wrong = {"help_over_bare": Measured(99.0)}, {"turn_errors": Measured(1)}
    assert verdict(slow) == ("Limits exceeded: help_over_bare", True)
    assert "OVER" in table(slow)
    busy = {"help_over_bare": Measured(99.0, load=BUSY + 1)}
    said, exceeded = verdict(busy)
    assert not exceeded
    assert "busy" in said.splitlines()[0]
    assert "help_over_bare" in said
    assert "not judged" in table(busy)
    assert verdict({"turn_errors": Measured(1, load=BUSY + 1)})[1]
    assert verdict(wrong)[1]
    assert not verdict({"help_over_bare": Measured(1.0), "turn_errors": Measured(0)})[1]


def test_seconds_are_limits_only_where_people_wait_for_them() -> None:
    """A machine may be three times slower: what is compared with nothing has no limit, except what was promised."""
    promised = {
        "serving_seconds",
        "chaos_ready_seconds_max",
        "chaos_notice_seconds_max",
        "flood_health_seconds_max",
        "console_seconds",
        "console_task_ms",
        "headline_seconds",
    }
    limited = {one.name for one in FIGURES if one.limited and re.search("_(seconds|ms)(_|$)", one.name)}
    assert limited == promised


def test_a_run_is_kept_as_a_line(tmp_path: Path) -> None:
    """What is read is what was written, tables included."""
    series = {"agents": Series("agents", ("turn, ms",), {10: (1.5,), 1000: (2.5,)})}
    runs = [run("abc", 7.0), Run("def+", "2026-11-28", "Linux", {"turn_errors": Measured(0)}, series)]
    path = tmp_path / "history.jsonl"
    for one in runs:
        history.append(one, path)
    assert history.read(path) == runs


def test_the_page_has_the_last_value_of_each_figure_with_its_run() -> None:
    """A figure that a run did not measure keeps its former value; a busy machine is named."""
    later = Run("def", "2026-11-28", "Linux, 4 cores", {"turn_errors": Measured(0)})
    page = document.page([run("old", 9.0), run("abc", 7.0, load=1.5), later])
    assert "| `help_over_bare` | 7 | 6 to 8 (5) | at most 8 |" in page
    assert "ours \\| theirs; on a busy machine: others used 1.5 processors | abc |" in page
    assert "| `turn_errors` | 0 |  | 0 |" in page
    assert "Linux, 4 cores" in page


def test_a_plot_has_every_run_of_every_figure_and_tables_have_plots() -> None:
    """Each value is a circle, hollow if it was measured on a busy machine; a limit is a dashed line."""
    series = {"agents": Series("agents", ("turn, ms", "start, s"), {10: (1.0, 2.0), 100: (1.5, 4.0)})}
    runs = [run("one", 7.0), run("two", 8.0, load=2.0), Run("six", "2026-11-28", "Linux", {}, series)]
    plots = document.plots(runs)
    assert {*plots} == {"bench-history.svg", "bench-many.svg"}
    drawn = ElementTree.fromstring(plots["bench-history.svg"])
    circles = [*drawn.iter(f"{SVG}circle")]
    assert [circle.get("fill") == "#ffffff" for circle in circles] == [False, True]
    assert float(circles[0].get("cx") or 0) < float(circles[1].get("cx") or 0)
    assert float(circles[0].get("cy") or 0) > float(circles[1].get("cy") or 0)
    assert len([one for one in drawn.iter(f"{SVG}path") if one.get("stroke-dasharray")]) == 1
    many = ElementTree.fromstring(plots["bench-many.svg"])
    assert len([*many.iter(f"{SVG}circle")]) == 4


def test_the_published_page_is_written_from_the_history() -> None:
    """`python -m bench.document` after a change of figures, limits or the history; nothing is written by hand."""
    runs = history.read()
    docs = history.PROJECT / "docs"
    assert (docs / "benchmarks.md").read_text() == document.page(runs)
    for name, image in document.plots(runs).items():
        assert (docs / "images" / name).read_text() == image


def test_the_promised_figures_all_have_a_place() -> None:
    """What is promised is measured, under exactly these names."""
    assert {figure.name for figure in FIGURES} >= {
        "warm_speedup",
        "warm_speedup_sealed",
        "warm_requests",
        "cold_over_bare",
        "cold_over_loop",
        "thousand_over_listing",
        "ttft_ratio",
        "turns_per_second_ratio",
        "rss_growth_mb",
        "rotation_failed_turns",
        "rotation_foreign_keys",
        "loop_failed_turns",
        "loop_foreign_keys",
        "gateway_ttft_ms",
        "gateway_throughput_ratio",
        "gateway_failed_turns",
        "gateway_foreign_keys",
        "direct_failed_turns",
        "direct_foreign_keys",
        "failover_seconds",
        "ending_seconds",
        "help_over_bare",
        "doctor_over_bare",
        "doctor_down_seconds",
        "start_over_bare",
        "first_start_over_bare",
        "serving_seconds",
        "stack_rss_mb",
        "ttft_over_pooled",
        "turns_per_second_over_pooled",
        "ttft_over_shipped",
        "turns_per_second_over_shipped",
        "turn_at_1000_agents_over_10",
    }
    assert Figure("exact", "", most=0, exact=True).limit == "0"
