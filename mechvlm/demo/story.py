"""What the sweeps say, in one plain sentence each."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mechvlm.axes import Labelled

__all__ = ["carried_from", "reading", "where_read", "where_written"]

Floats = Float[np.ndarray, " layer"]

_HALF = 0.5
"""Recovery from which on a position is said to carry the answer."""

_NOTHING = 5
"""Percent of the answer's probability; a cut that costs less is not spoken of."""


def where_read(drop: Labelled) -> str:
    """One sentence: who reads the object (or the image), and in which layers."""
    source = str(drop["cut"].values[0]).split(" → ")[0]
    names = [str(name) for name in drop["cut"].values if str(name).startswith(source)]
    name = min(names, key=lambda each: float(drop.sel(cut=each)[0]))
    line = drop.sel(cut=name).values
    if line[0] > -_NOTHING:
        return (
            f"Read: cutting {' or '.join(names)} in all layers costs the answer no more"
            f" than {_NOTHING} % of its probability: neither is needed alone."
        )
    first, last = reading(line)
    reader = "the question" if name.endswith("question") else "the last position"
    after = line[last + 1] if last + 1 < len(line) else 0.0
    return (
        f"Read: {reader} reads the {source} in {_layers(first, last)}; cutting that"
        f" from layer {first} on costs {-line[first]:.0f} % of the answer's"
        f" probability, from layer {last + 1} on {max(0.0, -after):.0f} %."
    )


def where_written(way: Labelled) -> str:
    """One sentence: from which layer on the last position carries the answer."""
    line = way.sel(set="last").values
    at = carried_from(line)
    if at is None:
        return "Written: no layer's input has the answer at the last position to stay."
    return (
        f"Written: from the input of layer {int(way['layer'][at])} on the answer stands"
        " at the last position; patching that one position there restores"
        f" {100 * line[at]:.0f} % of it."
    )


def carried_from(recovery: Floats) -> int | None:
    """Layer from which on all recover half or more; None where the last does not.

    Example:
        >>> carried_from(np.array([0.6, 0.1, 0.5, 0.9])), carried_from(np.zeros(2))
        (2, None)
    """
    short = np.flatnonzero(recovery < _HALF)
    first = int(short[-1]) + 1 if len(short) else 0
    return first if first < len(recovery) else None


def reading(line: Floats) -> tuple[int, int]:
    """Layers between which the effect of a cut goes from nine tenths to one tenth."""
    left = np.append(line[1:], 0.0) / line[0]
    first = int(np.flatnonzero(left < 0.9)[0])
    return first, max(first, int(np.flatnonzero(left <= 0.1)[0]))


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"
