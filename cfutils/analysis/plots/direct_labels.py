"""Labels beside the points of a scatter plot, in place of a legend: a small deterministic placement.

Each label has a fixed list of candidate places around its point, near ones first. Labels are placed one
after the other where the cost is lowest, then each is placed again given all others, a few times over.
The cost counts overlap with other labels, with markers, with error bars and curves, and the distance.
Trade-off: greedy, so not always the best placement, but without dependency and the same at every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

RADII = (9, 15, 22, 30, 40, 52, 66, 82, 100, 120)
"""Distances of a label from its point, in points (1/72 inch)."""
DIRECTIONS = 16
LEADER = 15
"""From this distance on a thin line joins label and point."""
MARKER = 5.5
"""Half the width of a marker, in points."""
SWEEPS = 6


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point and the text that belongs to it, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def label_points(
    ax: Axes,
    marks: Sequence[Mark],
    *,
    segments: Sequence[Sequence[tuple[float, float]]] = (),
    size: float = 9,
) -> None:
    """Write the texts beside their points; call it when limits, scales and everything else are set.

    segments: lines (start, end) in data coordinates that a label should not cover, such as error bars.
    size: font size in points. Labels stay inside the axes.
    """
    fig = ax.figure
    fig.draw_without_rendering()  # fixes the layout, and with it where points are
    unit = fig.dpi / 72
    at = ax.transData.transform([(m.x, m.y) for m in marks])
    lines = [ax.transData.transform(line) for line in segments]
    places = _solve(at / unit, _sizes(ax, marks, size), [line / unit for line in lines],
                    ax.bbox.extents / unit)  # fmt: skip
    for mark, (x, y, radius), start in zip(marks, places, at / unit, strict=True):
        arrow = {"arrowstyle": "-", "color": mark.colour, "linewidth": 0.7, "alpha": 0.8,
                 "shrinkA": 1, "shrinkB": 4}  # fmt: skip
        note = ax.annotate(
            mark.text, (mark.x, mark.y), (x - start[0], y - start[1]), textcoords="offset points",
            ha="center", va="center", fontsize=size, color=mark.colour, zorder=6,
            arrowprops=arrow if radius >= LEADER else None, parse_math=False,
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        note.set_in_layout(False)


def _sizes(ax: Axes, marks: Sequence[Mark], size: float) -> np.ndarray:
    """Width and height of each text in points (n, 2)."""
    renderer, unit = ax.figure.canvas.get_renderer(), ax.figure.dpi / 72
    found = []
    for mark in marks:
        text = ax.text(0, 0, mark.text, fontsize=size, parse_math=False)
        box = text.get_window_extent(renderer)
        text.remove()
        found.append((box.width / unit, box.height / unit))
    return np.array(found)


def _solve(
    at: np.ndarray, sizes: np.ndarray, lines: Sequence[np.ndarray], frame: np.ndarray
) -> list[tuple[float, float, float]]:
    """Centre (x, y) and distance of each label, all in points; at (n, 2), sizes (n, 2), frame x0 y0 x1 y1."""
    options = [_candidates(point, size) for point, size in zip(at, sizes, strict=True)]
    fixed = [_fixed_cost(i, options[i], at, sizes[i], lines, frame) for i in range(len(at))]
    # the most crowded points first: they have the fewest good places
    gaps = np.linalg.norm(at[:, None] - at[None], axis=2)
    crowd = (gaps < 60).sum(1)
    order = sorted(range(len(at)), key=lambda i: (-crowd[i], i))
    chosen: dict[int, int] = {}
    for _ in range(SWEEPS):
        before = dict(chosen)
        for i in order:
            cost = fixed[i].copy()
            for j, place in chosen.items():
                if j != i:
                    cost += _pair_cost(
                        options[i], sizes[i], at[i], options[j][place], sizes[j], at[j]
                    )
            chosen[i] = int(cost.argmin())
        if chosen == before:
            break
    return [tuple(options[i][chosen[i]]) for i in range(len(at))]


def _candidates(point: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Centres and distances (n, 3): the label's box touches the end of a ray of that length."""
    found = []
    for radius in RADII:
        for k in range(DIRECTIONS):
            angle = 2 * np.pi * k / DIRECTIONS
            way = np.array([np.cos(angle), np.sin(angle)])
            # from the end of the ray to the centre of a box that lies beyond it
            reach = np.clip(way * 1.5, -1, 1) * size / 2
            found.append([*(point + way * radius + reach), radius])
    return np.array(found)


