"""Small line charts as inline SVG: no scripts, colours by CSS class, so that they follow the page into dark mode and onto paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

# Text is 13 of these units: small enough in a wide column, and not too small where the whole chart is 350 pixels wide.
WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 48
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line with dots, and a band around it where `band` holds (x, low, high). `css` names its colour class."""

    name: str
    css: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    dashed: bool = False
    titles: Sequence[str] = ()  # one a point: shown on hovering


@dataclass(frozen=True)
class Chart:
    """Lines over two linear axes."""

    x_label: str
    y_label: str
    series: Sequence[Series]
    x_range: Point | None = None
    y_range: Point | None = None
    diagonal: bool = False
    whole_x: bool = field(default=False)  # ticks of x at whole numbers only

    def svg(self) -> Markup:
        """The chart; empty where no series has a point."""
        points = [point for line in self.series for point in line.points]
        if not points:
            return Markup("")
        edges = [(x, value) for line in self.series for x, *bounds in line.band for value in bounds]
        x_axis = Axis.over([x for x, _ in points], self.x_range, LEFT, WIDTH - RIGHT, whole=self.whole_x)
        y_axis = Axis.over([y for _, y in points + edges], self.y_range, HEIGHT - BOTTOM, TOP)
        parts = [_frame(x_axis, y_axis, self.x_label, self.y_label)]
        if self.diagonal:
            start, end = max(x_axis.low, y_axis.low), min(x_axis.high, y_axis.high)
            parts.append(
                f'<line class="guide" x1="{x_axis(start):.1f}" y1="{y_axis(start):.1f}" x2="{x_axis(end):.1f}" y2="{y_axis(end):.1f}"/>'
            )
        parts += [_series(line, x_axis, y_axis) for line in self.series if line.points]
        title = escape(f"{self.y_label} by {self.x_label}")
        return Markup(
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
        )


@dataclass(frozen=True)
class Axis:
    """A linear scale from [low, high] to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    step: float

    @classmethod
    def over(
        cls, values: Sequence[float], limits: Point | None, start: float, end: float, *, whole: bool = False
    ) -> "Axis":
        """The axis over all values, or over given limits; `whole`: ticks at whole numbers only."""
        low, high = limits or (min(values), max(values))
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        step = round_step((high - low) / 5)
        if whole:
            step = max(1.0, float(math.ceil(step)))
        if limits is None:
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        return cls(low, high, start, end, step)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Multiples of the step within the limits."""
        first = math.ceil(self.low / self.step - 1e-9)
        return [index * self.step for index in range(first, int(self.high / self.step + 1e-9) + 1)]


def round_step(rough: float) -> float:
    """The next of 1, 2, 5 × 10^k."""
    size: float = 10.0 ** math.floor(math.log10(rough))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>')
    for tick in x_axis.ticks:
        parts.append(f'<text x="{x_axis(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:.6g}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + bottom) / 2
    parts.append(
        f'<text class="name" x="{middle_x:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text class="name" transform="translate(13 {middle_y:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _series(line: Series, x_axis: Axis, y_axis: Axis) -> str:
    parts = []
    if line.band:
        upper = [f"{x_axis(x):.1f},{y_axis(high):.1f}" for x, _, high in line.band]
        lower = [f"{x_axis(x):.1f},{y_axis(low):.1f}" for x, low, _ in reversed(line.band)]
        parts.append(f'<polygon class="band {line.css}" points="{" ".join(upper + lower)}"/>')
    path = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in line.points)
    dashed = " dashed" if line.dashed else ""
    parts.append(f'<polyline class="line {line.css}{dashed}" points="{path}"/>')
    for index, (x, y) in enumerate(line.points):
        said = line.titles[index] if line.titles else f"{line.name}: {y:.4g}"
        parts.append(
            f'<circle class="dot {line.css}" cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="3.2"><title>{escape(said)}</title></circle>'
        )
    return "".join(parts)
