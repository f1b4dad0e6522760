"""A comparison as pictures: perplexities, differences to the reference, reliability curves. Computes nothing.

Figures are made without pyplot: no display, no global state. The same numbers give the same files.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

COLOR = "#1f5f99"
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "labor-llm"}
LONGEST = 48
"""Letters of a name before it is cut in the middle."""
WRAPPED = 34
"""Letters in a line of a panel's title."""
ACROSS = 3
"""Panels in a row."""
DPI = 200
SHIFT = 0.012
"""By which share of its place a point is moved for each arm before it, so that bars do not cover each other."""
MARKERS = "os^Dv"


def perplexity_plot(models: pl.DataFrame, level: float) -> Figure:
    """Every model's perplexity with its bootstrap interval, best on top; weighted beside unweighted."""
    return _intervals(models, "perplexity", f"perplexity ({100 * level:g}% intervals, persons resampled)", None)


def difference_plot(models: pl.DataFrame, reference: str, level: float) -> Figure:
    """A forest plot of differences in mean log score to the reference, which is the line at zero."""
    label = f"log score minus that of {_short(reference)}, nats per record ({100 * level:g}% intervals)"
    others = models.filter(pl.col("model") != reference)
    return _intervals(others, "difference", label, 0.0)


def reliability_plot(curves: pl.DataFrame, level: float) -> Figure:
    """Of one event, a panel per run: how often it came by how probable it was foretold, with clustered bands."""
    runs = curves.partition_by("run", maintain_order=True)
    across = min(ACROSS, len(runs))
    down = -(-len(runs) // across)
    event, largest = curves["event"][0], _largest(curves)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * across + 0.5, 2.9 * down + 0.5), layout="constrained")
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes, run in zip(grid.flat, runs, strict=False):
            _curve(axes, run, largest)
        for axes in grid.flat[len(runs) :]:
            axes.set_visible(False)
        figure.supxlabel(f"foretold probability: {event.replace('_', ' ')}", fontsize=9)
        figure.supylabel(f"share ({100 * level:g}% bands, clustered by person)", fontsize=9)
    return figure


def learning_curve_plot(table: pl.DataFrame, reference: str) -> Figure:
    """Perplexity, and the difference to the reference, over the number of training persons, a line for every arm.

    ``table``: that of ``training_sizes.learning_curves``. Bars are 95% intervals by the normal distribution; those
    of perplexities are of the same test persons and move together, those of differences are of pairs. Arms at one
    number alone, such as models off the shelf, are far from the others and have no curve: the legend counts them.
    """
    drawn = table.filter(pl.len().over("arm") > 1)
    drawn = table if drawn.is_empty() else drawn
    left_out = table["arm"].n_unique() - drawn["arm"].n_unique()
    largest = drawn.sort("training_persons", "perplexity", descending=[True, False])
    arms = largest["arm"].unique(maintain_order=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, arm in enumerate(arms):
            shift = 1 + SHIFT * (place - (len(arms) - 1) / 2)
            of_arm = drawn.filter(pl.col("arm") == arm).sort("training_persons")
            for axes, key in ((left, "perplexity"), (right, "difference")):
                _with_bars(axes, of_arm.drop_nulls(key), key, shift, place)
        right.axhline(0, color="gray", linewidth=0.8, linestyle="--")
        left.set(yscale="log", ylabel="perplexity")
        right.set_ylabel(f"log score minus that of {_short(reference)}, nats per record")
        left.yaxis.set_major_formatter(ScalarFormatter())
        left.yaxis.set_minor_formatter(ScalarFormatter())
        for axes in (left, right):
            _sizes_axis(axes, drawn["training_persons"].unique().sort().to_list())
        title = f"{left_out} at one number alone: see the table" if left_out else None
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, title=title)
    return figure


