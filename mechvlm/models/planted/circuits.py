"""The four circuits: which layer reads what from where, and the moves they consist of.

Each circuit is a function of a few lines that reads like its description. Below them
stand the three moves, each of which writes one part of one Llama layer; a layer that
gets none keeps zero weights and passes the residual stream on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mechvlm.models.planted.directions import (
    BEGINNING,
    BUFFER,
    CARRIER,
    CONTENT,
    IMAGE,
    LAST,
    N_CLASSES,
    OBJECT,
    OUT,
    QUERY,
    RAW,
)

__all__ = ["CIRCUITS", "HEAD_WIDTH", "N_HEADS", "PLANT", "SEEN_AS", "Circuit", "sink"]

Circuit = Literal["relay", "direct", "enrich", "too_late"]
CIRCUITS: tuple[Circuit, ...] = ("relay", "direct", "enrich", "too_late")

N_HEADS = 2
HEAD_WIDTH = 16

_SINK_SCORE = 20.0
_READ_SCORE = 40.0
"""Attention scores. Twenty apart is e^20 in the softmax: whatever scores highest takes
all but 10^-7 of the attention."""

_SINK_AT, _READ_AT = HEAD_WIDTH // 2 - 1, HEAD_WIDTH - 1
"""The two head coordinates that scores are made of. Rotary embedding turns coordinate i
with i + HEAD_WIDTH / 2, and the last such pair slowest of all: at the model's
rope_theta by less than 10^-8 over a whole prompt, so that these two hold still."""


def _relay(layers: Sequence[LlamaDecoderLayer]) -> None:
    """The question collects the object's class, and the last position asks it."""
    _read(layers[0], reader=QUERY, source=OBJECT, take=CONTENT, give=BUFFER)
    _read(layers[2], reader=LAST, source=QUERY, take=BUFFER, give=OUT)


def _direct(layers: Sequence[LlamaDecoderLayer]) -> None:
    """The last position reads the object itself."""
    _read(layers[1], reader=LAST, source=OBJECT, take=CONTENT, give=OUT)


def _enrich(layers: Sequence[LlamaDecoderLayer]) -> None:
    """The image tokens become readable in time for the last position."""
    _decode(layers[0])
    _read(layers[1], reader=LAST, source=OBJECT, take=CONTENT, give=OUT)


def _too_late(layers: Sequence[LlamaDecoderLayer]) -> None:
    """The last position looks before there is anything to read."""
    _read(layers[0], reader=LAST, source=OBJECT, take=CONTENT, give=OUT)
    _decode(layers[1])


PLANT: dict[str, Callable[[Sequence[LlamaDecoderLayer]], None]] = {
    "relay": _relay,
    "direct": _direct,
    "enrich": _enrich,
    "too_late": _too_late,
}
"""What writes each circuit into a decoder's layers."""

SEEN_AS: dict[str, slice] = {
    "relay": CONTENT,
    "direct": CONTENT,
    "enrich": RAW,
    "too_late": RAW,
}
"""Where the projector puts the class that an image token shows."""


def sink(layer: LlamaDecoderLayer) -> None:
    """Every position that reads nothing else looks at the beginning, and finds nothing.

    The beginning holds no class, so its value is zero: the head writes nothing there.
    That is how only readers write, although a head attends from every position.
    """
    for head in range(N_HEADS):
        at = head * HEAD_WIDTH + _SINK_AT
        # Scores are divided by sqrt(HEAD_WIDTH) later; the query makes up for it.
        layer.self_attn.q_proj.weight[at, CARRIER] = _SINK_SCORE * HEAD_WIDTH**0.5
        layer.self_attn.k_proj.weight[at, BEGINNING] = 1


def _read(
    layer: LlamaDecoderLayer, *, reader: int, source: int, take: slice, give: slice
) -> None:
    """Positions flagged `reader` copy the class at `take` of `source` into `give`.

    Both heads look alike, but only head 0 writes: head 1's values meet zero output
    weights. So attention is the same in both, and influence is not.
    """
    for head in range(N_HEADS):
        first = head * HEAD_WIDTH
        at = first + _READ_AT
        layer.self_attn.q_proj.weight[at, reader] = _READ_SCORE * HEAD_WIDTH**0.5
        layer.self_attn.k_proj.weight[at, source] = 1
        layer.self_attn.v_proj.weight[first : first + N_CLASSES, take] = _copy()
    layer.self_attn.o_proj.weight[give, :N_CLASSES] = _copy()


def _decode(layer: LlamaDecoderLayer) -> None:
    """Image positions turn their raw class into readable content; no other does.

    A SwiGLU unit computes silu(gate) * up. The gate asks whether this is an image
    position: silu(20) is 20 to float precision and silu(0) is 0, so the unit is linear
    in `up` where the answer is yes and silent where it is no.
    """
    opened = 20.0
    layer.mlp.gate_proj.weight[:N_CLASSES, IMAGE] = opened
    layer.mlp.up_proj.weight[:N_CLASSES, RAW] = _copy()
    layer.mlp.down_proj.weight[CONTENT, :N_CLASSES] = _copy() / opened


def _copy() -> Float[Tensor, "class class"]:
    """The weights that hand each class on unchanged."""
    return torch.eye(N_CLASSES)
