"""Owns the report's plots: small SVG drawings that take their colours from the page's CSS.

So they follow light and dark mode and need no file beside the page. What is plotted is decided in
`report`. Text is escaped here; every function returns one `<svg>` element.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# Drawn for a telephone: there one unit is about one pixel, and on a screen a little more.
_WIDTH, _HEIGHT = 340, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 44
_NEAR = 16  # closer points of a curve have one label
# Of a bar or a change: the line of its label, and what is drawn below.
_LABEL, _ROW, _BAR = 15, 30, 9


@dataclass(frozen=True)
class Line:
    """One curve: `colour` is a number into the page's palette."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int


@dataclass(frozen=True)
class Point:
    """One labelled point with the ends of its intervals (None: not known); `chosen` sets it off."""

    label: str
    x: float
    y: float
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Curve:
    """Points in their order, joined by a thin line; a named one has its name at its last point."""

    points: Sequence[Point]
    colour: int
    name: str = ""


@dataclass(frozen=True)
class Band:
    """The stretch between two curves over the same places, as an interval: `colour` as a line's."""

    xs: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    colour: int


@dataclass(frozen=True)
class Bar:
    """One horizontal bar; bars of the same `group` stand together below its name."""

    group: str
    label: str
    value: float
    colour: int
    error: float | None = None
    mark: float | None = None  # a reference level, drawn as a tick across the bar
    text: str = ""


@dataclass(frozen=True)
class Change:
    """One change with its interval (None: not known), a dot on a line; `mark` is a limit.

    One that is not `certain`, or not known to be, has a hollow dot.
    """

    group: str
    label: str
    value: float
    low: float | None
    high: float | None
    colour: int
    mark: float | None = None
    text: str = ""
    certain: bool = False


@dataclass(frozen=True)
class _Axis:
    """A linear map from data to pixels, with the ticks that are drawn."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        return nice_ticks(self.low, self.high)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers between two limits.

    >>> nice_ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(0, 1300)
    [0.0, 500.0, 1000.0]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s * power for s in (1, 2, 5, 10, 20) if (high - low) / (s * power) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    bands: Sequence[Band] = (),
    dashed: Sequence[Line] = (),
    marks: Sequence[float] = (),
) -> str:
    """Draws curves over one axis; points that are not finite are left out.

    Args:
        bands: intervals, below the curves.
        dashed: curves to compare with.
        marks: places along x, drawn as upright dashed lines.
    """
    finite = [
        [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
        for line in lines
    ]
    everything = [point for points in finite for point in points]
    if not everything:
        return _svg(title, _HEIGHT, [_text(_WIDTH / 2, _HEIGHT / 2, "no finite values", "middle")])
    ends = [y for band in bands for y in (*band.lows, *band.highs)]
    x_axis, y_axis = _plane([x for x, _ in everything], [*(y for _, y in everything), *ends])
    parts = _frame(x_axis, y_axis, x_label, y_label)
    for band in bands:
        there = [f"{x_axis(x)},{y_axis(y)}" for x, y in zip(band.xs, band.highs, strict=True)]
        back = [f"{x_axis(x)},{y_axis(y)}" for x, y in zip(band.xs, band.lows, strict=True)]
        around = " ".join([*there, *reversed(back)])
        parts.append(f'<polygon class="band c{band.colour}" points="{around}"/>')
    for x in marks:
        parts.append(_segment(x_axis(x), y_axis.start, x_axis(x), y_axis.end, "mark"))
    for line in dashed:
        pixels = " ".join(f"{x_axis(x)},{y_axis(y)}" for x, y in zip(line.xs, line.ys, strict=True))
        parts.append(f'<polyline class="path" points="{pixels}"/>')
    for line, points in zip(lines, finite, strict=True):
        pixels = " ".join(f"{x_axis(x)},{y_axis(y)}" for x, y in points)
        parts.append(f'<polyline class="line c{line.colour}" points="{pixels}"/>')
        if len(points) == 1:
            parts.append(_circle(*points[0], x_axis, y_axis, 3, f"c{line.colour}"))
    return _svg(title, _HEIGHT, parts)


def curve_chart(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    *,
    x_limit: float | None = None,
) -> str:
    """Draws curves through labelled points with intervals; `x_limit` is an upright dashed line."""
    points = [point for curve in curves for point in curve.points]
    xs = [x for p in points for x in (p.x, *(p.x_ends or ()))]
    ys = [y for p in points for y in (p.y, *(p.y_ends or ()))]
    x_axis, y_axis = _plane([*xs, *(() if x_limit is None else (x_limit,))], ys)
    parts = _frame(x_axis, y_axis, x_label, y_label)
    if x_limit is not None:
        parts.append(_segment(x_axis(x_limit), y_axis.start, x_axis(x_limit), y_axis.end, "mark"))
    for curve in curves:
        path = " ".join(f"{x_axis(p.x)},{y_axis(p.y)}" for p in curve.points)
        parts.append(f'<polyline class="path" points="{path}"/>')
    for point in points:
        parts += _error_bars(point, x_axis, y_axis)
    for curve in curves:
        plain = [p for p in curve.points if not p.chosen]
        parts += [_circle(p.x, p.y, x_axis, y_axis, 4, f"c{curve.colour}") for p in plain]
        parts += _curve_labels(curve, x_axis, y_axis)
    # Over all others: it is what one looks for.
    parts += [_circle(p.x, p.y, x_axis, y_axis, 6, "c1") for p in points if p.chosen]
    return _svg(title, _HEIGHT, parts)


def _curve_labels(curve: Curve, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    """Names the points; those that all but coincide share one label, or it would stand at another's place."""
    places: dict[tuple[float, float], list[Point]] = {}
    for p in curve.points:
        here = x_axis(p.x), y_axis(p.y)
        near = next((place for place in places if math.dist(place, here) < _NEAR), here)
        places.setdefault(near, []).append(p)
    parts = []
    for number, ((x, y), points) in enumerate(places.items()):
        words = [", ".join(p.label for p in points if p.label)]
        words += [curve.name] * (curve.points[-1] in points)
        if label := " ".join(filter(None, words)):
            # Above and below in turn, and inwards near the right edge, so that none is cut off.
            flip, rise = x > _WIDTH - 20 - 7 * len(label), 17 if number % 2 else -8
            anchor = "end" if flip else "start"
            kind = "strong" if any(p.chosen for p in points) else ""
            parts.append(_text(x - 9 if flip else x + 9, y + rise, label, anchor, kind))
    return parts