def _with_bars(axes: Axes, of_arm: pl.DataFrame, key: str, shift: float, place: int) -> None:
    """The points of an arm with their 95% intervals; lines of several arms are moved aside a little."""
    errors = 1.96 * of_arm[f"{key}_se"].cast(pl.Float64).fill_null(0).to_numpy()
    axes.errorbar(
        of_arm["training_persons"].to_numpy() * shift,
        of_arm[key].cast(pl.Float64).to_numpy(),
        errors,
        color=f"C{place % 10}",
        marker=MARKERS[place // 10 % len(MARKERS)],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        label=_short(of_arm["arm"][0]) if len(of_arm) else None,
    )


def _sizes_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis with the numbers of training persons alone."""
    axes.set(xscale="log", xlabel="training persons")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG; its name becomes the files', in letters that any system takes."""
    stem = re.sub(r"[^\w.=+-]+", "-", name).strip("-")
    paths = [folder / f"{stem}.{ending}" for ending in ("png", "svg")]
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0], dpi=DPI, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _intervals(models: pl.DataFrame, key: str, label: str, line: float | None) -> Figure:
    """One row per model, best on top: points with intervals, survey-weighted ones hollow and below."""
    models = models.filter(pl.col(key).is_not_null())
    places: NDArray[np.float64] = np.arange(len(models), dtype=np.float64)[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.9 + 0.36 * len(models)), layout="constrained")
        axes = figure.subplots()
        if line is not None:
            axes.axvline(line, color="gray", linewidth=0.8, linestyle="--")
        _points(axes, models, key, places, "unweighted", COLOR)
        if f"{key}_weighted" in models.columns:
            _points(axes, models, f"{key}_weighted", np.subtract(places, 0.25), "survey-weighted", "white")
            axes.legend(frameon=False)
        axes.set_yticks(places, list(map(_short, models["model"])))
        axes.set_ylim(-0.7, len(models) - 0.3)
        axes.set_xlabel(label)
    return figure


def _points(
    axes: Axes, models: pl.DataFrame, key: str, places: NDArray[np.float64], label: str, fill: str
) -> None:
    values, low, high = (models[name].cast(pl.Float64).to_numpy() for name in (key, f"{key}_low", f"{key}_high"))
    axes.hlines(places, low, high, color=COLOR, linewidth=1.4)
    axes.plot(values, places, "o", color=COLOR, markerfacecolor=fill, markersize=5, label=label)


def _curve(axes: Axes, run: pl.DataFrame, largest: float) -> None:
    """One run's reliability curve on a square panel."""
    axes.plot([0, largest], [0, largest], color="gray", linewidth=0.8, linestyle="--")
    banded = run.drop_nulls(["rate_low", "rate_high"])
    axes.fill_between(banded["forecast"], banded["rate_low"], banded["rate_high"], color=COLOR, alpha=0.2, lw=0)
    axes.vlines(banded["forecast"], banded["rate_low"], banded["rate_high"], color=COLOR, alpha=0.4, linewidth=0.8)
    axes.plot(run["forecast"], run["rate"], "o-", color=COLOR, markersize=3, linewidth=1.2)
    axes.set(xlim=(0, largest), ylim=(0, largest), box_aspect=1)
    axes.locator_params(nbins=5)
    axes.set_title("\n".join(wrap(_literal(run["run"][0]), WRAPPED)), fontsize=8)


def _largest(curves: pl.DataFrame) -> float:
    """Where the axes end: events are rare, and nothing is to be seen where no forecast is."""
    known: Sequence[float] = [
        value for name in ("forecast", "rate", "rate_high") for value in curves[name].drop_nulls()
    ]
    return min(1.0, 1.05 * max(known, default=1.0))


def _short(name: str) -> str:
    """A name of at most ``LONGEST`` letters: its beginning and its end, where runs differ."""
    half = LONGEST // 2 - 1
    return _literal(name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}")


def _literal(name: str) -> str:
    """A name that matplotlib does not take for mathematics."""
    return name.replace("$", r"\$")
