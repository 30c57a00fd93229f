"""What parts of a model give when they are ablated: runs that are not of one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.errors import ArgumentError, InterventionError, PromptError, RunError
from mechvlm.models.checking import shape_at
from mechvlm.models.config import Config
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike
from mechvlm.prompts import Prompt, check_pair
from mechvlm.record import record
from mechvlm.sites import Site
from mechvlm.wanted import several

__all__ = [
    "Ablation",
    "Values",
    "ablated_run",
    "check_values",
    "giving",
    "mean_run",
    "zero_run",
]

Ablation: TypeAlias = Literal["counterfactual", "mean", "zero"] | RunLike
"""What stands for a part that is ablated: its value in the corrupted run, its mean over
prompts, zeros, or that of a run at hand, such as `mean_run` makes."""

_GIVING = ("embed", "z", "mlp_out")
"""Components that give to the stream."""


@dataclass(frozen=True, eq=False)
class Values:
    """Activations by site, made of no single prompt: what `runs=` takes.

    Attributes:
        about: What they are, in words.
        activations: Hook name -> activation `[position ...]`.
    """

    about: str
    activations: Mapping[str, Tensor] = field(repr=False)

    def __getitem__(self, site: Site) -> Float[Tensor, "position ..."]:
        """Activation at a site; of one head where the site names one.

        Raises:
            RunError: It is not among them.
        """
        if site.hook_name not in self.activations:
            raise RunError(
                f"{self.about} has no {site.hook_name}: it holds what gives to the"
                f" stream, which is {', '.join(_GIVING)} of every layer."
            )
        value = self.activations[site.hook_name]
        return value if site.head is None else value[:, site.head]


def giving(cfg: Config) -> list[Site]:
    """Every site that gives to the stream: embeddings, heads and MLPs."""
    layers = range(cfg.n_layers)
    heads = [Site("z", layer) for layer in layers]
    return [Site("embed"), *heads, *(Site("mlp_out", layer) for layer in layers)]


def zero_run(vlm: HookedVLM, prompt: Prompt) -> Values:
    """Zeros in place of whatever gives to the stream.

    Args:
        vlm: The model.
        prompt: A prompt of the same length.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> bool(zero_run(vlm, prompt)[mv.Site("mlp_out", 2)].any())
        False
    """
    cfg, n = vlm.cfg, prompt.layout.n
    zeros = {
        site.hook_name: torch.zeros(
            n, *shape_at(cfg, site), dtype=cfg.dtype, device=cfg.device
        )
        for site in giving(cfg)
    }
    return Values("zero run", zeros)


@torch.no_grad()
def mean_run(vlm: HookedVLM, prompts: Iterable[Prompt]) -> Values:
    """What gives to the stream, on average over prompts, position by position.

    Args:
        vlm: The model.
        prompts: Prompts of one layout, such as one question about many pictures: the
            more, the less of any single one is left.

    Returns:
        Values at the embeddings, every head and every MLP.

    Raises:
        PromptError: There are fewer than two prompts.
        PairError: Their layouts differ, so that their positions do not mean the same.
        ArgumentError: They are no prompts.

    Paper: mean ablation as in Wang et al. 2022, arXiv:2211.00593.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> images = [mv.scenes.sample(seed, n=1).image for seed in range(3)]
        >>> asked = [vlm.prompt("how many objects are there ?", x) for x in images]
        >>> mean = mean_run(vlm, asked)
        >>> len(mean[mv.Site("z", 2, head=1)]) == asked[0].layout.n
        True
    """
    fix = "[vlm.prompt(question, image) for image in images]"
    given = several(prompts, Prompt, "prompts", fix)
    if len(given) < 2:
        raise PromptError(
            f"{len(given)} prompts: a mean that ablates needs at least two, and is the"
            " better the more there are."
        )
    for other in given[1:]:
        check_pair(given[0], other)
    sites = giving(vlm.cfg)
    sums: dict[str, Tensor] = {}
    for prompt in given:
        run = record(vlm, prompt, sites)
        for site in sites:
            # In fp64: a sum of many 16-bit numbers forgets the last ones.
            value = run[site].double()
            sums[site.hook_name] = sums.get(site.hook_name, 0) + value
    means = {name: (each / len(given)).to(vlm.cfg.dtype) for name, each in sums.items()}
    return Values(f"mean of {len(given)} prompts", means)


def check_values(cfg: Config, ablated: object, n: int) -> RunLike:
    """A run that can stand for all that a prompt of `n` positions gives.

    Args:
        cfg: The model's numbers.
        ablated: What came.
        n: Positions of the prompt.

    Raises:
        ArgumentError: It is no run.
        RunError: It lacks the embeddings, or a layer's z or mlp_out, or its positions
            are not as many.
    """
    # Strings, lists and mappings are subscripted too, but not by sites.
    other = isinstance(ablated, (str, Sequence, Mapping))
    if other or not isinstance(ablated, RunLike):
        raise ArgumentError(
            f"the ablated values are a {type(ablated).__name__}; wanted a run, such as"
            " mechvlm.mean_run(vlm, prompts) or mechvlm.record(vlm, prompt)."
        )
    for site in giving(cfg):
        shape = tuple(ablated[site].shape)
        wanted = (n, *shape_at(cfg, site))
        if shape != wanted:
            raise RunError(
                f"the ablated values at {site!r} are of shape {shape}, and the prompt"
                f" needs {wanted}. Were they made of prompts of another length, or by"
                " another model? Values are put in position by position: make them of"
                " prompts of the same layout."
            )
    return ablated


def ablated_run(
    vlm: HookedVLM,
    corrupted: Prompt,
    ablation: Ablation,
    others: Sequence[Prompt] = (),
) -> RunLike:
    """What everything gives when it is ablated.

    Args:
        vlm: The model.
        corrupted: The corrupted prompt, for "counterfactual".
        ablation: See `Ablation`.
        others: Prompts whose mean "mean" takes.

    Raises:
        InterventionError: No ablation has this name.
        ArgumentError: The ablation is no name and no run.
        RunError: A run does not fit the prompt.
        PromptError: As `mean_run`.
    """
    if not isinstance(ablation, str):
        return check_values(vlm.cfg, ablation, corrupted.layout.n)
    if ablation == "counterfactual":
        return record(vlm, corrupted, giving(vlm.cfg))
    if ablation == "mean":
        return mean_run(vlm, others)
    if ablation == "zero":
        return zero_run(vlm, corrupted)
    raise InterventionError(
        f"ablation={ablation!r}: wanted 'counterfactual', 'mean', 'zero', or a run such"
        " as mean_run(vlm, prompts)."
    )
