"""Where a sweep goes: its layers, and in each of them positions, sets or heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from mechvlm.errors import InterventionError
from mechvlm.layout import Positions
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.sites import PER_HEAD, Component, Site
from mechvlm.wanted import layers_in

__all__ = ["Where", "check_direction", "layers_of", "places_of", "site_in"]

Where: TypeAlias = str | Positions | Mapping[str, Positions]
"""A group of the layout or "all", positions, or sets of positions by name."""


def check_direction(direction: str) -> None:
    """Whether clean activations go into the corrupted run, or the other way round.

    Raises:
        InterventionError: It is neither.
    """
    if direction not in ("denoise", "noise"):
        raise InterventionError(
            f"direction={direction!r}: wanted 'denoise' or 'noise'."
        )


def site_in(component: Component, layer: int, head: int | None = None) -> Site:
    """The site of a component in a layer; the embedding is what enters layer 0."""
    return Site(component) if component == "embed" else Site(component, layer, head)


def layers_of(
    vlm: HookedVLM, component: Component, layers: Sequence[int] | range | None
) -> list[int]:
    """Layers in which a component is patched; None takes all.

    Raises:
        LayerError: One does not exist, or there is none.
        ArgumentError: They are no whole numbers.
    """
    every = range(1 if component == "embed" else vlm.cfg.n_layers)
    return layers_in(
        layers,
        every,
        "layers",
        f"cannot be patched: {component!r} is there in layers 0..{every[-1]} of this"
        " model.",
    )


def places_of(
    vlm: HookedVLM, prompt: Prompt, site: Component, at: Where
) -> tuple[list[tuple[int | None, Positions]], dict[str, list[int] | list[str]]]:
    """What is patched in each layer, and the result's second dimension.

    Args:
        vlm: The model.
        prompt: The prompt.
        site: Component that is patched.
        at: "all", a group or positions: each alone, or of a per-head component all
            together, head by head. A mapping: each set as a whole.

    Returns:
        Heads (None: not by heads) with their positions; and "position", "set" or "head"
        with its labels.

    Raises:
        InterventionError: There is no position, or sets are asked of heads.
    """
    if isinstance(at, Mapping):
        if site in PER_HEAD:
            raise InterventionError(
                f"site {site!r} is patched head by head, so `at` must be one set of"
                " positions or a group, not a mapping of several."
            )
        return [(None, positions) for positions in at.values()], {"set": list(at)}
    every = Positions.of(range(prompt.layout.n))
    positions = (
        every if at == "all" else prompt.layout[at] if isinstance(at, str) else at
    )
    if not positions:
        raise InterventionError(
            f"at={at!r} is empty in this prompt, so there is nothing to patch."
        )
    if site not in PER_HEAD:
        alone = list(positions)
        return [(None, Positions.of(position)) for position in alone], {
            "position": alone
        }
    n_heads = vlm.cfg.n_key_value_heads if site in "kv" else vlm.cfg.n_heads
    return [(head, positions) for head in range(n_heads)], {
        "head": list(range(n_heads))
    }
