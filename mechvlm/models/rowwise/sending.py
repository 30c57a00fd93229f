"""What senders write into the stream, where nothing between them and its end answers.

With heads and MLPs frozen on the way, what a sender changes travels in the stream
alone: one difference, made by the sender's own modules, whatever layer it ends in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvlm.cone import ENTERED, LEFT, place_of
from mechvlm.layout import Positions
from mechvlm.models.family import Layer
from mechvlm.models.lowering import Sources
from mechvlm.models.rowwise.base import Backbone, Base
from mechvlm.models.taps import output_weights
from mechvlm.sites import Site

__all__ = ["Sending", "norm_behind", "sent", "written"]

_IN_ORDER = (
    *(LEFT, ENTERED, "z", "result", "attn_out", "resid_mid", "mlp_post", "mlp_out"),
)
"""Where a layer's senders stand, in the order in which they take effect."""


@dataclass(frozen=True)
class Sending:
    """The stream at a place behind some senders, with what they send in it.

    Attributes:
        name: The name under which its rows are patched into a run.
        site: Where in the stream: resid_pre, resid_mid or resid_post.
        to: Positions of which the rows are wanted.
        senders: Sites whose output is another run's.
        run: Name of that run.
        at: Those of the positions at which the senders are patched.
    """

    name: str
    site: Site
    to: Positions
    senders: tuple[Site, ...]
    run: str
    at: Positions


@torch.no_grad()
def sent(
    vlm: Backbone, base: Base, sendings: Sequence[Sending], *, sources: Sources
) -> dict[str, Mapping[Site, Tensor]]:
    """Rows of the stream as the senders leave them, by the sendings' names.

    Args:
        vlm: The model.
        base: Its base run on the prompt.
        sendings: What is wanted; heads of one layer are sent together.
        sources: The named runs.
    """
    sender = _Sender(vlm, base, sources)
    changes = sender.changes(sendings)
    made: dict[str, Mapping[Site, Tensor]] = {}
    for each in sendings:
        rows = sender.stream(each.site, each.to)
        change = changes.get((each.senders, each.run, each.at))
        if change is not None and each.to == each.at:
            rows = rows + change.to(rows.device)
        elif change is not None:
            among = [i for i, position in enumerate(each.to) if position in each.at]
            rows = rows.clone()
            rows[among] += change.to(rows.device)
        made[each.name] = {each.site: rows}
    return made


_Key = tuple[tuple[Site, ...], str, Positions]


