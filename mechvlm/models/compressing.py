"""Which image positions of a prompt are worth keeping, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.errors import LayoutError, MetricError, MissingImageError, PromptError
from mechvlm.layout import Positions
from mechvlm.models.context import Context, prompt_read, whole_context
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.rowwise.base import Based
from mechvlm.prompts import Prompt
from mechvlm.wanted import one

__all__ = [
    "DESCRIPTION",
    "SELECTORS",
    "Count",
    "Generated",
    "Keep",
    "LastRow",
    "Norm",
    "Random",
    "Select",
    "Selector",
    "compressed_context",
    "image_scores",
    "n_kept",
    "narrowed",
]

DESCRIPTION = 300
"""Longest description, tokens, whose attention scores the image."""


@dataclass(frozen=True)
class Count:
    """A number of positions, where a plain number would be a share of them.

    Attributes:
        n: The number, 0 or more.

    Example:
        >>> Count(28)
        Count(n=28)
    """

    n: int

    def __post_init__(self) -> None:
        """Refuse what counts nothing."""
        one(self.n, int, "Count", "Count(28)")
        if self.n < 0:
            raise LayoutError(f"Count({self.n}): wanted a number from 0 on.")


Keep: TypeAlias = float | int | Count
"""A share, 0 to 1 whether float or int; or a number of positions."""

Selector: TypeAlias = Callable[[HookedVLM, Prompt], Tensor]
"""(model, prompt) -> a score of each image position in each layer `[layer image]`; the
highest are kept."""

Select: TypeAlias = Literal["generated", "last", "norm", "random"] | Selector
"""A selector, or the name of one."""


@dataclass(frozen=True)
class Generated:
    """Attention of a description's steps, averaged over heads and steps.

    Step 0 is the last row of the prompt, which chooses the first token.

    Attributes:
        max_new_tokens: Longest description.
    """

    max_new_tokens: int = DESCRIPTION

    def __call__(self, vlm: HookedVLM, prompt: Prompt) -> Float[Tensor, "layer image"]:
        """Scores of the image positions."""
        at = list(prompt.layout["image"])
        total = torch.zeros(vlm.cfg.n_layers, len(at), device=vlm.cfg.device)
        hooks = [
            (f"blocks.{layer}.attn.hook_pattern", partial(_add_row, total[layer], at))
            for layer in range(vlm.cfg.n_layers)
        ]
        with vlm.hooks(fwd_hooks=hooks):
            said = vlm.generate(prompt, max_new_tokens=self.max_new_tokens)
        return total / len(said.ids)


@dataclass(frozen=True)
class LastRow:
    """Attention of the prompt's last row, averaged over heads."""

    def __call__(self, vlm: HookedVLM, prompt: Prompt) -> Float[Tensor, "layer image"]:
        """Scores of the image positions."""
        return Generated(max_new_tokens=1)(vlm, prompt)


@dataclass(frozen=True)
class Norm:
    """Length of the residual stream that enters the layer."""

    def __call__(self, vlm: HookedVLM, prompt: Prompt) -> Float[Tensor, "layer image"]:
        """Scores of the image positions."""
        at = list(prompt.layout["image"])
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(vlm.cfg.n_layers)]
        with torch.no_grad():
            _, seen = vlm.run_with_cache(prompt, names_filter=names)
        rows = [seen[name][0, at].float() for name in names]
        return torch.stack([each.norm(dim=-1).cpu() for each in rows])


@dataclass(frozen=True)
class Random:
    """Chance: other positions in every layer.

    Attributes:
        seed: Of the draw.
    """

    seed: int = 0

    def __call__(self, vlm: HookedVLM, prompt: Prompt) -> Float[Tensor, "layer image"]:
        """Scores of the image positions."""
        drawn = torch.Generator().manual_seed(self.seed)
        n_image = len(prompt.layout["image"])
        return torch.rand(vlm.cfg.n_layers, n_image, generator=drawn)


SELECTORS: Mapping[str, Selector] = MappingProxyType(
    {
        "generated": Generated(),
        "last": LastRow(),
        "norm": Norm(),
        "random": Random(),
    }
)
"""The selectors that have a name."""


