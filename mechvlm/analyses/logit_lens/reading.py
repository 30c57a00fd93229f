"""Residual streams and what the unembedding makes of them, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvlm.errors import MetricError
from mechvlm.layout import Positions
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run
from mechvlm.sites import Site
from mechvlm.wanted import layers_in

__all__ = ["CONVENTION", "Norm", "Tops", "depths", "logits_of", "streams", "top_words"]

Norm = Literal["final", "none"]

CONVENTION = (
    "layer k is h[k], the stream that enters layer k; the last one is what leaves the"
    " last layer, before the final norm"
)

CHUNK_BYTES = 64 * 2**20
"""Most memory for logits at once. All of them would be layers x positions x vocabulary:
2.4 GB for the image of LLaVA-1.5."""


class Tops(NamedTuple):
    """The most probable tokens of every layer and position, best first."""

    ids: Int[Tensor, "layer position k"]
    probabilities: Float[Tensor, "layer position k"]


def depths(vlm: HookedVLM, layers: Sequence[int] | range | None) -> list[int]:
    """The k of the h[k] that are asked for: 0 to the number of layers, inclusive.

    Raises:
        ArgumentError: They are no list of whole numbers.
        LayerError: One of them does not exist, or there is none.
    """
    n_layers = vlm.cfg.n_layers
    return layers_in(
        layers,
        range(n_layers + 1),
        "layers",
        "do not exist: the stream is there as h[0], which enters layer 0, to"
        f" h[{n_layers}], which leaves the last of the {n_layers}.",
    )


@torch.no_grad()
def streams(
    vlm: HookedVLM, given: Prompt | Run, at: Positions, layers: Sequence[int]
) -> Float[Tensor, "layer position d_model"]:
    """Rows of h[k], for every k of `layers`.

    Raises:
        RunError: The run did not record the stream.
        EngineError: The base run is another model's, or an older one's.
    """
    rows, n_layers = list(at), vlm.cfg.n_layers
    if isinstance(given, Run):
        if given.base is not None:
            given.base.check(vlm)
        kept = {k: given[_site(k, n_layers)][rows] for k in layers}
    else:
        kept = {}
        hooks = [
            (Site("resid_pre", k).hook_name, _keeping(kept, k, rows))
            for k in sorted({*layers} - {n_layers})
        ]
        # What enters "layer n_layers" is what leaves the last: no logits are computed.
        stop = n_layers if n_layers in layers else max(layers) + 1
        end = vlm.run_with_hooks(given, fwd_hooks=hooks, stop_at_layer=stop)
        if n_layers in layers:
            kept[n_layers] = end[0, rows]
    device = vlm.hf_model.get_submodule(vlm.family.head).weight.device
    found = [kept[k] for k in layers]
    if device.type != "meta":  # offloaded weights come to the rows when they are called
        found = [each.to(device) for each in found]
    return torch.stack([each.to(found[0].device) for each in found])


def _site(k: int, n_layers: int) -> Site:
    """Where a run keeps h[k]."""
    return Site("resid_post", k - 1) if k == n_layers else Site("resid_pre", k)


def _keeping(kept: dict[int, Tensor], k: int, rows: list[int]) -> Callable[..., None]:
    """A hook that keeps some rows, as they are now."""

    def keep(stream: Tensor, **_: object) -> None:
        kept[k] = stream[0, rows].clone()

    return keep


def logits_of(
    vlm: HookedVLM, rows: Float[Tensor, "row d_model"], norm: Norm
) -> Float[Tensor, "row vocab"]:
    """What the model's own unembedding makes of rows of the stream.

    Raises:
        MetricError: `norm` is neither "final" nor "none".
    """
    if norm not in ("final", "none"):
        raise MetricError(f"norm={norm!r}: wanted 'final' or 'none'.")
    normed = vlm.ln_final(rows) if norm == "final" else rows
    logits: Tensor = vlm.hf_model.get_submodule(vlm.family.head)(normed)
    cap = vlm.family.softcap(vlm.hf_model.config)
    capped = logits if cap is None else (logits / cap).tanh() * cap
    return capped.float()


def chunks(
    vlm: HookedVLM, stream: Float[Tensor, "layer position d_model"]
) -> Iterator[Float[Tensor, "row d_model"]]:
    """All rows, layer by layer, so many at a time as their logits may take memory."""
    n_rows = max(1, CHUNK_BYTES // (4 * vlm.cfg.d_vocab))
    yield from stream.flatten(0, 1).split(n_rows)


@torch.no_grad()
def top_words(
    vlm: HookedVLM,
    stream: Float[Tensor, "layer position d_model"],
    *,
    topk: int,
    norm: Norm,
    done: Callable[[int], object] | None = None,
) -> Tops:
    """The most probable tokens of every row.

    Args:
        vlm: The model.
        stream: The rows, as `streams` gives them.
        topk: Tokens of each row.
        norm: Whether the final norm is applied.
        done: Told how many rows are done, now and then.

    Raises:
        MetricError: `topk` is not a number of words.
    """
    if not 1 <= topk <= vlm.cfg.d_vocab:
        raise MetricError(f"topk={topk}: wanted 1 to {vlm.cfg.d_vocab} words.")
    ids, probabilities = [], []
    for rows in chunks(vlm, stream):
        logits = logits_of(vlm, rows, norm)
        best = logits.topk(topk, dim=-1)
        every = logits.logsumexp(dim=-1, keepdim=True)
        ids.append(best.indices.cpu())
        probabilities.append((best.values - every).exp().cpu())
        if done is not None:
            done(len(rows))
    shape = (*stream.shape[:2], topk)
    return Tops(torch.cat(ids).view(shape), torch.cat(probabilities).view(shape))