@dataclass(frozen=True)
class Square:
    """One place of a heat map: `value` colours it, above 0 and below in two colours."""

    value: float | None
    text: str
    chosen: bool = False


def heat_map(
    title: str,
    squares: Sequence[Sequence[Square]],
    rows: Sequence[str],
    columns: Sequence[str],
    x_label: str,
    y_label: str,
) -> str:
    """Draws a table of coloured squares, row after row, each with its text."""
    height = 26
    left, top = 24 + max(24, *(7 * len(row) for row in rows)), 8
    width = (_WIDTH - _RIGHT - left) / len(columns)
    known = [abs(square.value) for row in squares for square in row if square.value is not None]
    strongest = max(known, default=0.0) or 1.0
    parts, outlines = [], []
    for number, (name, row) in enumerate(zip(rows, squares, strict=True)):
        y = top + number * height
        parts.append(_text(left - 6, y + 17, name, "end", "tick"))
        for place, square in enumerate(row):
            x = round(left + place * width, 1)
            box = f'x="{x}" y="{y}" width="{width - 2:.1f}" height="{height - 2}" rx="3"'
            value = square.value or 0.0
            share = 0.08 + 0.62 * abs(value) / strongest
            colour = "c2" if value >= 0 else "c3"
            parts.append(f'<rect class="bar {colour}" fill-opacity="{share:.2f}" {box}/>')
            parts.append(_text(round(x + width / 2 - 1, 1), y + 17, square.text, "middle"))
            if square.chosen:
                outlines.append(f'<rect class="outline" {box}/>')
    bottom = top + len(rows) * height
    for place, name in enumerate(columns):
        x = round(left + (place + 0.5) * width - 1, 1)
        parts.append(_text(x, bottom + 14, name, "middle", "tick"))
    parts.append(_text((left + _WIDTH - _RIGHT) / 2, bottom + 34, x_label, "middle"))
    middle = (top + bottom) / 2
    turned = _text(12, middle, y_label, "middle")
    parts.append(f'<g transform="rotate(-90 12 {middle})">{turned}</g>')
    return _svg(title, bottom + 44, [*parts, *outlines])


def bar_chart(title: str, bars: Sequence[Bar], high: float | None = None) -> str:
    """Draws horizontal bars from 0, grouped, each below its label and its value."""
    reach = max([bar.value + (bar.error or 0) for bar in bars] + [bar.mark or 0 for bar in bars])
    axis = _Axis(0.0, high or reach or 1.0, 0, _WIDTH - _RIGHT)
    parts, y = _rows(bars, lambda bar, y: _draw_bar(bar, axis, y))
    return _svg(title, y + 6, parts)