def _boxes(centres: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.concatenate([centres - size / 2, centres + size / 2], axis=-1)


def _overlap(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Area that boxes (n, 4) share with one box (4,)."""
    wide = np.minimum(boxes[:, 2], other[2]) - np.maximum(boxes[:, 0], other[0])
    tall = np.minimum(boxes[:, 3], other[3]) - np.maximum(boxes[:, 1], other[1])
    return np.clip(wide, 0, None) * np.clip(tall, 0, None)


def _inside(boxes: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Length of one line (2, 2) that lies inside each box (n, 4), by sampling it."""
    steps = np.linspace(line[0], line[1], 60)
    held = (steps[None] >= boxes[:, None, :2]) & (steps[None] <= boxes[:, None, 2:])
    return held.all(2).mean(1) * float(np.linalg.norm(line[1] - line[0]))


def _fixed_cost(
    i: int, options: np.ndarray, at: np.ndarray, size: np.ndarray, lines: Sequence[np.ndarray],
    frame: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Cost of each candidate place of label i against all that does not move."""
    boxes = _boxes(options[:, :2], size)
    out = np.clip(frame[:2] - boxes[:, :2], 0, None) + np.clip(boxes[:, 2:] - frame[2:], 0, None)
    cost = options[:, 2] * 0.8 + 1e4 * (out.sum(1) > 0)
    own = _gap(boxes, at[i])
    # a leader along an axis would hide behind the point's own error bars
    straight = np.abs(options[:, :2] - at[i]).min(1) < 3
    cost += 25 * (straight & (options[:, 2] >= LEADER))
    for j, point in enumerate(at):
        cost += 40 * (_overlap(boxes, np.array([*(point - MARKER), *(point + MARKER)])) > 0)
        if j != i:  # a leader that runs through another point would seem to belong to it
            cost += 30 * (_distance(at[i], options[:, :2], point) < MARKER)
            # without a leader, a label is read as that of the nearest point
            nearer = _gap(boxes, point) < own + 2
            cost += nearer * np.where(options[:, 2] < LEADER, 60, 12)
    padded = boxes + np.array([-2, -2, 2, 2])
    for line in lines:
        cost += 2.5 * _inside(padded, line)
        cost += 10 * (_crosses(at[i], options[:, :2], line) & (options[:, 2] >= LEADER))
    return cost


def _crosses(start: np.ndarray, ends: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Whether each leader start - end (n, 2) crosses one line (2, 2) that does not run through start."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        u, v = b - a, c - a
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    from_line = side(line[0], line[1], start) * side(line[0], line[1], ends)
    from_leader = side(start, ends, line[0]) * side(start, ends, line[1])
    through = _distance(line[0], line[1][None], start)[0] < 1
    return (from_line < 0) & (from_leader < 0) & ~through


def _gap(boxes: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Distance of a point from each box (n, 4)."""
    out = np.maximum(np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]), 0)
    return np.linalg.norm(out, axis=1)


def _distance(start: np.ndarray, ends: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Distance of a point from each line start - end (n, 2)."""
    way = ends - start
    share = np.clip(((point - start) * way).sum(1) / np.maximum((way**2).sum(1), 1e-12), 0, 1)
    return np.linalg.norm(start + share[:, None] * way - point, axis=1)


def _pair_cost(
    options: np.ndarray, size: np.ndarray, start: np.ndarray, other: np.ndarray,
    other_size: np.ndarray, other_start: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Cost of each candidate place against one label that is placed, and against its leader."""
    box = _boxes(other[:2], other_size + 3)
    boxes = _boxes(options[:, :2], size)
    cost = 1e3 * (_overlap(boxes, box) > 0)
    cost += 6 * _inside(boxes, np.array([other_start, other[:2]]))
    ways = options[:, :2] - start
    steps = start + np.linspace(0, 1, 30)[None, :, None] * ways[:, None]
    held = ((steps >= box[:2]) & (steps <= box[2:])).all(2).mean(1)
    return cost + 6 * held * np.linalg.norm(ways, axis=1)