class _Sender:
    """Differences that senders make, with what several of them share."""

    def __init__(self, vlm: Backbone, base: Base, sources: Sources) -> None:
        self._base, self._sources = base, sources
        self._layers = [block.layer for block in vlm.tapped.blocks]
        self._d_head = vlm.cfg.d_head
        self._known: dict[tuple[str, int | Site, Positions], Tensor] = {}

    def changes(self, sendings: Iterable[Sending]) -> dict[_Key, Tensor]:
        """What each set of senders adds to the stream, `[position d_model]`."""
        found: dict[_Key, Tensor] = {}
        alike: dict[tuple[int, str, Positions], list[Site]] = defaultdict(list)
        for key in dict.fromkeys((s.senders, s.run, s.at) for s in sendings if s.at):
            senders, run, at = key
            first = senders[0]
            if len(senders) == 1 and first.component == "z" and first.head is not None:
                alike[first.layer or 0, run, at].append(first)
            else:
                found[key] = self._walked(senders, run, at)
        for (layer, run, at), heads in alike.items():
            changes = self._of_heads(layer, heads, run=run, at=at)
            for head, change in zip(heads, changes, strict=True):
                found[(head,), run, at] = change
        return found

    def stream(self, site: Site, at: Positions) -> Float[Tensor, "row d_model"]:
        """This run's own stream at a place."""
        layer, place = place_of(site)
        kind = "entering" if place in (LEFT, ENTERED) else "middle"
        key = kind, layer, at
        if key not in self._known:
            rows = self._base.stream[layer][list(at)]
            if kind == "middle":
                rows = rows + self._attended(layer, at)
            self._known[key] = rows
        return self._known[key]

    # -- heads ---------------------------------------------------------------------

    def _of_heads(
        self, layer: int, heads: Sequence[Site], *, run: str, at: Positions
    ) -> Float[Tensor, "head row d_model"]:
        """The change that each of some heads of a layer makes alone."""
        own = self._z(layer, at).unflatten(-1, (-1, self._d_head))
        given = [self._others(head, run, at, like=own) for head in heads]
        other = torch.stack(given)
        numbers = [head.head for head in heads]
        module = self._layers[layer]
        if norm_behind(module) is None and _at_hand(module.o):
            weights = output_weights(module, self._d_head)[numbers]
            return torch.bmm(other - own[:, numbers].transpose(0, 1), weights)
        swapped = own.repeat(len(heads), 1, 1, 1)
        for i, number in enumerate(numbers):
            swapped[i, :, number] = other[i]
        new = written(module, swapped.flatten(-2).flatten(0, 1))
        return new.reshape(len(heads), len(at), -1) - self._attended(layer, at)

    def _z(self, layer: int, at: Positions) -> Float[Tensor, "row heads"]:
        return self._base.z[layer][list(at)]

    def _attended(self, layer: int, at: Positions) -> Float[Tensor, "row d_model"]:
        """What this run's attention adds to the stream."""
        key = "attended", layer, at
        if key not in self._known:
            self._known[key] = written(self._layers[layer], self._z(layer, at))
        return self._known[key]

    def _others(
        self, site: Site, run: str, at: Positions, *, like: Tensor
    ) -> Float[Tensor, "row ..."]:
        """The other run's values."""
        return self._sources.runs[run][site][list(at)].to(like.device, like.dtype)

    # -- any senders, layer by layer -----------------------------------------------

    def _walked(
        self, senders: Iterable[Site], run: str, at: Positions
    ) -> Float[Tensor, "row d_model"]:
        """What several senders, one behind the other, change together."""
        found: dict[int, list[Site]] = defaultdict(list)
        for site in senders:
            found[place_of(site)[0]].append(site)
        change = torch.zeros_like(self._base.stream[min(found)][list(at)])
        for layer, sites in sorted(found.items()):
            sites.sort(key=lambda x: (_order(x), x.component == "resid_pre"))
            here = change.to(self._base.stream[layer].device)
            change = self._in_layer(layer, sites, run=run, at=at, change=here)
        return change

    def _in_layer(
        self,
        layer: int,
        sites: list[Site],
        *,
        run: str,
        at: Positions,
        change: Float[Tensor, "row d_model"],
    ) -> Float[Tensor, "row d_model"]:
        """The change of the stream behind a layer's senders."""
        parts: dict[str, list[Site]] = defaultdict(list)
        for site in sites:
            parts[_PART[place_of(site)[1]]].append(site)
        for site in parts["entering"]:
            own = self.stream(site, at)
            change = self._others(site, run, at, like=own) - own
        if parts["attention"]:
            new = self._attention(layer, parts["attention"], run=run, at=at)
            change = change + new - self._attended(layer, at)
        for site in parts["middle"]:
            own = self.stream(site, at)
            change = self._others(site, run, at, like=own) - own
        if parts["mlp"]:
            change = change + self._mlp(layer, parts["mlp"], run=run, at=at)
        return change

    def _attention(
        self, layer: int, sites: list[Site], *, run: str, at: Positions
    ) -> Float[Tensor, "row d_model"]:
        """What a layer's attention adds, with its senders' values."""
        module, z = self._layers[layer], self._z(layer, at)
        by_head = z.unflatten(-1, (-1, self._d_head)).clone()
        for site in sites:
            if site.component == "z":
                where = slice(None) if site.head is None else site.head
                by_head[:, where] = self._others(site, run, at, like=z)
        results = [site for site in sites if site.component == "result"]
        if results:
            weights = output_weights(module, self._d_head)
            each = torch.einsum("phe,hed->phd", by_head, weights)
            for site in results:
                where = slice(None) if site.head is None else site.head
                each[:, where] = self._others(site, run, at, like=z)
            total = each.sum(dim=1)
            if module.o.bias is not None:
                total = total + module.o.bias
            new = _behind(module, total)
        else:
            new = written(module, by_head.flatten(-2))
        for site in sites:
            if site.component == "attn_out":
                new = self._others(site, run, at, like=z)
        return new

    def _mlp(
        self, layer: int, sites: list[Site], *, run: str, at: Positions
    ) -> Float[Tensor, "row d_model"]:
        """The change of what a layer's MLP adds."""
        module = self._layers[layer]
        own = self._answered(layer, at)
        new = own
        for site in sites:
            new = self._others(site, run, at, like=own)
            if site.component == "mlp_post":
                new = _behind_mlp(module, module.down(new[None]))[0]
        return new - own

    def _answered(self, layer: int, at: Positions) -> Float[Tensor, "row d_model"]:
        """What this run's MLP adds to the stream."""
        key = "answered", layer, at
        if key not in self._known:
            module = self._layers[layer]
            middle = self.stream(Site("resid_mid", layer), at)
            out = module.mlp(module.ln2(middle[None]))
            self._known[key] = _behind_mlp(module, out)[0]
        return self._known[key]


_PART = {
    **dict.fromkeys((LEFT, ENTERED), "entering"),
    **dict.fromkeys(("z", "result", "attn_out"), "attention"),
    "resid_mid": "middle",
    **dict.fromkeys(("mlp_post", "mlp_out"), "mlp"),
}
"""Which part of a layer each sender is."""


def _order(site: Site) -> int:
    return _IN_ORDER.index(place_of(site)[1])


def _at_hand(o: nn.Module) -> bool:
    """Whether a projection is a plain product with weights that are there."""
    return (
        isinstance(o, nn.Linear)
        and o.weight.is_floating_point()
        and not o.weight.is_meta
    )


def written(
    layer: Layer, z: Float[Tensor, "row heads"]
) -> Float[Tensor, "row d_model"]:
    """What a layer's attention adds to the stream, of its heads side by side."""
    return _behind(layer, layer.o(z[None])[0])


def norm_behind(layer: Layer) -> nn.Module | None:
    """The norm that what attention gives passes on its way to the stream, if any."""
    return None if layer.attn_out is layer.attn else layer.attn_out


def _behind(
    layer: Layer, projected: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_model"]:
    """What attention adds to the stream, of what its output projection gave."""
    norm = norm_behind(layer)
    if norm is None:
        return projected
    normed: Tensor = norm(projected[None])[0]
    return normed


def _behind_mlp(
    layer: Layer, given: Float[Tensor, "batch row d_model"]
) -> Float[Tensor, "batch row d_model"]:
    """What an MLP adds to the stream, of what it gave."""
    if layer.mlp_out is layer.mlp:
        return given
    normed: Tensor = layer.mlp_out(given)
    return normed
