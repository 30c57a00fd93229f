"""What every analysis must find in each planted model, by hand arithmetic.

The clean picture is `scene(0)`, the corrupted one `scene(1)`; the background of both
weakly shows class 3. The last position's logits are 4 for the class that reached it
and 0 for the other three, so that there are three probabilities to know:

    SURE     e^4 / (e^4 + 3) = .948     the class that reached the last position
    WRONG      1 / (e^4 + 3) = .017     each other class, when one has
    CHANCE               1 / 4 = .250   every class, when none has

There is one exception: image tokens that are put back before the layer that makes them
readable are made so twice over, and their logit is 8:

    TWICE    e^8 / (e^8 + 3) = .999

h[k] is the residual stream that enters layer k; h[3] is what leaves the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mechvlm.models.planted.circuits import Circuit

__all__ = [
    "CHANCE",
    "EDGES",
    "EXPECTED",
    "POSITIONS",
    "RENORMALISED",
    "SURE",
    "TOLERANCE",
    "TWICE",
    "WRONG",
    "Expected",
]

PerLayer = tuple[float, float, float]

SURE = math.exp(4) / (math.exp(4) + 3)
WRONG = 1 / (math.exp(4) + 3)
CHANCE = 1 / 4
TWICE = math.exp(8) / (math.exp(8) + 3)

TOLERANCE = 0.001
"""How far a planted model may be from these numbers, in probability or as a fraction.
What uses it up is normalisation: each norm on the way shrinks the features by up to
0.02 percent, which adds up to logits of 3.997 for 4, and a probability 0.00014 low.
Logits, four times as large as features, are held to four times this."""

_UNIFORM = math.exp(4 * 0.5 * 13 / 18)
RENORMALISED = (
    1 / (3 + _UNIFORM),
    1 / (3 + _UNIFORM),
    1 / (3 + _UNIFORM),
    _UNIFORM / (3 + _UNIFORM),
)
"""P of the four classes in `build("direct", sink=False)` with object -> last cut.

