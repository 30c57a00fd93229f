"""Rows that hold one picture and many independent questions about it.

Each question sees the picture and itself, at the positions it would have if it were
alone. One picture then pays for several answers, and what the model computes for each
is exactly what a single-question prompt gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvlm.models.demo.network import N_PATCHES
from mechvlm.models.demo.vocabulary import BOS, EOS, IMAGE, PAD, encode

UNASKED = -100
PREFIX = (BOS, *encode("user :"))
IMAGE_AT = slice(len(PREFIX), len(PREFIX) + N_PATCHES)
_CUT = -1e9
_ALL_SEE = 0
_PADDING = -1


@dataclass(frozen=True)
class Segment:
    """One question with its answer, or one sentence.

    Attributes:
        ids: Token ids.
        labels: For each token the id it must be predicted as; -100 is not asked.
        kind: What the log files it under.
        blind_from: From this token on, the picture cannot be read; None: it always can.
    """

    ids: list[int]
    labels: list[int]
    kind: str
    blind_from: int | None = None


@dataclass(frozen=True)
class Row:
    """Independent segments; behind one picture if `pictured`."""

    segments: Sequence[Segment]
    pictured: bool = True


@dataclass(frozen=True)
class Batch:
    """Rows as tensors.

    Attributes:
        ids: Token ids, padded on the right.
        positions: Position ids; each segment starts right behind the picture.
        labels: -100 where nothing is asked.
        weights: What each asked token counts in the loss: an answer of n tokens counts
            as much as the square root of n answers of one.
        mask: Added to the attention scores: 0 may be read, -1e9 may not.
        kinds: Index into the caller's kinds, where something is asked.
    """

    ids: Int[Tensor, "row position"]
    positions: Int[Tensor, "row position"]
    labels: Int[Tensor, "row position"]
    weights: Float[Tensor, "row position"]
    mask: Float[Tensor, "row 1 position position"]
    kinds: Int[Tensor, "row position"]


def answered(
    question: str, answer: str, kind: str, *, after: str = "", blind: bool = False
) -> Segment:
    """A question as it follows the picture, with a loss on the answer alone.

    Args:
        question: What is asked.
        answer: What must be said.
        kind: What the log files it under.
        after: A question that stands before it and stays unanswered, if any.
        blind: Whether the answer is computed without a direct view of the picture: the
            last token of the prompt cannot read it, nor can any word of a question that
            stands behind another one.
    """
    before = encode(f"{after} assistant :") if after else []
    asked = before + encode(f"{question} assistant :")
    said = [*encode(answer), EOS]
    labels = [UNASKED] * len(asked) + said
    blind_from = len(before) if after else len(asked) - 1
    return Segment(asked + said, labels, kind, blind_from if blind else None)


def alone(segment: Segment) -> Segment:
    """The same segment as a prompt without a picture."""
    labels = [UNASKED] * len(PREFIX) + segment.labels
    return Segment([*PREFIX, *segment.ids], labels, segment.kind)


def pack(rows: Sequence[Row], kinds: Sequence[str]) -> Batch:
    """Lay the rows out as tensors; a segment reads its picture and itself, causally."""
    length = max(_length(row) for row in rows)
    ids = np.full((len(rows), length), PAD)
    positions = np.zeros_like(ids)
    labels = np.full_like(ids, UNASKED)
    weights = np.zeros(ids.shape, dtype=np.float32)
    owner = np.full_like(ids, _PADDING)
    filed = np.zeros_like(ids)
    blind = np.zeros(ids.shape, dtype=bool)
    for at, row in enumerate(rows):
        start = begin = IMAGE_AT.stop if row.pictured else 0
        ids[at, :begin] = (*PREFIX, *[IMAGE] * N_PATCHES)[:begin]
        positions[at, :begin] = range(begin)
        owner[at, :begin] = _ALL_SEE
        for number, segment in enumerate(row.segments, start=1):
            here = slice(start, start + len(segment.ids))
            ids[at, here] = segment.ids
            labels[at, here] = segment.labels
            asked = labels[at, here] != UNASKED
            weights[at, here] = asked * asked.sum() ** -0.5
            positions[at, here] = range(begin, begin + len(segment.ids))
            owner[at, here] = number
            filed[at, here] = kinds.index(segment.kind)
            if segment.blind_from is not None:
                blind[at, start + segment.blind_from : here.stop] = True
            start = here.stop
    mask = _mask(torch.from_numpy(owner), torch.from_numpy(blind))
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
        mask=mask,
        kinds=torch.from_numpy(filed),
    )


def _length(row: Row) -> int:
    words = sum(len(segment.ids) for segment in row.segments)
    return words + (IMAGE_AT.stop if row.pictured else 0)


def _mask(
    owner: Int[Tensor, "row position"], blind: Bool[Tensor, "row position"]
) -> Float[Tensor, "row 1 position position"]:
    length = owner.shape[1]
    reads = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == _ALL_SEE)
    reads &= torch.ones(length, length, dtype=torch.bool).tril()
    reads[:, :, IMAGE_AT] &= ~blind[:, :, None]
    reads |= torch.eye(length, dtype=torch.bool)
    return torch.zeros(reads.shape).masked_fill_(~reads, _CUT)[:, None]
