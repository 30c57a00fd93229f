"""From interventions to few passes, with a cost that can be printed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from mechvlm.cone import Cones, Reads
from mechvlm.interventions import Intervention, listed
from mechvlm.models.checking import check_all, shape_at
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.rowwise.batches import Item
from mechvlm.models.rowwise.costs import Costs
from mechvlm.models.rowwise.packing import Pass, check_rows, most_rows, packed
from mechvlm.models.rowwise.sending import Sending
from mechvlm.paths import Lowered, Stage, lowered
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of

__all__ = ["Pass", "Plan", "Stage", "plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a sweep will cost. Print it.

    Attributes:
        items: The interventions, path patches lowered to patches.
        stages: The runs that path patches need beforehand.
        sendings: What path patches into the stream need, without a run.
        stage_passes: The stages in passes.
        passes: The interventions in passes; those that change nothing are in none.
        rows: Rows through one layer, summed over layers and passes.
        work: Multiplications of all passes.
        least: Multiplications of just those cells that can change and matter.
        whole: Multiplications of one whole pass per intervention.
        peak_bytes: Most memory at once beside the model's own, estimated: the base run,
            one pass, what path patches put into receivers, and the logits of all
            interventions.
    """

    items: tuple[Item, ...]
    stages: tuple[Stage, ...]
    sendings: tuple[Sending, ...]
    stage_passes: tuple[Pass, ...]
    passes: tuple[Pass, ...]
    rows: int
    work: int
    least: int
    whole: int
    peak_bytes: int

    @property
    def share(self) -> float:
        """Work done, as a share of that of whole passes."""
        return self.work / self.whole

    def __str__(self) -> str:
        """The cost in words and numbers, one a line."""
        n_passes = len(self.passes) + len(self.stage_passes)
        idle = sum(not item.steps for item in self.items)
        lines = [
            f"interventions  {len(self.items):>10,}",
            f"passes         {n_passes:>10,}",
            f"rows           {self.rows:>10,}   summed over layers",
            f"work           {self.share:>10.2%}   of whole passes",
            f"peak memory    {_in_words(self.peak_bytes):>10}   beside the model",
        ]
        if idle:
            reason = "   reach nothing that the answer depends on"
            lines.insert(1, f"without effect {idle:>10,}{reason}")
        return "\n".join(lines)


def plan(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    interventions: Sequence[Intervention] | Intervention,
    *,
    batch_tokens: int | None = None,
) -> Plan:
    """What a sweep will cost, before anything runs.

    Args:
        vlm: The model.
        prompt: The prompt, or its base run.
        interventions: As `intervene` takes them.
        batch_tokens: Most rows to compute at once; None takes what fits well into free
            memory.

    Returns:
        A plan; print it.

    Raises:
        InterventionError: An intervention means nothing on this prompt, or there is
            none, or `batch_tokens` is below 1.
        LayerError: A layer or head does not exist.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> image = mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("how many objects are there ?", image)
        >>> at = prompt.layout
        >>> cuts = [mv.Knockout(range(l, 8), at["last"], at["image"]) for l in range(8)]
        >>> cost = mv.plan(vlm, prompt, cuts)
        >>> len(cost.passes), cost.share < 0.01
        (1, True)
    """
    base = prompt.base if isinstance(prompt, Run) else None
    asked = prompt_of(prompt)
    check_rows(batch_tokens)
    reads = vlm.setting(asked).reads if base is None else base.reads
    todo = listed(interventions)
    check_all(vlm, asked, todo, None, reads)
    return planned(vlm, reads, todo, batch_tokens)


def planned(
    vlm: HookedVLM,
    reads: Reads,
    todo: Sequence[Intervention],
    batch_tokens: int | None,
) -> Plan:
    """The plan of checked interventions; see `plan`."""
    costs = Costs(vlm.cfg, reads)
    cones = Cones(reads, reads.n - 1)
    plain = lowered(todo, cones)
    items = tuple(Item(each, cones.of(each)) for each in plain.plain)
    row_bytes = costs.row_bytes(plain.plain)
    most = most_rows(vlm.cfg, row_bytes, batch_tokens)
    passes = tuple(packed(items, most))
    before = tuple(stage.item for stage in plain.stages)
    stage_passes = tuple(packed(before, most))
    rows = max((each.rows for each in (*passes, *stage_passes)), default=0)
    done = {steps: costs.done(steps) for steps in {x.steps for x in (*items, *before)}}
    least = {steps: costs.least(steps) for steps in done}
    logits = len(items) * vlm.cfg.d_vocab * vlm.cfg.dtype.itemsize
    return Plan(
        items=items,
        stages=plain.stages,
        sendings=plain.sendings,
        stage_passes=stage_passes,
        passes=passes,
        rows=sum(len(s.rows) for item in (*items, *before) for s in item.steps),
        work=sum(done[item.steps] for item in (*items, *before)),
        least=sum(least[item.steps] for item in (*items, *before)),
        whole=len(items) * costs.whole(),
        peak_bytes=costs.base_bytes() + rows * row_bytes + logits + _held(vlm, plain),
    )


def _held(vlm: HookedVLM, plain: Lowered) -> int:
    """Memory of what path patches put into receivers, all of which is kept."""
    found = [(each.site, each.to) for each in plain.sendings]
    found += [pair for stage in plain.stages for pair in stage.to.items()]
    numbers = sum(len(to) * prod(shape_at(vlm.cfg, site)) for site, to in found)
    return numbers * vlm.cfg.dtype.itemsize


def _in_words(n_bytes: int | float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