The last position then attends evenly to the 18 positions left to it. 13 of them are
background, half a unit of class 3 each: the cut has made an answer out of nothing.
"""

POSITIONS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "bos": (0,),
        "system": (1,),
        "image": tuple(range(2, 18)),
        "query": (18, 19),
        "last": (20,),
        "object": (7, 8, 11),
    }
)
"""Where everything stands in the prompt; cell k of the image is position 2 + k."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What analyses must find in one circuit; P is the probability of class 0.

    Attributes:
        base: P on the clean picture.
        corrupted: P on the corrupted picture.
        ablated: P after `background_vector` replaced embeddings: of the "object", of
            the "background", of "two of three" object tokens.
        knockout: P per layer, after "target reads source" was cut in that layer alone.
            "source->target" as key.
        knockout_from: P after image->query+last was cut in layer 0, 1, 2, 3 and above.
        original: P per layer, after the corrupted run's image tokens were put into that
            layer's input.
        injected: As `original`, but the probability of class 1.
        recovery: Per layer, the part of the logit difference of classes 0 and 1 that
            returns to the corrupted run when the clean run's object tokens are put
            into that layer's input. None if there is no difference to recover.
        frozen: P after the image tokens of h[k] were held through all later layers,
            by k.
        back_patched: P after the image tokens of h[source] were put into h[target],
            by (source, target).
        lens: Part of the object tokens whose most probable word at h[0], h[1], h[2],
            h[3] is the object's class.
        reads: Per layer, the group of positions that takes all of the last position's
            attention.
        locates: The reader and the layer at which its attention within the image lies
            on the object and nowhere else.
        attribution: Sum of integrated gradients of the logit of class 0, from an image
            of background vectors; all of it on the object's tokens.
    """

    base: float
    corrupted: float
    ablated: Mapping[str, float]
    knockout: Mapping[str, PerLayer]
    knockout_from: tuple[float, float, float, float]
    original: PerLayer
    injected: PerLayer
    recovery: PerLayer | None
    frozen: Mapping[int, float]
    back_patched: Mapping[tuple[int, int], float]
    lens: tuple[float, float, float, float]
    reads: tuple[str, str, str]
    locates: tuple[str, int]
    attribution: float


_NO_EFFECT: PerLayer = (SURE, SURE, SURE)
_NOTHING_TO_LOSE: PerLayer = (CHANCE, CHANCE, CHANCE)
_ABLATED = {"object": CHANCE, "background": SURE, "two of three": SURE}

_RELAY = Expected(
    base=SURE,
    corrupted=WRONG,
    ablated=_ABLATED,
    knockout={
        "image->query": (CHANCE, SURE, SURE),
        "object->query": (CHANCE, SURE, SURE),
        "image->last": _NO_EFFECT,
        "object->last": _NO_EFFECT,
        "query->last": (SURE, SURE, CHANCE),
        "background->query+last": _NO_EFFECT,
    },
    knockout_from=(CHANCE, SURE, SURE, SURE),
    original=(WRONG, SURE, SURE),
    injected=(SURE, WRONG, WRONG),
    recovery=(1.0, 0.0, 0.0),
    frozen={0: SURE, 1: SURE},
    back_patched={(2, 0): SURE, (1, 0): SURE},
    lens=(1.0, 1.0, 1.0, 1.0),
    reads=("bos", "bos", "query"),
    locates=("query", 0),
    attribution=4.0,
)

_DIRECT = Expected(
    base=SURE,
    corrupted=WRONG,
    ablated=_ABLATED,
    knockout={
        "image->query": _NO_EFFECT,
        "object->query": _NO_EFFECT,
        "image->last": (SURE, CHANCE, SURE),
        "object->last": (SURE, CHANCE, SURE),
        "query->last": _NO_EFFECT,
        "background->query+last": _NO_EFFECT,
    },
    knockout_from=(CHANCE, CHANCE, SURE, SURE),
    original=(WRONG, WRONG, SURE),
    injected=(SURE, SURE, WRONG),
    recovery=(1.0, 1.0, 0.0),
    frozen={0: SURE, 1: SURE},
    back_patched={(2, 0): SURE, (1, 0): SURE},
    lens=(1.0, 1.0, 1.0, 1.0),
    reads=("bos", "image", "bos"),
    locates=("last", 1),
    attribution=4.0,
)

# Reads as direct does, but what it reads is only there from h[1] on.
_ENRICH = Expected(
    base=SURE,
    corrupted=WRONG,
    ablated=_ABLATED,
    knockout=_DIRECT.knockout,
    knockout_from=_DIRECT.knockout_from,
    original=_DIRECT.original,
    injected=_DIRECT.injected,
    recovery=_DIRECT.recovery,
    frozen={0: CHANCE, 1: SURE},
    back_patched={(2, 0): TWICE, (1, 0): TWICE},
    lens=(0.0, 1.0, 1.0, 1.0),
    reads=_DIRECT.reads,
    locates=_DIRECT.locates,
    attribution=4.0,
)

# Finds the object and reads nothing off it, unless a later layer's tokens are put back.
_TOO_LATE = Expected(
    base=CHANCE,
    corrupted=CHANCE,
    ablated=dict.fromkeys(_ABLATED, CHANCE),
    knockout=dict.fromkeys(_DIRECT.knockout, _NOTHING_TO_LOSE),
    knockout_from=(CHANCE, CHANCE, CHANCE, CHANCE),
    original=_NOTHING_TO_LOSE,
    injected=_NOTHING_TO_LOSE,
    recovery=None,
    frozen={0: CHANCE, 1: CHANCE},
    back_patched={(2, 0): SURE, (1, 0): CHANCE},
    lens=(0.0, 0.0, 1.0, 1.0),
    reads=("image", "bos", "bos"),
    locates=("last", 0),
    attribution=0.0,
)

EXPECTED: Mapping[Circuit, Expected] = MappingProxyType(
    {
        "relay": _RELAY,
        "direct": _DIRECT,
        "enrich": _ENRICH,
        "too_late": _TOO_LATE,
    }
)
"""What analyses must find, by circuit."""

EDGES: Mapping[Circuit, tuple[str, ...]] = MappingProxyType(
    {
        "relay": ("[object] -> L0.v0", "L0.H0 -> L2.v0", "L2.H0 -> logits"),
        "direct": ("[object] -> L1.v0", "L1.H0 -> logits"),
        "enrich": ("[object] -> MLP 0", "MLP 0 -> L1.v0", "L1.H0 -> logits"),
        "too_late": (),
    }
)
"""The edges along which the class travels, by circuit.

What makes a head look at the object (its query and key) is the same for every class, so
that between the clean and the corrupted picture it is on none of them.
"""
