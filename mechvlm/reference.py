"""The meaning of every intervention: one whole forward pass each, slow and obvious.

Nothing here is clever. The engine gives the same answers with less work and is judged
by this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.interventions import (
    Intervention,
    Patch,
    PathPatch,
    listed,
    parts,
)
from mechvlm.layout import Positions
from mechvlm.metrics import Metric
from mechvlm.models.checking import check_all
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike, Sources, hooks_of, unused
from mechvlm.models.rowwise.packing import check_rows
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt
from mechvlm.record import Run, record
from mechvlm.sites import Site

__all__ = ["intervene"]


@torch.no_grad()
def intervene(
    vlm: HookedVLM,
    prompt: Prompt,
    interventions: Sequence[Intervention] | Intervention,
    *,
    runs: Mapping[str, RunLike] | None = None,
    vectors: Mapping[str, Tensor] | None = None,
    metric: Metric | None = None,
    batch_tokens: int | None = None,
    progress: str | bool | None = None,
) -> Float[Tensor, "run vocab"] | Float[Tensor, " run"]:
    """Run a prompt once per intervention and read the last position.

    Everything is checked before anything runs.

    Args:
        vlm: The model.
        prompt: The prompt that is run.
        interventions: A list with one run each. A tuple is one of them: several
            things done at once, in order.
        runs: Recorded runs by the names that patches use.
        vectors: Vectors by the names that ablations and additions use.
        metric: What to read of each run; None gives the logits.
        batch_tokens: Most rows to compute at once. The reference has no batches and
            takes it only to have the engine's signature.
        progress: None shows a progress bar in a terminal for work of over a second;
            words stand in front of it; False shows none.

    Returns:
        Last-position logits, or the metric's number, one row per intervention.

    Raises:
        InterventionError: An intervention means nothing on this prompt.
        LayerError: A layer or head does not exist.
        RunError: A run is not given, or lacks what is asked of it.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> image = mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("how many objects are there ?", image)
        >>> at = prompt.layout
        >>> blind = mv.Knockout(range(8), at["query"] | at["last"], at["image"])
        >>> logits = mv.reference.intervene(vlm, prompt, [mv.NOTHING, blind])
        >>> bool((logits[0] != logits[1]).any())
        True
    """
    check_rows(batch_tokens)
    todo = listed(interventions)
    sources = Sources(runs or {}, vectors or {})
    check_all(vlm, prompt, todo, sources)
    rows = []
    with bar_of(len(todo), progress) as bar:
        for each in todo:
            logits = _one(vlm, prompt, each, sources)
            rows.append(logits if metric is None else metric(logits[None])[0])
            bar.update()
    return torch.stack(rows)


def _one(
    vlm: HookedVLM, prompt: Prompt, intervention: Intervention, sources: Sources
) -> Float[Tensor, " vocab"]:
    """Last-position logits of one whole pass."""
    intervention, sources = _without_paths(vlm, prompt, intervention, sources)
    hooks = list(hooks_of(intervention, range(prompt.layout.n), sources))
    with vlm.attn_results(hooks):
        logits: Tensor = vlm.run_with_hooks(prompt, fwd_hooks=hooks)
    last: Tensor = logits[0, -1]
    return last


def _without_paths(
    vlm: HookedVLM, prompt: Prompt, intervention: Intervention, sources: Sources
) -> tuple[Intervention, Sources]:
    """Each path patch as patches of its receivers from a run made for it."""
    plain: list[Intervention] = []
    runs = dict(sources.runs)
    for i, part in enumerate(parts(intervention)):
        if isinstance(part, PathPatch):
            to = _all(prompt) if part.to is None else part.to
            for receiver in part.receivers:
                made = unused(f"path {i} to {receiver!r}", runs)
                runs[made] = _through_frozen_heads(vlm, prompt, part, receiver, sources)
                plain.append(Patch(receiver, to, made))
        else:
            plain.append(part)
    return tuple(plain), Sources(runs, sources.vectors)


def _through_frozen_heads(
    vlm: HookedVLM, prompt: Prompt, path: PathPatch, receiver: Site, sources: Sources
) -> Run:
    """What a receiver gets when only the senders, and MLPs after them, change.

    Wang et al. 2022: every head keeps this prompt's own output, except the senders. So
    does every MLP where the path says so. The receiver's own attention or MLP does not.
    """
    own = record(vlm, prompt, ["z", "mlp_post"])
    ours = unused("own", sources.runs)
    at = _all(prompt) if path.at is None else path.at
    frozen = [Patch(site, _all(prompt), ours) for site in _frozen(vlm, path, receiver)]
    sent = [Patch(site, at, path.run) for site in path.feeding(receiver)]
    runs = {**sources.runs, ours: own}
    hooks = list(hooks_of((*frozen, *sent), range(prompt.layout.n), Sources(runs, {})))
    with ExitStack() as stack:
        stack.enter_context(vlm.attn_results(hooks))
        stack.enter_context(vlm.hooks(fwd_hooks=hooks))
        return record(vlm, prompt, [receiver])


def _frozen(vlm: HookedVLM, path: PathPatch, receiver: Site) -> Iterator[Site]:
    """Where this run keeps its own values on the way to a receiver."""
    attends = receiver.component in ("z", "result", "attn_out")
    for layer in range(vlm.cfg.n_layers):
        if not attends or layer != receiver.layer:
            yield Site("z", layer)
        elif receiver.head is not None:
            others = (h for h in range(vlm.cfg.n_heads) if h != receiver.head)
            yield from (Site("z", layer, head) for head in others)
        own_mlp = layer == receiver.layer and receiver.component.startswith("mlp")
        if path.mlps == "frozen" and not own_mlp:
            yield Site("mlp_post", layer)


def _all(prompt: Prompt) -> Positions:
    return Positions.of(range(prompt.layout.n))
