"""Curves to look at: a line of block characters for ``kubectl describe``, and a drawing (SVG) for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from kaito_tuning.progress.history import Curve

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 706, 12, 250
_TICKS = 5


def line(points: Curve, *, width: int = _WIDTH) -> str:
    """``2.31 █▆▅▃▂▂▁▁ 0.42``: first and last value, between them at most ``width`` columns; "" without a point."""
    values = [value for _, value in points]
    if not values:
        return ""
    columns = [
        fmean(values[len(values) * i // width : max(len(values) * i // width + 1, len(values) * (i + 1) // width)])
        for i in range(width)
    ]
    if len(values) < width:
        columns = values
    low, high = min(columns), max(columns)
    step = (high - low) / (len(_BLOCKS) - 1)
    drawn = "".join(_BLOCKS[round((value - low) / step) if step else 0] for value in columns)
    return f"{values[0]:.3g} {drawn} {values[-1]:.3g}"


def svg(curves: Mapping[str, Curve], *, total: int, base: float | None = None) -> str:
    """Loss and evalLoss over the steps up to ``total``; ``base``: the evaluation's loss without the adapter.

    An empty frame when there are no points yet.
    """
    loss, evaluation = curves.get("loss") or [], curves.get("evalLoss") or []
    values = [value for _, value in (*loss, *evaluation)] + ([base] if base is not None else [])
    steps = max([total, 1, *(step for step, _ in (*loss, *evaluation))])
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(step: float, value: float) -> tuple[float, float]:
        across = _LEFT + (_RIGHT - _LEFT) * step / steps
        down = _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)
        return round(across, 1), round(down, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 284" role="img" aria-label="{_label(curves)}">',
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"/>',
    ]
    for tick in ticks if values else []:
        _, down = place(0, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text class="left" x="{_LEFT - 6}" y="{down + 4}">{tick:.4g}</text>')
    for tick in sorted({round(steps * i / (_TICKS - 1)) for i in range(_TICKS)}):
        parts.append(f'<text class="below" x="{place(tick, low)[0]}" y="{_BOTTOM + 16}">{tick}</text>')
    parts.append(f'<text class="below" x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 32}">step</text>')
    if base is not None:
        _, down = place(0, base)
        parts.append(f'<line class="base" x1="{_LEFT}" x2="{_RIGHT}" y1="{down}" y2="{down}"/>')
    for name, points in (("loss", loss), ("eval", evaluation)):
        places = [place(*point) for point in points]
        if len(places) > 1:
            parts.append(f'<polyline class="{name}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>')
        if name == "eval" or len(places) == 1:
            parts += [f'<circle class="{name}" cx="{x}" cy="{y}" r="3"/>' for x, y in places]
    if not values:
        parts.append(f'<text class="below" x="{(_LEFT + _RIGHT) / 2}" y="{(_TOP + _BOTTOM) / 2}">no loss yet</text>')
    return "".join([*parts, "</svg>"])


def _label(curves: Mapping[str, Curve]) -> str:
    said = line(curves.get("loss") or [])
    return escape(f"Loss by step: {said}" if said else "No loss yet", quote=True)


def _ticks(low: float, high: float) -> Sequence[float]:
    """Round numbers, at least two, that reach from below ``low`` to above ``high``."""
    span = high - low if high > low else max(abs(high), 1.0) * 0.1
    size = 10.0 ** math.floor(math.log10(span / (_TICKS - 1)))
    size *= next(factor for factor in (1, 2, 5, 10) if span / (size * factor) <= _TICKS - 1)
    first, last = math.floor(low / size), math.ceil(high / size)
    return [size * i for i in range(first, max(last, first + 1) + 1)]
