"""Where the nodes of a provenance graph stand in its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gmtool.stages.report.provenance import Graph, Node, kind_words

WIDTH, HEIGHT = 150, 40
"""Size of a node's box, in pixels."""
ACROSS, DOWN, TOP, MARGIN = 27, 10, 30, 2
"""Gaps between boxes, space for the columns' titles, and the margin around all."""
LETTERS = 22
"""Largest number of letters of a name in a box."""


@dataclass(frozen=True)
class Box:
    """A node's box: its place, its short texts, and its number on the page."""

    node: Node
    number: int
    x: float
    y: float

    @property
    def title(self) -> str:
        """The name, cut to fit; what differs is mostly at its end."""
        name = self.node.name
        return name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"


@dataclass(frozen=True)
class Drawing:
    """The picture: its size, its titles by their x, boxes, and the edges as SVG paths."""

    width: float
    height: float
    titles: Mapping[str, float]
    boxes: tuple[Box, ...]
    paths: tuple[str, ...]


def lay_out(graph: Graph) -> Drawing:
    """Lay out a graph in the columns of its nodes, from left to right; what was made from a node stands beside it."""
    used = sorted({node.column for node in graph.nodes.values()})
    x = {column: MARGIN + place * (WIDTH + ACROSS) for place, column in enumerate(used)}
    y = _rows(graph)
    boxes = {
        key: Box(node, number, x[node.column], TOP + y[key]) for number, (key, node) in enumerate(graph.nodes.items())
    }
    return Drawing(
        width=max(x.values()) + WIDTH + MARGIN,
        height=max(box.y for box in boxes.values()) + HEIGHT + MARGIN,
        titles={_title(graph, column): x[column] + WIDTH / 2 for column in used},
        boxes=tuple(boxes.values()),
        paths=tuple(_path(boxes[one], boxes[other]) for one, other in sorted(graph.edges)),
    )


def _rows(graph: Graph) -> dict[str, float]:
    """The y of each node: leaves one below the other, the rest in the middle of what was made from it."""
    y: dict[str, float] = {}
    pitch, free = HEIGHT + DOWN, 0

    def place(key: str) -> None:
        nonlocal free
        below = [child for child in graph.children(key) if child not in y]
        for child in below:
            place(child)
        if below:
            y[key] = sum(y[child] for child in below) / len(below)
        else:
            y[key] = pitch * free
            free += 1

    for key in graph.nodes:
        if key not in y and not graph.parents(key):
            place(key)
    for column in {node.column for node in graph.nodes.values()}:
        lowest = float("-inf")
        for key in sorted((key for key, node in graph.nodes.items() if node.column == column), key=y.__getitem__):
            y[key] = lowest = max(y[key], lowest + pitch)
    return y


def _title(graph: Graph, column: int) -> str:
    """What stands in a column: "samples, sweep"."""
    return ", ".join(dict.fromkeys(kind_words(node.kind) for node in graph.nodes.values() if node.column == column))


def _path(one: Box, other: Box) -> str:
    """A curve from one box's right side to another's left side; in one column, to its right side."""
    x0, y0, x1, y1 = one.x + WIDTH, one.y + HEIGHT / 2, other.x, other.y + HEIGHT / 2
    if x1 < x0:
        return f"M{x0:g} {y0:g}C{x0 + ACROSS:g} {y0:g} {x0 + ACROSS:g} {y1:g} {x1 + WIDTH:g} {y1:g}"
    bend = (x1 - x0) / 2
    return f"M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"
