"""Every plot as PNG, for Dagster's metadata: as wide as it has room for beside its list of partitions in a window of 1,280 pixels, and wider
only for many labels. matplotlib loads when the first is drawn. The page draws its own, as SVG that follows it into dark mode and onto
paper, with the same numbers."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from docml_assets.report.evidence import Evidence
    from docml_assets.report.schema import Report

HISTORY_PLOT = "history.png"
WIDTH = 5.2  # inches, of 100 pixels
COLORS = ("#2563a8", "#d9822b", "#3a8f5c", "#a13d73", "#6b5bb0", "#8a6d3b", "#3c8dbc", "#b0413e")
MISSING = "\N{WHITE SQUARE}"  # in place of what the font lacks
MAX_BARS = 40  # labels in a chart of counts
WRITTEN_CELLS = 20  # labels up to which the confusion matrix shows its numbers
SHOWN_LABELS = 60  # labels in a chart by label and in the confusion matrix; tables and the page have the others
Draw = Callable[["Figure", "Axes"], None]


def draw_plots(report: "Report", evidence: "Evidence") -> dict[str, bytes]:
    """File name -> PNG. A plot without data (lengths, curves) is left out."""
    models, labels = len(report.models), len(report.labels)
    plots = {
        "scores.png": _png((WIDTH, 1.4 + 0.45 * models), lambda _, axes: _scores(axes, report)),
        "per_label.png": _png(
            (WIDTH, 1.6 + 0.14 * min(labels, SHOWN_LABELS) * (models + 1) + 0.19 * models),
            lambda figure, axes: _per_label(figure, axes, report),
        ),
        "calibration.png": _png((WIDTH, _height(4.5, models)), lambda _, axes: _calibration(axes, report)),
    }
    for name in report.models:
        side = min(14.0, max(WIDTH - 1, 1.8 + 0.28 * min(labels, SHOWN_LABELS)))
        plots[f"confusion_{name}.png"] = _png(
            (side + 1, side),
            lambda figure, axes, name=name: _confusion(figure, axes, report, name),  # type: ignore[misc]
        )
    if len(report.history) > 1:
        plots[HISTORY_PLOT] = _png((WIDTH, _height(3.5, models)), lambda _, axes: _history(axes, report))
    if any(evidence.lengths.values()):
        plots["error_by_length.png"] = _png((WIDTH, _height(3.5, models)), lambda _, axes: _lengths(axes, evidence))
    if any(evidence.curves.values()):
        plots["learning_curves.png"] = _png((WIDTH, _height(3.5, 2 * models)), lambda _, axes: _curves(axes, evidence))
    return plots


def label_histogram(counts: Mapping[str, int], title: str) -> bytes:
    """PNG: documents by label, most frequent on top; beyond `MAX_BARS` labels the rest is one bar."""
    return stacked_bars({"documents": counts}, title)


def stacked_bars(counts: Mapping[str, Mapping[str, int]], title: str) -> bytes:
    """PNG: horizontal bars by label, one coloured part for each series (label -> count)."""
    totals: dict[str, int] = {}
    for series in counts.values():
        for label, count in series.items():
            totals[label] = totals.get(label, 0) + count
    order = sorted(totals, key=lambda label: (-totals[label], label))
    shown, rest = order[:MAX_BARS], order[MAX_BARS:]
    names = [*map(_plain, shown), *([f"{len(rest)} more labels"] if rest else [])]
    parts = {
        name: [
            *(series.get(label, 0) for label in shown),
            *([sum(series.get(label, 0) for label in rest)] if rest else []),
        ]
        for name, series in counts.items()
    }
    return _png((WIDTH, 1.4 + 0.24 * len(names)), lambda figure, axes: _bars(figure, axes, names, parts, title))


def length_histogram(edges: Sequence[float], counts: Sequence[int]) -> bytes:
    """PNG: how many documents have how many tokens; `edges` are one more than `counts`."""

    def draw(_: "Figure", axes: "Axes") -> None:
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=color(0), edgecolor="white", linewidth=0.5)
        axes.set(xlabel="length in tokens, as encoded", ylabel="documents")

    return _png((WIDTH, 3), draw)


def color(index: int) -> str:
    """Of the model at this position, in every plot and on the page."""
    return COLORS[index % len(COLORS)]


def _height(usual: float, entries: int) -> float:
    """Of a plot with a legend of so many entries: one that does not fit leaves no room for the plot, and matplotlib warns."""
    return max(usual, 1.5 + 0.19 * entries)


def _png(size: tuple[float, float], draw: Draw) -> bytes:
    # Figure objects rather than pyplot: no global state, so that several runs can be reported at once.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(figure, axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plain(text: str, length: int = 40) -> str:
    """A label as matplotlib shows it: shortened, on one line, with `$` as a character rather than mathematics, and a white square for
    each character that its font lacks (Chinese, emoji …). The page and the tables show labels whole."""
    line = " ".join(text.split())
    line = line if len(line) <= length else line[: length - 1] + "…"
    return "".join(char if ord(char) in _characters() else MISSING for char in line).replace("$", r"\$")


@cache
def _characters() -> frozenset[int]:
    """Code points that matplotlib's own font can draw."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _bars(figure: "Figure", axes: "Axes", names: Sequence[str], parts: Mapping[str, Sequence[int]], title: str) -> None:
    # Bars stand at numbers, not at names: labels that look alike once shortened keep bars of their own.
    rows = np.arange(len(names))
    left = np.zeros(len(names), dtype=np.int64)
    for name, widths in parts.items():
        axes.barh(rows, widths, left=left, label=name)
        left = left + np.array(widths, dtype=np.int64)
    axes.bar_label(axes.containers[-1], labels=[str(total) for total in left], padding=3)  # type: ignore[arg-type]
    axes.set_yticks(rows, names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("documents")
    axes.set_title(_plain(title, 80), fontsize=10)
    if len(parts) > 1:
        figure.legend(loc="outside lower center", ncols=len(parts), frameon=False, fontsize=8)


def _scores(axes: "Axes", report: "Report") -> None:
    for index, model in enumerate(report.models.values()):
        low, high = model.f1_macro_ci95
        axes.plot([low, high], [index, index], color=color(index), linewidth=2)
        axes.plot(model.f1_macro, index, "o", color=color(index))
        axes.annotate(f"{model.f1_macro:.3f}", (model.f1_macro, index), (0, 7), textcoords="offset points", ha="center")
    axes.set_title(f"{report.experiment} run {report.run}", fontsize=10)
    axes.set_yticks(range(len(report.models)), [_plain(name) for name in report.models])
    axes.set_ylim(len(report.models) - 0.4, -0.6)
    axes.set_xlabel("macro-F1 on the test split, 95 % interval")
    axes.grid(axis="x", alpha=0.3)


def _history(axes: "Axes", report: "Report") -> None:
    """Beside one another where several models have a point for one run."""
    names = list(dict.fromkeys(name for entry in reversed(report.history) for name in entry.models))
    for index, name in enumerate(names):
        found = [(entry.run, entry.models[name]) for entry in report.history if name in entry.models]
        runs = np.array([run for run, _ in found]) + 0.08 * (index - (len(names) - 1) / 2)
        f1 = np.array([past.f1_macro for _, past in found])
        bounds = np.array([past.f1_macro_ci95 for _, past in found]).T
        axes.errorbar(
            runs,
            f1,
            np.maximum([f1 - bounds[0], bounds[1] - f1], 0),
            fmt="o-",
            color=color(index),
            capsize=3,
            label=_plain(name),
        )
    runs_shown = [entry.run for entry in report.history]
    step = -(-len(runs_shown) // 20)
    axes.set_xticks(
        runs_shown[::step] if runs_shown[-1] in runs_shown[::step] else [*runs_shown[::step], runs_shown[-1]]
    )
    axes.set(
        xlabel=f"run of {_plain(report.experiment)}",
        ylabel="macro-F1, 95 % interval",
        title=f"on the {report.num_test:,} test documents of run {report.run}",
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _per_label(figure: "Figure", axes: "Axes", report: "Report") -> None:
    rows = next(iter(report.models.values())).per_label
    half = SHOWN_LABELS // 2
    shown = rows if len(rows) <= SHOWN_LABELS else (*rows[:half], *rows[-half:])
    height = 0.8 / len(report.models)
    for index, (name, model) in enumerate(report.models.items()):
        f1 = {row.label: row.f1 for row in model.per_label}
        places = np.arange(len(shown)) - 0.4 + (index + 0.5) * height
        axes.barh(places, [f1[row.label] for row in shown], height, color=color(index), label=_plain(name))
    axes.set_yticks(range(len(shown)), [f"{_plain(row.label)} ({row.support})" for row in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("F1 by label (test documents)")
    if len(shown) < len(rows):
        axes.set_title(f"the {half} best and the {half} worst of {len(rows)} labels", fontsize=10)
    if len(report.models) > 1:
        figure.legend(loc="outside lower center", frameon=False, fontsize=8)


def _calibration(axes: "Axes", report: "Report") -> None:
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    for index, (name, model) in enumerate(report.models.items()):
        filled = [entry for entry in model.calibration.bins if entry.count]
        axes.plot(
            [entry.confidence for entry in filled if entry.confidence is not None],
            [entry.accuracy for entry in filled if entry.accuracy is not None],
            "o-",
            color=color(index),
            label=f"{_plain(name)} (ECE {model.calibration.ece:.3f})",
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the predicted label", ylabel="share that is right")
    axes.legend(frameon=False, fontsize=8)


def _confusion(figure: "Figure", axes: "Axes", report: "Report", name: str) -> None:
    whole = np.array(report.models[name].confusion_matrix)
    wrong = whole.sum(axis=0) + whole.sum(axis=1) - 2 * np.diag(whole)
    shown = np.sort(np.argsort(-wrong, kind="stable")[:SHOWN_LABELS])
    matrix = whole[np.ix_(shown, shown)]
    shares = matrix / np.maximum(whole.sum(axis=1)[shown, None], 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    texts = [_plain(report.labels[index], 24) for index in shown]
    axes.set_xticks(range(len(shown)), texts, rotation=90, fontsize=8)
    axes.set_yticks(range(len(shown)), texts, fontsize=8)
    if len(shown) <= WRITTEN_CELLS:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = shares[row, column] > 0.5
            axes.text(
                column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color="w" if dark else "k"
            )
    rest = f": the {len(shown)} of {len(report.labels)} labels with most mistakes" if len(shown) < len(whole) else ""
    axes.set(xlabel="predicted", ylabel="truth", title=f"{_plain(name)}{rest}")
    figure.colorbar(image, ax=axes, label="share of the label's documents", shrink=0.7)


def _lengths(axes: "Axes", evidence: "Evidence") -> None:
    for index, (name, bins) in enumerate(evidence.lengths.items()):
        if not bins:
            continue
        middle, error = [entry.middle for entry in bins], np.array([entry.error for entry in bins])
        axes.fill_between(
            middle, [entry.low for entry in bins], [entry.high for entry in bins], color=color(index), alpha=0.12
        )
        axes.plot(middle, error, "o-", color=color(index), label=_plain(name))
    axes.set(xlabel="length in tokens", ylabel="share labelled wrongly")
    axes.set_ylim(0)
    axes.legend(frameon=False, fontsize=8)


def _curves(axes: "Axes", evidence: "Evidence") -> None:
    for index, (name, curves) in enumerate(evidence.curves.items()):
        for metric, style, what in (("train_loss", "--", "training"), ("valid_loss", "-", "validation")):
            if points := curves.get(metric):
                axes.plot(*zip(*points, strict=True), style, color=color(index), label=f"{_plain(name)}, {what}")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.legend(frameon=False, fontsize=8)
