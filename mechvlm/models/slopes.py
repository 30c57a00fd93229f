"""One forward and one backward: what a run computed, and how a number depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvlm.errors import MetricError
from mechvlm.metrics import Metric
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.sites import Site

__all__ = ["Slopes", "slopes"]


@dataclass(frozen=True, eq=False)
class Slopes:
    """A run, and the gradient of a number with respect to what it computed.

    Attributes:
        value: The number.
        activations: Hook name -> activation `[position ...]`.
        gradients: Hook name -> gradient of the number, of the same shape.
        into_mlps: Layer -> gradient along the way into this layer's MLP alone, past
            its norm, and not along the stream that goes by.
    """

    value: float
    activations: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    into_mlps: Mapping[int, Float[Tensor, "position d_model"]]

    def __getitem__(self, site: Site) -> Float[Tensor, "position ..."]:
        """Activation at a site, as of a run; of one head where the site names one."""
        value = self.activations[site.hook_name]
        return value if site.head is None else value[:, site.head]

    def at(self, site: Site) -> Float[Tensor, "position ..."]:
        """Gradient at a site; of one head where the site names one."""
        value = self.gradients[site.hook_name]
        return value if site.head is None else value[:, site.head]


def slopes(
    vlm: HookedVLM,
    prompt: Prompt,
    metric: Metric,
    *,
    sites: Iterable[Site],
    into_mlps: Sequence[int] | range = (),
    embedding: Float[Tensor, "position d_model"] | None = None,
) -> Slopes:
    """Run a prompt once, and once backward from a metric of its last position.

    No weight's `requires_grad` is touched, and nothing flows back into the vision
    tower: what enters layer 0 is where the gradient ends.

    Args:
        vlm: The model.
        prompt: The prompt.
        metric: What the gradients are of.
        sites: Where activations and gradients are kept, heads together.
        into_mlps: Layers of which the gradient into the MLP is kept.
        embedding: What enters layer 0; None takes the prompt's own, image and all.

    Raises:
        MetricError: The metric has no gradient.
    """
    names = sorted({site.hook_name for site in sites} | {_EMBED})
    kept: dict[str, Tensor] = {}
    entering: dict[int, Tensor] = {}
    hooks = [(name, _keeping(kept, name)) for name in names]
    with torch.enable_grad(), ExitStack() as stack:
        stack.enter_context(vlm.attn_results(hooks))
        for layer in into_mlps:
            norm = vlm.tapped.blocks[layer].layer.ln2
            stack.callback(
                norm.register_forward_pre_hook(_entering(entering, layer)).remove
            )
        with vlm.hooks(fwd_hooks=hooks):
            value = metric(_logits(vlm, prompt, embedding)[:, -1]).sum()
        if not value.requires_grad:
            raise MetricError.flat(metric.name)
        found = torch.autograd.grad(value, [*kept.values(), *entering.values()])
    own, inner = found[: len(kept)], found[len(kept) :]
    return Slopes(
        float(value.detach()),
        {name: x[0].detach() for name, x in kept.items()},
        {name: x[0] for name, x in zip(kept, own, strict=True)},
        {layer: x[0] for layer, x in zip(entering, inner, strict=True)},
    )


_EMBED = Site("embed").hook_name


def _logits(vlm: HookedVLM, prompt: Prompt, embedding: Tensor | None) -> Tensor:
    if embedding is None:
        own: Tensor = vlm(prompt)
        return own
    entering = embedding[None].to(vlm.cfg.dtype)
    given: Tensor = vlm(entering, prompt=prompt, start_at_layer=0)
    return given


def _keeping(kept: dict[str, Tensor], name: str) -> Callable[..., Tensor]:
    """A hook that lets the activation pass as a tensor of its own, and keeps that.

    A function on a hook point sees heads split off from what the model goes on with:
    only what it gives back is on the way to the metric. What enters layer 0 becomes the
    beginning of everything, so that weights without gradients do not end the way.
    """

    def keep(activation: Tensor, **_: object) -> Tensor:
        if name == _EMBED:
            kept[name] = activation.detach().requires_grad_()
        else:
            kept[name] = activation.view_as(activation)
        return kept[name]

    return keep


def _entering(
    entering: dict[int, Tensor], layer: int
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook that gives the norm before an MLP a tensor that nothing else reads."""

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entering[layer] = args[0].view_as(args[0])
        return (entering[layer], *args[1:])

    return enter
