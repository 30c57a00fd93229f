"""Recorded runs: the only place that keeps activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.errors import EngineError, RunError, SiteError
from mechvlm.models.checking import check_site
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.rowwise.base import Base, base_pass
from mechvlm.prompts import Prompt
from mechvlm.sites import COMPONENTS, Component, Site

__all__ = ["Run", "base_run", "prompt_of", "record", "shared"]

_BY_DEFAULT = tuple(c for c in COMPONENTS if c != "result")


@dataclass(frozen=True, eq=False)
class Run:
    """What a run of a prompt left behind: what `runs=` takes.

    Attributes:
        prompt: The prompt that was run.
        activations: Hook name -> activation `[position ...]`.
        logits: Last-position logits.
        base: What sweeps start from, where the run was made by `base_run`.
    """

    prompt: Prompt
    activations: Mapping[str, Tensor]
    logits: Float[Tensor, " vocab"]
    base: Base | None = None

    def __getitem__(self, site: Site) -> Float[Tensor, "position ..."]:
        """Activation at a site, positions first; of one head where the site names one.

        Raises:
            RunError: The site was not recorded.
        """
        if site.hook_name not in self.activations:
            kept = sorted({Site.parse(name).component for name in self.activations})
            raise RunError(
                f"this run has no {site.hook_name}: it recorded {', '.join(kept)} of"
                " some or all layers. Record it with"
                f" record(vlm, prompt, sites=[{site.component!r}])."
            )
        value = self.activations[site.hook_name]
        return value if site.head is None else value[:, site.head]


@torch.no_grad()
def record(
    vlm: HookedVLM, prompt: Prompt, sites: Iterable[Site | str] | None = None
) -> Run:
    """Run a prompt and keep its activations.

    Args:
        vlm: The model.
        prompt: The prompt.
        sites: Sites; or names of components ("resid_pre"), which mean every layer, or
            of hooks. None keeps every component but "result". Heads are kept together.

    Raises:
        SiteError: A component or hook of this name does not exist.
        LayerError: A layer or head does not exist.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> image = mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("how many objects are there ?", image)
        >>> run = mv.record(vlm, prompt, sites=["resid_pre"])
        >>> run[mv.Site("resid_pre", layer=3)].shape[0] == prompt.layout.n
        True
    """
    wanted = _BY_DEFAULT if sites is None else tuple(sites)
    names = sorted({name for site in wanted for name in _names(vlm, site)})
    kept: dict[str, Tensor] = {}

    hooks = [(name, _keeping(kept, name)) for name in names]
    with vlm.attn_results(hooks):
        logits = vlm.run_with_hooks(prompt, fwd_hooks=hooks)
    return Run(prompt, kept, logits[0, -1].clone())


def _keeping(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    """A hook that keeps the activation itself; the model never writes into it."""

    def keep(activation: Tensor, **_: object) -> None:
        kept[name] = activation[0]

    return keep


def _names(vlm: HookedVLM, site: Site | str) -> list[str]:
    """Hook names of a site, a hook name or a component in every layer."""
    if isinstance(site, str) and site in COMPONENTS:
        component = cast(Component, site)
        layers = (None,) if component == "embed" else range(vlm.cfg.n_layers)
        return [Site(component, layer).hook_name for layer in layers]
    if isinstance(site, str) and "." not in site and not site.startswith("hook"):
        raise SiteError(
            f"no component is called {site!r}; known are {', '.join(COMPONENTS)}."
        )
    found = Site.parse(site) if isinstance(site, str) else site
    check_site(vlm.cfg, found)
    return [found.hook_name]


def base_run(vlm: HookedVLM, prompt: Prompt) -> Run:
    """Run a prompt once for all sweeps that will be made on it.

    `intervene`, `generate_many` and `plan` take it in place of the prompt and then do
    not run the prompt again. It keeps, in every layer, the stream, the heads' outputs,
    keys and values (`run.base.n_bytes`), until it is let go.

    Args:
        vlm: The model.
        prompt: The prompt.

    Returns:
        A run with the sites embed, resid_pre, resid_post, v and z of every layer.

    Raises:
        EngineError: The model has hooks, or does more with its logits than its family
            says.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> image = mv.scenes.sample(seed=0).image
        >>> run = mv.base_run(vlm, vlm.prompt("how many objects are there ?", image))
        >>> at = run.prompt.layout
        >>> cut = mv.Knockout(range(8), at["query"] | at["last"], at["image"])
        >>> len(mv.intervene(vlm, run, [mv.NOTHING, cut]))
        2
    """
    if vlm.has_hooks:
        raise EngineError(
            "the model has hooks of its own, and a base run does not pass them: sweeps"
            " that start from it would mix two models. Take them away with"
            " vlm.reset_hooks(), or give the prompt itself."
        )
    base = base_pass(vlm, prompt)
    kept = {Site("embed").hook_name: base.stream[0]}
    for layer in range(vlm.cfg.n_layers):
        of_layer: dict[Component, Tensor] = {
            "resid_pre": base.stream[layer],
            "resid_post": base.stream[layer + 1],
            "z": base.z[layer].unflatten(-1, (-1, vlm.cfg.d_head)),
            "v": base.value[layer].transpose(0, 1),
        }
        for component, value in of_layer.items():
            kept[Site(component, layer).hook_name] = value
    return Run(prompt, kept, base.logits, base)


def prompt_of(given: Prompt | Run) -> Prompt:
    """The prompt of a run; a prompt is its own."""
    return given.prompt if isinstance(given, Run) else given


def shared(vlm: HookedVLM, given: Prompt | Run) -> Prompt | Run:
    """What several sweeps on a prompt start from: its base run, made once.

    A model with hooks of the user's own has none; its prompt is run again each time.
    """
    if isinstance(given, Run) or vlm.has_hooks:
        return given
    return base_run(vlm, given)
