"""Small pictures for metadata. Matplotlib loads when the first is drawn."""

import io
from collections.abc import Mapping, Sequence

MAX_BARS = 40


def label_histogram(counts: Mapping[str, int], title: str) -> bytes:
    """PNG: documents by label, most frequent on top; beyond `MAX_BARS` labels the rest is one bar."""
    return stacked_bars({"documents": counts}, title)


def stacked_bars(counts: Mapping[str, Mapping[str, int]], title: str) -> bytes:
    """PNG: horizontal bars by label, one coloured part for each series (label -> count)."""
    from matplotlib.figure import Figure

    totals: dict[str, int] = {}
    for series in counts.values():
        for label, count in series.items():
            totals[label] = totals.get(label, 0) + count
    order = sorted(totals, key=lambda label: (-totals[label], label))
    shown, rest = order[:MAX_BARS], order[MAX_BARS:]
    names = [*shown, *([f"{len(rest)} more labels"] if rest else [])]
    figure = Figure(figsize=(7, 1.2 + 0.24 * len(names)), dpi=90, layout="constrained")
    axes = figure.subplots()
    left = [0] * len(names)
    for name, series in counts.items():
        widths = _widths(series, shown, rest)
        axes.barh(names, widths, left=left, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.bar_label(axes.containers[-1], labels=[str(total) for total in left], padding=3)  # type: ignore[arg-type]
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("documents")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    if len(counts) > 1:
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _widths(series: Mapping[str, int], shown: Sequence[str], rest: Sequence[str]) -> list[int]:
    widths = [series.get(label, 0) for label in shown]
    return [*widths, sum(series.get(label, 0) for label in rest)] if rest else widths