def change_chart(title: str, changes: Sequence[Change]) -> str:
    """Draws changes about 0, grouped, each with its interval below its label and its value."""
    ends = [0.0]
    for change in changes:
        ends += [x for x in (change.value, change.low, change.high, change.mark) if x is not None]
    axis = _Axis(*_padded(min(ends), max(ends), 0.05), 0, _WIDTH)
    parts, y = _rows(changes, lambda change, y: _draw_change(change, axis, y))
    return _svg(title, y + 6, [_segment(axis(0.0), 2, axis(0.0), y, "axis"), *parts])


def _rows(rows: Sequence[Bar | Change], draw: Callable) -> tuple[list[str], float]:
    """Draws rows below each other under the names of their groups; returns where they end, too."""
    parts, y, group = [], 4.0, None
    for row in rows:
        if row.group != group:
            group, y = row.group, y + (8 if group is not None else 0)
            if group:
                parts.append(_text(0, y + 12, group, "start", "strong"))
                y += _LABEL + 3
        parts.append(_text(0, y + 11, row.label, "start", "over"))
        parts.append(_text(_WIDTH, y + 11, row.text, "end", "over"))
        parts += draw(row, y + _LABEL)
        y += _ROW
    return parts, y


def _draw_bar(bar: Bar, axis: _Axis, y: float) -> list[str]:
    end, middle = max(axis(bar.value), axis.start + 0.5), y + _BAR / 2
    parts = [
        f'<rect class="bar c{bar.colour}" x="{axis.start}" y="{y}" '
        f'width="{end - axis.start:.1f}" height="{_BAR}" rx="2"/>'
    ]
    if bar.error:
        low, high = axis(max(0.0, bar.value - bar.error)), axis(bar.value + bar.error)
        parts.append(_segment(low, middle, high, middle, "whisker"))
    if bar.mark is not None:
        parts.append(_segment(axis(bar.mark), y - 2, axis(bar.mark), y + _BAR + 2, "mark"))
    return parts


def _draw_change(change: Change, axis: _Axis, y: float) -> list[str]:
    parts, middle = [], y + _BAR / 2
    if change.low is not None and change.high is not None:
        parts.append(_segment(axis(change.low), middle, axis(change.high), middle, "whisker"))
    if change.mark is not None:
        parts.append(_segment(axis(change.mark), y - 1, axis(change.mark), y + _BAR + 1, "mark"))
    kind = f"dot c{change.colour}" if change.certain else f"hollow c{change.colour}"
    return [*parts, f'<circle class="{kind}" cx="{axis(change.value)}" cy="{middle}" r="4"/>']


def _error_bars(point: Point, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    x, y = x_axis(point.x), y_axis(point.y)
    parts = []
    if point.x_ends:
        low, high = map(x_axis, point.x_ends)
        parts.append(_segment(low, y, high, y, "error"))
    if point.y_ends:
        low, high = map(y_axis, point.y_ends)
        parts.append(_segment(x, low, x, high, "error"))
    return parts


def _plane(xs: Sequence[float], ys: Sequence[float]) -> tuple[_Axis, _Axis]:
    x_low, x_high = _padded(min(xs), max(xs), 0.03)
    y_low, y_high = _padded(min(ys), max(ys), 0.07)
    x_axis = _Axis(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    return x_axis, _Axis(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    room = (high - low) * share or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis(tick)
        parts.append(_segment(x_axis.start, y, x_axis.end, y, "grid"))
        parts.append(_text(x_axis.start - 6, y + 4, _write_tick(tick), "end", "tick"))
    for tick in x_axis.ticks:
        x = x_axis(tick)
        parts.append(_segment(x, y_axis.start, x, y_axis.start + 4, "grid"))
        parts.append(_text(x, y_axis.start + 16, _write_tick(tick), "middle", "tick"))
    parts.append(_segment(x_axis.start, y_axis.start, x_axis.end, y_axis.start, "axis"))
    parts.append(_text((x_axis.start + x_axis.end) / 2, _HEIGHT - 8, x_label, "middle"))
    middle = (y_axis.start + y_axis.end) / 2
    turned = _text(12, middle, y_label, "middle")
    return [*parts, f'<g transform="rotate(-90 12 {middle})">{turned}</g>']


def _write_tick(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.10g}"


def _circle(x: float, y: float, x_axis: _Axis, y_axis: _Axis, radius: int, colour: str) -> str:
    return f'<circle class="dot {colour}" cx="{x_axis(x)}" cy="{y_axis(y)}" r="{radius}"/>'


def _segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    label = escape(title, quote=True)
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{label}">\n{body}\n</svg>'
    )
