"""The unfolded network as shapes: steps are columns, W leads from column to column."""

import dataclasses
from collections.abc import Sequence

COLUMN, LEFT, RADIUS, HEAD = 82, 48, 19, 6
ROWS = {"l": 26, "o": 96, "h": 182, "x": 268}


@dataclasses.dataclass(frozen=True)
class Node:
    """A circle: its symbol and index, and what stands beside it."""

    symbol: str
    index: int
    x: int
    y: int
    aside: str = ""

    @property
    def name(self) -> str:
        """Such as h2; the state before the first step is h-1."""
        return f"{self.symbol}{self.index}"


@dataclasses.dataclass(frozen=True)
class Edge:
    """An arrow upwards or to the right; `label` is the matrix on it, with the place of that."""

    name: str
    label: str
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def head(self) -> str:
        """The corners of the arrow's head."""
        (x0, _), (x, y) = self.start, self.end
        if x0 == x:
            corners = ((x, y), (x - HEAD, y + 2 * HEAD), (x + HEAD, y + 2 * HEAD))
        else:
            corners = ((x, y), (x - 2 * HEAD, y - HEAD), (x - 2 * HEAD, y + HEAD))
        return " ".join(f"{a},{b}" for a, b in corners)

    @property
    def label_at(self) -> tuple[int, int]:
        """Right of an arrow upwards, above one to the right."""
        (x0, y0), (x, y) = self.start, self.end
        return (x + 13, (y0 + y) // 2 + 5) if x0 == x else ((x0 + x) // 2 - 3, y - 10)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """All of it, in pixels."""

    steps: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def width(self) -> int:
        """Of the picture."""
        return LEFT + COLUMN * self.steps + LEFT

    @property
    def height(self) -> int:
        """Of the picture."""
        return ROWS["x"] + 64


def draw(steps: int, inputs: Sequence[str] = (), targets: Sequence[str] = ()) -> Drawing:
    """The network over `steps` steps; `inputs` and `targets` are what stands beside x_t and l_t."""
    nodes, edges = [Node("h", -1, LEFT, ROWS["h"])], []
    for t in range(steps):
        x = LEFT + COLUMN * (t + 1)
        aside = {"x": inputs[t] if inputs else "", "l": targets[t] if targets else ""}
        nodes += [Node(symbol, t, x, y, aside.get(symbol, "")) for symbol, y in ROWS.items()]
        before = x - COLUMN + RADIUS
        edges += [
            Edge(f"W{t}", "W", (before, ROWS["h"]), (x - RADIUS, ROWS["h"])),
            *(
                Edge(f"{name}{t}", label, (x, ROWS[low] - RADIUS), (x, ROWS[high] + RADIUS))
                for name, label, low, high in (("U", "U", "x", "h"), ("V", "V", "h", "o"), ("L", "", "o", "l"))
            ),
        ]
    return Drawing(steps, tuple(nodes), tuple(edges))


def walk(t: int, k: int) -> list[str]:
    """What the cotangent of term (t, k) passes on its way back, from l_t to h_k."""
    back = [name for j in range(t, k, -1) for name in (f"W{j}", f"h{j - 1}")]
    return [f"l{t}", f"L{t}", f"o{t}", f"V{t}", f"h{t}", *back]


def uses(k: int) -> list[str]:
    """Where the term's parameters are used: the edges into h_k, and where these come from."""
    return [f"W{k}", f"U{k}", f"h{k - 1}", f"x{k}"]
