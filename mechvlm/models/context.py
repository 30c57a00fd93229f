"""What is left of a prompt once it has been read: keys and values of some positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import ReferenceType, ref

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from mechvlm.errors import LayoutError, PromptError
from mechvlm.layout import Positions
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.rowwise.base import Based
from mechvlm.models.taps import taps
from mechvlm.prompts import Prompt
from mechvlm.wanted import one

__all__ = ["Context", "position_ids", "prompt_read", "whole_context"]


@dataclass(frozen=True, eq=False, repr=False)
class Context:
    """Keys and values of a prompt's positions, in which questions are asked.

    It keeps activations: of every layer the rotated keys and the values of the kept
    positions, on the model's device, until it is let go (`n_bytes`). The prompt beside
    them still holds the picture.

    Attributes:
        prompt: The prompt that was read.
        kept: Positions kept in each layer, of that prompt.
        keys: Keys of each layer, rotated to their original positions, in rising order.
        values: Values of each layer, in the same order.
        made_by: The Hugging Face model that read the prompt.
    """

    prompt: Prompt
    kept: tuple[Positions, ...]
    keys: tuple[Float[Tensor, "kv_head kept d_head"], ...]
    values: tuple[Float[Tensor, "kv_head kept d_head"], ...]
    made_by: ReferenceType[nn.Module]

    @property
    def n_bytes(self) -> int:
        """Bytes of all keys and values that are held."""
        return sum(x.nbytes for x in (*self.keys, *self.values))

    @property
    def n_tokens(self) -> int:
        """Positions kept in each layer, image and text."""
        return len(self.kept[0])

    @property
    def n_image(self) -> int:
        """Image positions kept in each layer."""
        return len(self.kept[0] & self.prompt.layout["image"])

    def __repr__(self) -> str:
        """What is held, of how much."""
        layout = self.prompt.layout
        text = self.n_tokens - self.n_image
        return (
            f"Context({self.n_tokens} of {layout.n} positions in each of"
            f" {len(self.kept)} layers: {self.n_image} of {len(layout['image'])} image,"
            f" {text} of {layout.n - len(layout['image'])} text;"
            f" {self.n_bytes:,} bytes of keys and values)"
        )

    def narrowed(self, kept: Sequence[Positions]) -> Context:
        """A context of fewer positions; this one stays as it is.

        Args:
            kept: Positions to keep in each layer, in every layer the same number.

        Raises:
            LayoutError: A position is not held here, there is none, or the layers
                differ in number.
        """
        if len(kept) != len(self.kept):
            raise LayoutError(
                f"positions are given for {len(kept)} layers, and this context has"
                f" {len(self.kept)}. Give one set of positions per layer."
            )
        sizes = sorted({len(positions) for positions in kept})
        if len(sizes) != 1 or not sizes[0]:
            raise LayoutError(
                f"the layers would keep {sizes} positions; wanted one number, above 0,"
                " in all of them. A context that keeps nothing cannot be asked."
            )
        rows = [_rows(mine, held) for mine, held in zip(kept, self.kept, strict=True)]
        return replace(
            self,
            kept=tuple(kept),
            keys=tuple(map(_taken, self.keys, rows)),
            values=tuple(map(_taken, self.values, rows)),
        )


def prompt_read(given: Prompt | Based) -> Prompt:
    """The prompt of a run; a prompt is its own.

    Raises:
        ArgumentError: It is neither.
    """
    found: object = given.prompt if isinstance(given, Based) else given
    return one(found, Prompt, "prompt", "vlm.prompt(text, image)")


@torch.no_grad()
def whole_context(vlm: HookedVLM, prompt: Prompt | Based) -> Context:
    """Read a prompt once and keep the keys and values of all its positions.

    Args:
        vlm: The model.
        prompt: The prompt, without generated tokens, or a run of it, which is read
            again.

    Raises:
        ArgumentError: It is no prompt.
        PromptError: The prompt holds generated tokens.

    Example:
        >>> import mechvlm as mv
        >>> from mechvlm.models.context import whole_context
        >>> vlm, image = mv.load("demo"), mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("describe the image .", image)
        >>> whole_context(vlm, prompt).n_tokens == prompt.layout.n
        True
    """
    prompt = prompt_read(prompt)
    if prompt.layout["generated"]:
        raise PromptError(
            "the prompt goes on with generated tokens, which a context drops, so it"
            " would not be clear where questions stand. Give the prompt alone."
        )
    cache = DynamicCache()
    inputs = dict(prompt.inputs) | {"position_ids": position_ids(prompt)}
    with taps(vlm.tapped):
        vlm.hf_model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    every = Positions.of(range(prompt.layout.n))
    layers: Sequence[Any] = cache.layers  # a plain cache has plain layers
    return Context(
        prompt,
        (every,) * len(layers),
        tuple(layer.keys[0] for layer in layers),
        tuple(layer.values[0] for layer in layers),
        ref(vlm.hf_model),
    )


def _rows(wanted: Positions, held: Positions) -> list[int]:
    """Where the wanted positions stand in the cache of the held ones."""
    missing = wanted - held
    if missing:
        raise LayoutError(
            f"positions {missing} are not held by this context, which holds {held}."
            " Narrow the context that still has them."
        )
    places = {position: row for row, position in enumerate(held)}
    return [places[position] for position in wanted]


def _taken(held: Tensor, rows: list[int]) -> Tensor:
    return held.index_select(1, torch.tensor(rows, device=held.device))


def position_ids(prompt: Prompt) -> Int[Tensor, "1 position"]:
    """Rotary positions of the prompt; padding moves them away from the indices."""
    every = torch.arange(prompt.layout.n, device=prompt.ids.device)[None]
    return prompt.inputs.get("position_ids", every)
