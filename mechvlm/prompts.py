"""A prompt: token ids, everything the processor gave, and which position is what.

It is one object so that no call can lose the image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from mechvlm.errors import PairError, PromptError
from mechvlm.layout import GROUPS, Layout, Positions

__all__ = ["Prompt", "check_pair"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One question about one image (or none), ready for the model.

    Made by `vlm.prompt(...)` or `vlm.prompt_raw(...)`.

    Attributes:
        inputs: Every output of the processor, batch of one: ids, mask, pixels.
        layout: Which position is what.
        text: The rendered text, with one placeholder per image.
        tokens: What each position shows to a reader, one string per position.
        image: The original picture; None for a prompt of text alone.
        fills: What a new position, and one of padding, has in each further input that
            is given per position.
    """

    inputs: Mapping[str, Tensor]
    layout: Layout
    text: str
    tokens: tuple[str, ...]
    image: Image.Image | None = None
    fills: Mapping[str, int] = field(default_factory=dict)

    @property
    def ids(self) -> Int[Tensor, "1 position"]:
        """Token ids, image placeholders already expanded."""
        return self.inputs["input_ids"]

    @property
    def described(self) -> dict[str, str]:
        """The prompt as attributes of a result: its text and its image grids."""
        grids = [
            {
                "start": g.start, "rows": g.rows, "cols": g.cols, "box": list(g.box),
                "size": [g.width, g.height],
            }
            for g in self.layout.grids
        ]  # fmt: skip
        return {"prompt": self.text, "grids": json.dumps(grids)}

    def labels(
        self, dim: str = "position", at: Iterable[int] | None = None
    ) -> dict[str, tuple[str, list[str]]]:
        """What each position shows and the group it is in, as coordinates of a result.

        Args:
            dim: Dimension of the result that counts positions.
            at: The positions that it has, in its order; None means all.

        Returns:
            Coordinates "token" and "group" for `result.assign_coords`.
        """
        places = range(self.layout.n) if at is None else list(at)
        tokens = [self.tokens[place] for place in places]
        groups = [self.layout.group_of(place) for place in places]
        return {"token": (dim, tokens), "group": (dim, groups)}

    def extended(self, ids: Int[Tensor, " new"], tokens: tuple[str, ...]) -> Prompt:
        """The prompt followed by new tokens, which form the group "generated".

        Raises:
            PromptError: A new token is an image placeholder, which has no picture; or
                an input is given per position, and what it should be at a new one is
                not known.
        """
        self._refuse_placeholders(ids)
        new = ids[None].to(self.ids.device)
        ones = torch.ones_like(new)
        inputs = dict(self.inputs) | {"input_ids": torch.cat([self.ids, new], dim=1)}
        for name, filled in self._filled(len(ids)).items():
            inputs[name] = torch.cat([self.inputs[name], filled], dim=1)
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            inputs["attention_mask"] = torch.cat([mask, ones.to(mask.dtype)], dim=1)
        if "position_ids" in inputs:
            ahead = inputs["position_ids"][:, -1:] + ones.cumsum(dim=1)
            inputs["position_ids"] = torch.cat([inputs["position_ids"], ahead], dim=1)
        layout = self.layout.extended(len(ids))
        return replace(
            self, inputs=inputs, layout=layout, tokens=(*self.tokens, *tokens)
        )

    def left_padded(self, n_pad: int, pad_id: int) -> Prompt:
        """The prompt after `n_pad` padding positions, which form the group "pad".

        The padding is masked out and the position ids of the rest are kept, so every
        answer stays the same; every position moves up by `n_pad`.

        Raises:
            PromptError: As `extended`.
        """
        zeros = torch.zeros(1, n_pad, dtype=torch.long, device=self.ids.device)
        mask = self.inputs.get("attention_mask", torch.ones_like(self.ids))
        every = torch.arange(self.layout.n, device=self.ids.device)[None]
        # Where they are not given they may begin elsewhere, but rotary embeddings see
        # nothing of them but their differences.
        kept = self.inputs.get("position_ids", every)
        further = {
            name: torch.cat([filled, self.inputs[name]], dim=1)
            for name, filled in self._filled(n_pad).items()
        }
        inputs = dict(self.inputs) | {
            **further,
            "input_ids": torch.cat([zeros + pad_id, self.ids], dim=1),
            "attention_mask": torch.cat([zeros.to(mask.dtype), mask], dim=1),
            "position_ids": torch.cat([zeros, kept], dim=1),
        }
        groups = {
            name: Positions.of(i + n_pad for i in positions)
            for name, positions in self.layout.groups.items()
        }
        groups["pad"] = Positions.of(range(n_pad), groups.get("pad", ()))
        grids = tuple(replace(g, start=g.start + n_pad) for g in self.layout.grids)
        layout = Layout(self.layout.n + n_pad, groups, grids)
        tokens = ("<pad>",) * n_pad + self.tokens
        return replace(self, inputs=inputs, layout=layout, tokens=tokens)

    def _refuse_placeholders(self, ids: Int[Tensor, " new"]) -> None:
        """Refuse new tokens for which the model would look for image features."""
        known = set(self.ids[0, list(self.layout["image"])].tolist())
        at = [place for place, token in enumerate(ids.tolist()) if token in known]
        if at:
            raise PromptError(
                f"new token {at[0]} (id {int(ids[at[0]])}) is the image placeholder,"
                " and no picture belongs to it. A model that says it has lost its way;"
                " end the answer before it."
            )

    def _filled(self, n_new: int) -> dict[str, Int[Tensor, "1 new"]]:
        """The further per-position inputs at `n_new` positions of no special kind."""
        further = {
            name: x
            for name, x in self.inputs.items()
            if x.shape == self.ids.shape and name not in _COMMON
        }
        unknown = sorted(set(further) - set(self.fills))
        if unknown:
            raise PromptError(
                f"inputs {unknown} are given per position, and what they should be at"
                f" a new one is not known; known are {sorted({*_COMMON, *self.fills})}."
            )
        return {
            name: x.new_full((1, n_new), self.fills[name])
            for name, x in further.items()
        }


_COMMON = frozenset({"input_ids", "attention_mask", "position_ids"})
"""Inputs given per position whose meaning is the same in every model."""


def check_pair(clean: Prompt, corrupted: Prompt) -> None:
    """Check that two prompts can be matched position by position.

    Raises:
        PairError: They differ in length or in their groups.
    """
    ours, theirs = clean.layout, corrupted.layout
    if ours.n != theirs.n:
        raise PairError(
            f"the clean prompt has {ours.n} positions and the corrupted one"
            f" {theirs.n}: they cannot be matched one to one. Change words of the same"
            " number of tokens, or change only the image."
        )
    if ours.groups != theirs.groups:
        differing = [group for group in GROUPS if ours[group] != theirs[group]]
        raise PairError(
            "the clean and the corrupted prompt have the same length but other groups"
            f" ({', '.join(differing)}): their positions do not mean the same."
        )
