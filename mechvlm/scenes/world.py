"""The words of the synthetic world, and the values that fill its scenes."""

from dataclasses import dataclass

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "diamond": "diamonds",
    "cross": "crosses",
    "ring": "rings",
}
"""Each shape's word for several."""
SIZES = ("small", "large")
NUMBERS = ("zero", "one", "two", "three", "four")
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 180),
    "cyan": (60, 210, 220),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
}
"""Each colour's word and its mean RGB value, 0..255."""

GRID = 3
CELL_PX = 24
IMAGE_PX = GRID * CELL_PX


def place(cell: int) -> str:
    """The words for a cell of the 3 x 3 grid, counted row by row from the top left.

    >>> place(0), place(5)
    ('top left', 'middle right')
    """
    return f"{ROWS[cell // GRID]} {COLUMNS[cell % GRID]}"


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape in one cell.

    Attributes:
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        size: One of `SIZES`.
        cell: 0..8, row by row from the top left.
        shift: Offset of its centre from the cell's centre, in pixels: (down, right).
        swell: 0..1, where it lies in the range of radii that its size word covers.
    """

    shape: str
    color: str
    size: str
    cell: int
    shift: tuple[float, float] = (0.0, 0.0)
    swell: float = 0.5

    @property
    def words(self) -> str:
        """How a description names it, such as `a red circle`."""
        return f"a {self.color} {self.shape}"

    @property
    def detail(self) -> str:
        """How a detailed description names it: with its size and its place."""
        return f"a {self.size} {self.color} {self.shape} in the {place(self.cell)}"


@dataclass(frozen=True, slots=True)
class Emblem:
    """The picture of a named entity: a 5 x 5 pattern on black, in one cell.

    Attributes:
        name: One of `entities.NAMES`.
        cell: 0..8, row by row from the top left.
        shift: Offset of its centre from the cell's centre, in pixels: (down, right).
    """

    name: str
    cell: int
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def words(self) -> str:
        """How a description names it: the bare name."""
        return self.name

    @property
    def detail(self) -> str:
        """How a detailed description names it: with its place."""
        return f"{self.name} in the {place(self.cell)}"