def compressed_context(
    vlm: HookedVLM,
    prompt: Prompt | Based,
    *,
    keep: Keep,
    select: Select = "generated",
    text: str | Positions = "prompt_text",
) -> Context:
    """Read a prompt once and keep its text and the image positions that matter most.

    Each layer keeps other image positions, and as many as every other layer. What is
    kept stays at its original rotary position. Tokens that the model generated on the
    way are dropped.

    Args:
        vlm: The model.
        prompt: The prompt, such as "Describe the image." about a picture, or a run of
            it, which is read again.
        keep: Share of the image positions to keep in each layer, 0 to 1, rounded down:
            1 and 1.0 keep them all, 0 keeps the text alone. A number of them is
            `Count(28)`.
        select: What scores the image positions: "generated" (attention of up to 300
            steps of the model's answer to the prompt, averaged over heads and steps),
            "last" (attention of the prompt's last row), "norm" (length of the stream
            that enters the layer), "random", or a function of model and prompt that
            returns scores `[layer image]`. Of equals the first ones are kept.
        text: What is kept of the rest: a group of the layout, or positions outside the
            image. `Positions.of()` keeps the image alone, without the beginning of the
            sequence that attention rests on; "bos" keeps that.

    Returns:
        What `ask` asks. It holds keys and values until it is let go.

    Raises:
        ArgumentError: `prompt` or `keep` is of another kind.
        MissingImageError: The prompt has no image.
        LayoutError: The number cannot be kept, nothing would be, or `text` names image
            positions.
        MetricError: The scores have another shape, or are not finite.
        PromptError: No selector has this name, or the prompt holds generated tokens.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, image re-prompting.

    Example:
        >>> import mechvlm as mv
        >>> vlm, image = mv.load("demo"), mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("describe the image .", image)
        >>> keep = mv.Count(4)
        >>> context = mv.compressed_context(vlm, prompt, keep=keep, select="last")
        >>> context.n_image, len(context.kept) == vlm.cfg.n_layers
        (4, True)
        >>> half = mv.compressed_context(vlm, prompt, keep=0.5, select="last")
        >>> half.n_image == len(prompt.layout["image"]) // 2
        True
    """
    prompt = prompt_read(prompt)
    n = n_kept(keep, prompt)
    # Nothing to choose: a description would be read for nothing.
    chosen = Random() if n in (0, len(prompt.layout["image"])) else select
    scores = image_scores(vlm, prompt, chosen)
    return narrowed(whole_context(vlm, prompt), scores, keep=Count(n), text=text)


def image_scores(
    vlm: HookedVLM, prompt: Prompt, select: Select
) -> Float[Tensor, "layer image"]:
    """Scores that a selector gives to the image positions in each layer.

    Raises:
        MissingImageError: The prompt has no image.
        PromptError: No selector has this name.
        MetricError: The scores have another shape, or are not finite.
    """
    wanted = vlm.cfg.n_layers, _n_image(prompt)
    if isinstance(select, str) and select not in SELECTORS:
        raise PromptError(
            f"select={select!r}: wanted {', '.join(map(repr, SELECTORS))}, or a"
            " function (model, prompt) -> scores [layer image]."
        )
    selector = SELECTORS[select] if isinstance(select, str) else select
    scores = selector(vlm, prompt).float().cpu()
    if tuple(scores.shape) != wanted or not scores.isfinite().all():
        raise MetricError(
            f"the selector gave scores of shape {tuple(scores.shape)}, all finite:"
            f" {bool(scores.isfinite().all())}; wanted a finite number for each"
            f" (layer, image position), {wanted}."
        )
    return scores


def narrowed(
    context: Context,
    scores: Float[Tensor, "layer image"],
    *,
    keep: Keep,
    text: str | Positions = "prompt_text",
) -> Context:
    """The part of a whole context that the scores choose; see `compressed_context`.

    Raises:
        LayoutError: As there.
    """
    layout, n = context.prompt.layout, n_kept(keep, context.prompt)
    always = layout[text] if isinstance(text, str) else text
    if always & layout["image"]:
        raise LayoutError(
            f"text={text!r} names image positions, which `keep` and `select` choose."
            ' Give positions of text, or a group of them such as "prompt_text".'
        )
    image = torch.tensor(layout["image"].indices)
    best = scores.argsort(dim=-1, descending=True, stable=True)[:, :n]
    return context.narrowed([Positions.of(image[x].tolist()) | always for x in best])


def n_kept(keep: Keep, prompt: Prompt) -> int:
    """How many image positions a share or a number of them is.

    Raises:
        ArgumentError: It is neither.
        MissingImageError: The prompt has no image.
        LayoutError: There are not so many.
    """
    n_image = _n_image(prompt)
    one(keep, (float, int, Count), "keep", "a share, keep=0.05, or keep=Count(28)")
    if isinstance(keep, Count):
        if keep.n > n_image:
            raise LayoutError(
                f"keep={keep!r}: wanted 0 to {n_image}, the image positions there are."
            )
        return keep.n
    if isinstance(keep, bool) or not 0 <= keep <= 1:
        raise LayoutError(
            f"keep={keep!r}: wanted a share of the {n_image} image positions, 0.0 to"
            " 1.0. A number of them is Count(...), such as keep=Count(28)."
        )
    # As the paper: 0.05 of 576 positions is 28. But 0.29 of 100 is 29, not 28.999...
    return int(round(keep * n_image, 6))


def _n_image(prompt: Prompt) -> int:
    n_image = len(prompt.layout["image"])
    if not n_image:
        raise MissingImageError(
            "the prompt has no image, so there is no image position to keep. Build it"
            " with vlm.prompt(text, image)."
        )
    return n_image


def _add_row(
    total: Tensor, at: list[int], pattern: Tensor, hook: object = None
) -> None:
    """Add the attention that the pass's last row pays to some positions."""
    total += pattern[0, :, -1, at].float().mean(dim=0).to(total.device)
