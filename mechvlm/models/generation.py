"""Greedy generation with a KV cache, under interventions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from mechvlm.cone import Reads
from mechvlm.errors import InterventionError, MechVLMWarning
from mechvlm.interventions import Intervention, Knockout, PathPatch, parts
from mechvlm.layout import Layout
from mechvlm.models.checking import check_all
from mechvlm.models.config import Config
from mechvlm.models.family import Family
from mechvlm.models.hooks import Hook
from mechvlm.models.lowering import Sources, hooks_of
from mechvlm.models.setting import Setting
from mechvlm.models.taps import Tapped, taps
from mechvlm.prompts import Prompt

__all__ = [
    "Generation",
    "KeptLogits",
    "Speaker",
    "check_arms",
    "check_kept",
    "ends_of",
    "generate",
    "longest",
    "said",
]


KeptLogits: TypeAlias = Literal["all", "first"]
"""Which steps' logits outlast their step: all, or the first new token's alone."""


@runtime_checkable
class Speaker(Protocol):
    """What generation needs of a hooked model."""

    hf_model: Any
    cfg: Config
    family: Family
    tapped: Tapped

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...

    def setting(self, prompt: Prompt) -> Setting:
        """What every layer is told of a prompt's positions."""
        ...

    def hooks(self, fwd_hooks: list[Hook]) -> AbstractContextManager[object]:
        """Temporary hooks."""
        ...

    def attn_results(self, hooks: list[Hook]) -> AbstractContextManager[None]:
        """Per-head results, where one of the hooks needs them."""
        ...


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model said, step by step.

    Attributes:
        ids: New token ids, end-of-sequence included where it was reached.
        text: Their text, special tokens left out.
        logits: Logits that each of them was chosen from; those of the first alone where
            no others were asked for.
        layout: The prompt's layout with the new tokens as group "generated".
    """

    ids: Int[Tensor, " new"]
    text: str
    logits: Float[Tensor, "step vocab"]
    layout: Layout


def generate(
    vlm: Speaker,
    prompt: Prompt,
    max_new_tokens: int,
    intervention: Intervention,
    sources: Sources,
    *,
    logits: KeptLogits = "all",
) -> Generation:
    """Continue a prompt greedily; see `HookedVLM.generate`."""
    longer = longest(prompt, max_new_tokens)
    check_arms(vlm, longer, [intervention], sources)
    ends = ends_of(vlm.hf_model)
    # A plain cache: one that drops old keys would break "key index == position".
    inputs: dict[str, Any] = dict(prompt.inputs) | {"past_key_values": DynamicCache()}
    kept: list[Tensor] = []
    rows, chosen = range(prompt.layout.n), []
    while True:
        step = _step(vlm, inputs, hooks=list(hooks_of(intervention, rows, sources)))
        if logits == "all" or not kept:
            kept.append(step)
        chosen.append(int(step.argmax()))
        if len(chosen) == max_new_tokens or chosen[-1] in ends:
            break
        inputs = _next(vlm, inputs, chosen[-1])
        rows = range(rows.stop, rows.stop + 1)
    return said(vlm, prompt, intervention, chosen, torch.stack(kept))


def check_kept(logits: str) -> None:
    """Refuse what is no name of kept logits.

    Raises:
        InterventionError: It is neither "all" nor "first".
    """
    if logits not in get_args(KeptLogits):
        raise InterventionError(
            f"logits={logits!r}: wanted 'all', or 'first' for those of the first new"
            " token alone."
        )


def longest(prompt: Prompt, max_new_tokens: int) -> Prompt:
    """The prompt with all new tokens that may be fed back in, as yet unknown ones.

    The last new token is chosen but never fed back in, so its row is not computed.

    Raises:
        InterventionError: There is no new token.
    """
    if max_new_tokens < 1:
        raise InterventionError(f"max_new_tokens={max_new_tokens}: wanted at least 1.")
    new = torch.zeros(max_new_tokens - 1, dtype=torch.long)
    return prompt.extended(new, tuple("" for _ in new)) if len(new) else prompt


def check_arms(
    vlm: Speaker,
    longer: Prompt,
    arms: Sequence[Intervention],
    sources: Sources,
    reads: Reads | None = None,
) -> None:
    """Refuse what cannot be applied to the prompt and the tokens after it.

    Args:
        vlm: The model.
        longer: The prompt with the tokens after it; see `longest`.
        arms: What is to be done.
        sources: The named runs and vectors.
        reads: Who may read whom, where that is known already.

    Raises:
        InterventionError: And its kinds; see `checking.check`.
    """
    if any(isinstance(part, PathPatch) for arm in arms for part in parts(arm)):
        raise InterventionError(
            "PathPatch consists of several runs of a prompt and is not defined while"
            " generating; use intervene on the prompt, extended by what was generated."
        )
    check_all(vlm, longer, arms, sources, reads)


def said(
    vlm: Speaker,
    prompt: Prompt,
    intervention: Intervention,
    chosen: Sequence[int],
    logits: Tensor,
) -> Generation:
    """What was generated; warns of what the answer was too short for."""
    _warn_unreached(intervention, prompt.layout.n + len(chosen) - 1)
    return Generation(
        torch.tensor(chosen),
        vlm.tokenizer.decode(chosen, skip_special_tokens=True).strip(),
        logits,
        prompt.layout.extended(len(chosen)),
    )


def _step(vlm: Speaker, inputs: dict[str, Any], *, hooks: list[Hook]) -> Tensor:
    """Last-position logits of one forward that fills the cache."""
    with vlm.attn_results(hooks), vlm.hooks(fwd_hooks=hooks), taps(vlm.tapped):
        out = vlm.hf_model(**inputs, use_cache=True, logits_to_keep=1)
    last: Tensor = out.logits[0, -1]
    return last


def _next(vlm: Speaker, inputs: dict[str, Any], token: int) -> dict[str, Any]:
    """Inputs of the next forward: one new token, everything else from the cache."""
    device = inputs["input_ids"].device
    new = torch.tensor([[token]], device=device)
    kept = {k: v for k, v in inputs.items() if k not in vlm.family.pixels}
    mask = kept.get("attention_mask")
    if mask is not None:
        kept["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    if "position_ids" in kept:
        kept["position_ids"] = kept["position_ids"][:, -1:] + 1
    return kept | {"input_ids": new}


def ends_of(hf_model: Any) -> set[int]:
    """Token ids that end an answer."""
    found = hf_model.generation_config.eos_token_id
    if found is None:
        found = hf_model.config.text_config.eos_token_id
    if found is None:
        return set()
    return {found} if isinstance(found, int) else set(found)


def _warn_unreached(intervention: Intervention, n: int) -> None:
    """Say so where the answer ended before any row that an intervention names."""
    for part in parts(intervention):
        if isinstance(part, PathPatch):
            continue
        named = part.target if isinstance(part, Knockout) else part.at
        if min(named) >= n:
            warnings.warn(
                f"{part!r} names positions from {min(named)} on, and the answer ended"
                f" after {n} were computed: it changed nothing.",
                MechVLMWarning,
                stacklevel=5,
            )
