"""Charts as shapes on a square of 100 by 100, which a template stretches to any width.

Owns scales, ticks and paths. The shapes are SVG and all words are HTML beside them, so letters keep their size on a
phone, colours are the page's own in light and dark, nothing needs a script, and the numbers stand below as a table.
Knows nothing about what is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Style = Literal["area", "bars", "line", "dots"]


@dataclass(frozen=True)
class Series:
    """What is drawn of one name: a value for each x; None where there is none. style: areas are steps."""

    name: str
    values: Sequence[float | None]
    style: Style = "line"
    muted: bool = False

    def path(self, top: float) -> str:
        """Where SVG draws it. top: the value at the upper edge."""
        width = 100 / max(1, len(self.values))
        # Of points between the edges the first and the last are on them; of bars each has its part of the width.
        step = 100 / max(1, len(self.values) - 1)
        points = [(i, 100 - 100 * value / top) for i, value in enumerate(self.values) if value is not None]
        if self.style == "bars":
            return "".join(f"M{i * width + width * 0.08:.2f} 100V{y:.2f}h{width * 0.84:.2f}V100Z" for i, y in points)
        if self.style == "area":
            inner = "".join(f"V{y:.2f}H{(i + 1) * width:.2f}" for i, y in points)
            return f"M0 100{inner}V100"
        if self.style == "dots":
            return "".join(f"M{i * width + width / 2:.2f} {y:.2f}h0" for i, y in points)
        return "".join(f"{'L' if k else 'M'}{i * step:.2f} {y:.2f}" for k, (i, y) in enumerate(points))


@dataclass(frozen=True)
class Chart:
    """labels: what each x is called. ticks: value and text, from the lower edge up. unit: "%" for shares of 1."""

    title: str
    labels: Sequence[str]
    series: Sequence[Series]
    note: str = ""
    x_name: str = ""
    unit: str = ""
    top: float | None = None

    @property
    def height(self) -> float:
        """The value at the upper edge."""
        return self.top or nice_top(max((value or 0 for each in self.series for value in each.values), default=0))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        return [(self.height * part, self.text(self.height * part)) for part in (0, 0.5, 1)]

    @property
    def ends(self) -> list[str]:
        """The labels below the left edge, the middle and the right edge."""
        if len(self.labels) < 3:
            return list(self.labels)
        return [self.labels[0], self.labels[len(self.labels) // 2] if len(self.labels) > 4 else "", self.labels[-1]]

    @property
    def paths(self) -> list[tuple[Series, str]]:
        return [(each, each.path(self.height)) for each in self.series]

    @property
    def headings(self) -> list[str]:
        return [self.x_name, *(each.name for each in self.series)]

    @property
    def cells(self) -> list[list[str]]:
        """The numbers: a row for each label."""
        return [[label, *(self.text(each.values[i]) for each in self.series)] for i, label in enumerate(self.labels)]

    def text(self, value: float | None) -> str:
        """A value in words."""
        if value is None:
            return "–"
        if self.unit == "%":
            return f"{value:.{0 if value >= 0.1 or value == 0 else 1}%}"
        return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.3g}"


def nice_top(value: float) -> float:
    """A round number that is not below."""
    if not value > 0 or not math.isfinite(value):
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if value <= step * unit * (1 + 1e-9))


def spark(values: Sequence[float]) -> str:
    """The path of a line as high as its highest value, on 100 by 100."""
    return Series("", values).path(max(values, default=0) or 1.0) if len(values) > 1 else ""


def thinned(values: Sequence[float], most: int) -> list[float]:
    """No more values than `most`: means of neighbours."""
    if len(values) <= most:
        return list(values)
    edges = [round(i * len(values) / most) for i in range(most + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
