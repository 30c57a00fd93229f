"""Real LLaVA models whose weights are written by hand, so that the circuit is known.

Four circuits, each a `LlavaForConditionalGeneration` of three layers with nothing
trained and nothing replaced. A class (0 to 3) travels from the object's image tokens
to the last position:

    relay      layer 0: object -> query;  layer 2: query -> last
    direct     layer 1: object -> last
    enrich     layer 0 makes the image tokens readable;  layer 1: object -> last
    too_late   layer 0: object -> last;  layer 1 makes the image tokens readable

`EXPECTED` says what each analysis must find in each of them, by hand arithmetic.
Read `directions.py` first, then `circuits.py`: the rest only carries them.
"""

from __future__ import annotations

from mechvlm.models.planted.build import background_vector, build
from mechvlm.models.planted.circuits import CIRCUITS, Circuit
from mechvlm.models.planted.expected import (
    CHANCE,
    EDGES,
    EXPECTED,
    POSITIONS,
    RENORMALISED,
    SURE,
    TOLERANCE,
    TWICE,
    WRONG,
    Expected,
)
from mechvlm.models.planted.picture import OBJECT_CELLS, scene
from mechvlm.models.planted.words import ANSWERS, QUESTION, SYSTEM, messages

__all__ = [
    "ANSWERS",
    "CHANCE",
    "CIRCUITS",
    "EDGES",
    "EXPECTED",
    "OBJECT_CELLS",
    "POSITIONS",
    "QUESTION",
    "RENORMALISED",
    "SURE",
    "SYSTEM",
    "TOLERANCE",
    "TWICE",
    "WRONG",
    "Circuit",
    "Expected",
    "background_vector",
    "build",
    "messages",
    "scene",
]
