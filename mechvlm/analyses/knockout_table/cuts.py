"""The cuts and the windows of layers that papers give names to."""

from __future__ import annotations

from math import floor
from typing import TypeAlias

from mechvlm.errors import InterventionError
from mechvlm.layout import ImageGrid, Layout, Positions

__all__ = ["Cut", "flow_cuts", "named_windows", "object_cuts"]

Cut: TypeAlias = tuple[Positions, Positions]
"""Positions that read (target), and positions that they no longer read (source)."""

_PAPER_LAYERS = 32
_OF_PAPER = {
    "early": range(0, 10),
    "early-mid": range(5, 15),
    "mid": range(11, 21),
    "mid-late": range(15, 25),
    "late": range(21, 32),
    "all": range(32),
}
"""Windows of Neo et al. in a model of 32 layers. None holds layer 10 but "early-mid"
and "all", as in their code."""


def named_windows(n_layers: int) -> dict[str, range]:
    """Windows of layers by Neo et al.'s names, scaled to a model's depth.

    Of 32 layers they are early 0-9, early-mid 5-14, mid 11-20, mid-late 15-24, late
    21-31 and all 0-31. Of n layers, a window begins and ends at the same share of the
    depth: at 32nds times n, rounded to the nearest layer, halves up. Each holds at
    least one layer, so that two may be the same in a shallow model.

    Args:
        n_layers: Depth of the model, 1 or more.

    Returns:
        Name -> layers, what `knockout_windows(windows=...)` takes.

    Raises:
        InterventionError: There is no layer.

    Paper: Neo et al. 2024, arXiv:2410.07149, table 2.

    Example:
        >>> named_windows(32)["mid-late"], named_windows(8)["mid-late"]
        (range(15, 25), range(4, 6))
    """
    if n_layers < 1:
        raise InterventionError(f"n_layers={n_layers}: a model has at least one layer.")
    share = n_layers / _PAPER_LAYERS
    windows = {}
    for name, layers in _OF_PAPER.items():
        start = min(floor(layers.start * share + 0.5), n_layers - 1)
        windows[name] = range(start, max(start + 1, floor(layers.stop * share + 0.5)))
    return windows


def object_cuts(layout: Layout, at: Positions) -> dict[str, Cut]:
    """Neo et al.'s cuts around an object, by name.

    Names read as information would flow: "object->last" says that the last position no
    longer reads the object's tokens; "object+1" are the object and one ring of cells
    around it, "rest" all other image tokens, "last row" the bottom row of the (last)
    image grid, whatever its width.

    Args:
        layout: The prompt's layout.
        at: The object's image positions, as `layout.region` gives them.

    Returns:
        Name -> (target, source): "object->last", "object+1->last", "object+2->last",
        "rest of object->last", "rest of object+1->last", "object+1->last row" and
        "rest of last row->last row". A rest that is empty, because the object's rings
        fill the image, is left out.

    Raises:
        InterventionError: The object has no position, or one that is no image token.

    Paper: Neo et al. 2024, arXiv:2410.07149, table 2.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> layout = vlm.prompt("how many objects are there ?", scene.image).layout
        >>> cuts = mv.object_cuts(layout, layout.region(scene.mask(0)))
        >>> target, source = cuts["object+1->last"]
        >>> target == layout["last"], len(source) > len(cuts["object->last"][1])
        (True, True)
    """
    _check_object(layout, at)
    image, last = layout["image"], layout["last"]
    row = _bottom(layout.grids[-1])
    one, two = grown(layout, at, 1), grown(layout, at, 2)
    cuts = {
        "object->last": (last, at),
        "object+1->last": (last, one),
        "object+2->last": (last, two),
        "rest of object->last": (last, image - at),
        "rest of object+1->last": (last, image - one),
        "object+1->last row": (row, one),
        "rest of last row->last row": (row, image - row),
    }
    return {name: cut for name, cut in cuts.items() if cut[1]}


def flow_cuts(layout: Layout, at: Positions | None = None) -> dict[str, Cut]:
    """Zhang et al.'s flows of information, by name.

    The question is the user's text alone, without template and without the last
    position.

    Args:
        layout: The prompt's layout.
        at: An object's image positions; None leaves the flows from the object out.

    Returns:
        Name -> (target, source): "image->question", "image->last", "question->last" and
        "last->last" (the last position no longer reads itself); with an object,
        "object->question" and "other patches->question".

    Raises:
        InterventionError: The prompt has no image or no question, or the object's
            positions are no image tokens.

    Paper: Zhang et al. 2024, arXiv:2411.18620.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> list(mv.flow_cuts(prompt.layout))
        ['image->question', 'image->last', 'question->last', 'last->last']
    """
    image, last = layout["image"], layout["last"]
    question = layout["query"] - last
    if not image or not question:
        missing = "question" if image else "image"
        raise InterventionError(
            f"this prompt has no {missing}, so nothing flows from it. Build it with"
            " vlm.prompt(question, image)."
        )
    cuts = {
        "image->question": (question, image),
        "image->last": (last, image),
        "question->last": (last, question),
        "last->last": (last, last),
    }
    if at is None:
        return cuts
    _check_object(layout, at)
    cuts["object->question"] = question, at
    if image - at:
        cuts["other patches->question"] = question, image - at
    return cuts


def grown(layout: Layout, at: Positions, rings: int) -> Positions:
    """Image positions and so many rings of cells around them, diagonals included."""
    found: set[int] = set()
    for grid in layout.grids:
        for position in at & grid.positions:
            row, col = divmod(position - grid.start, grid.cols)
            rows = range(max(0, row - rings), min(grid.rows, row + rings + 1))
            cols = range(max(0, col - rings), min(grid.cols, col + rings + 1))
            found.update(grid.position(r, c) for r in rows for c in cols)
    return Positions.of(found)


def _bottom(grid: ImageGrid) -> Positions:
    """The last row of a grid."""
    return Positions.of(grid.position(grid.rows - 1, col) for col in range(grid.cols))


def _check_object(layout: Layout, at: Positions) -> None:
    if not at or at - layout["image"]:
        raise InterventionError(
            f"the object is at positions {at or 'none'}, and the image at"
            f" {layout['image'] or 'none'}: its tokens must be some of the image's."
            " Take them from prompt.layout.region(box or mask)."
        )
