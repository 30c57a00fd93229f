"""The residual stream's directions: what each coordinate means, written once.

A trained model keeps its features in unknown directions; a planted one keeps each in
a coordinate of its own, so that writing a weight is naming what it reads and writes.
A flag is 0 or 1. A class is one of four, one-hot, scaled by how strongly it is seen.
"""

from __future__ import annotations

__all__ = [
    "ANSWER",
    "BEGINNING",
    "BUFFER",
    "CARRIER",
    "CARRIER_SIZE",
    "CONTENT",
    "IMAGE",
    "LAST",
    "N_CLASSES",
    "OBJECT",
    "OUT",
    "QUERY",
    "RAW",
    "WIDTH",
]

N_CLASSES = 4
WIDTH = 32

# One coordinate each.
CARRIER = 0
"""The same large number everywhere: it keeps normalisation steady, see below."""
BEGINNING, IMAGE, OBJECT, QUERY, LAST, ANSWER = range(1, 7)
"""What the position holds: the beginning of the sequence (the attention sink), an
image patch, a patch of the object, a question word, the answer's cue, an answer."""

# Four coordinates each, one per class.
RAW, CONTENT, BUFFER, OUT = (slice(8 + 4 * k, 12 + 4 * k) for k in range(4))
"""A class that nothing downstream reads yet; that attention can read; that a question
word has collected; that the last position is about to say."""

CARRIER_SIZE = 100.0
"""Size of the carrier.

RMSNorm divides a position by sqrt((C^2 + s) / WIDTH), where C is the carrier and s the
sum of the other coordinates' squares, about 3. So the divisor is C / sqrt(WIDTH) to
within a part s / 2C^2 = 0.00015, whatever the position holds: a norm weight of
C / sqrt(WIDTH) undoes it, and the layers see the coordinates as they stand. The
carrier's own norm weight is smaller by C, so that a layer sees it as the number 1:
the bias term that Llama's linear layers do not have.

Normalisation forgets scale: a residual stream multiplied by a number means the same.
So an ablation with zeros leaves nothing to read, but half of an embedding is all of it.
"""
