"""What can be done to a run: values that print, compare, hash and hold no tensors.

A vector or a recorded run is named here and handed over at the call that runs the
intervention (`vectors=`, `runs=`), so that a plan can be printed, saved and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, TypeAlias

from mechvlm.errors import InterventionError
from mechvlm.layout import Positions
from mechvlm.sites import Site

__all__ = [
    "NOTHING",
    "Ablate",
    "Add",
    "Intervention",
    "Knockout",
    "Nothing",
    "Patch",
    "PathPatch",
    "listed",
    "parts",
]


def _refuse_empty(what: str, positions: Positions) -> None:
    """Refuse what is no set of positions, or an empty one."""
    if not isinstance(positions, Positions):
        raise InterventionError(
            f"{what} is {positions!r}; wanted Positions, such as Positions.of(3) or"
            ' prompt.layout["image"].'
        )
    if not positions:
        raise InterventionError(
            f"{what} is empty, so the intervention would do nothing. If that is what"
            " you mean (a control), use NOTHING; otherwise the group or region that"
            " gave these positions does not occur in this prompt."
        )


@dataclass(frozen=True, slots=True)
class Nothing:
    """The empty intervention: the clean run itself, and every sweep's first control."""

    def __repr__(self) -> str:
        """The name of its only value."""
        return "NOTHING"


NOTHING = Nothing()


@dataclass(frozen=True, slots=True)
class Patch:
    """At `at`, take the value that another run had there.

    Paper: Meng et al. 2022, arXiv:2202.05262; Heimersheim and Nanda, arXiv:2404.15255.

    Attributes:
        site: Where in the network.
        at: Positions that are written.
        run: Name of the run, given in `runs=`, that the values come from.
        from_: Positions of that run that are read, matched to `at` one to one in rising
            order; None reads at `at` itself.

    Example:
        >>> Patch(Site("resid_pre", 3), Positions.of(4), run="clean").site.hook_name
        'blocks.3.hook_resid_pre'
    """

    site: Site
    at: Positions
    run: str
    from_: Positions | None = None

    def __post_init__(self) -> None:
        """Refuse positions that cannot be matched one to one."""
        _refuse_empty("Patch.at", self.at)
        if self.from_ is not None:
            _refuse_empty("Patch.from_", self.from_)
        if self.from_ is not None and len(self.from_) != len(self.at):
            raise InterventionError(
                f"{len(self.from_)} positions are read (from_) for {len(self.at)} that"
                " are written (at); a patch matches them one to one."
            )


@dataclass(frozen=True, slots=True)
class Ablate:
    """At `at`, put a fixed vector in place of the activation.

    Attributes:
        site: Where in the network.
        at: Positions that are written.
        value: "zero", or the name of a vector given in `vectors=`: `[d]` for every
            position alike, or `[len(at) d]`.

    Example:
        >>> Ablate(Site("embed"), Positions.of(range(5, 581))).at
        Positions(5..580)
    """

    site: Site
    at: Positions
    value: str = "zero"

    def __post_init__(self) -> None:
        """Refuse an intervention on no position."""
        _refuse_empty("Ablate.at", self.at)


@dataclass(frozen=True, slots=True)
class Add:
    """At `at`, add a multiple of a vector to the activation.

    Attributes:
        site: Where in the network.
        at: Positions that are written.
        vector: Name of a vector given in `vectors=`: `[d]` or `[len(at) d]`.
        scale: Factor of the vector.

    Example:
        >>> Add(Site("embed"), Positions.of(4), "direction", scale=0.5).scale
        0.5
    """

    site: Site
    at: Positions
    vector: str
    scale: int | float = 1.0

    def __post_init__(self) -> None:
        """Refuse an intervention on no position, or by no number."""
        _refuse_empty("Add.at", self.at)
        if not isfinite(self.scale):
            raise InterventionError(f"Add.scale is {self.scale}: wanted a number.")


@dataclass(frozen=True, slots=True)
class Knockout:
    """Cut attention: in `layers`, no `target` position reads a `source` position.

    The cut goes in before the softmax, so a row still sums to 1 over what is left.

    Paper: Geva et al. 2023, arXiv:2304.14767.

    Attributes:
        layers: Layers whose attention is cut.
        target: Positions that read (attention's query side).
        source: Positions that are read (attention's key side).
        heads: Query heads to cut; None cuts every head.

    Example:
        >>> last, image = Positions.of(9), Positions.of(range(1, 5))
        >>> Knockout(range(2, 5), target=last, source=image).source
        Positions(1..4)
    """

    layers: range | tuple[int, ...]
    target: Positions
    source: Positions
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a cut of nothing."""
        _refuse_empty("Knockout.target", self.target)
        _refuse_empty("Knockout.source", self.source)
        for what, given in (("layers", self.layers), ("heads", self.heads or ())):
            if not isinstance(given, range | tuple):
                raise InterventionError(
                    f"Knockout.{what} is {given!r}; wanted a range or a tuple, such as"
                    " range(3, 5) or (3,)."
                )
        if not self.layers or self.heads == ():
            raise InterventionError(
                f"Knockout of layers {self.layers} and heads {self.heads} cuts nothing;"
                " use NOTHING for the empty intervention."
            )


_IN_A_LAYER = {
    "resid_pre": 0,
    **dict.fromkeys(("q", "k", "v"), 1),
    "z": 2,
    "result": 3,
    "attn_out": 4,
    "resid_mid": 5,
    "mlp_post": 6,
    "mlp_out": 7,
    "resid_post": 8,
}
"""The order in which a layer computes its components."""


def _feeds(sender: Site, receiver: Site) -> bool:
    """Whether a change at `sender` reaches `receiver` with all other heads frozen."""
    if receiver.layer is None or receiver.component == "z":
        return False
    if sender.layer is None:
        start = -1
    else:
        start = sender.layer * len(_IN_A_LAYER) + _IN_A_LAYER[sender.component]
    stop = receiver.layer * len(_IN_A_LAYER) + _IN_A_LAYER[receiver.component]
    if receiver.component in ("result", "attn_out"):
        same_layer = sender.layer == receiver.layer
        return same_layer and sender.component in ("z", "result") and start < stop
    return start < stop


@dataclass(frozen=True, slots=True)
class PathPatch:
    """Patch the direct paths from some sites to others, and nothing besides.

    The senders take the other run's values while every attention head between them and
    the receivers is frozen to this run's (MLPs are computed again); what the receivers
    then get is patched into a last run. In a tuple, what stands beside it applies to
    that last run alone.

    Paper: Wang et al. 2023, "Interpretability in the Wild" (path patching, IOI).

    Attributes:
        senders: Sites whose output is taken from `run`.
        receivers: Sites that receive the changed signal.
        run: Name of the run, given in `runs=`, that the senders' values come from.
        at: Positions of the senders that are patched; None means all.
        to: Positions of the receivers that are patched; None means all.

    Example:
        >>> head, query = Site("z", 1, head=0), Site("q", 2, head=3)
        >>> PathPatch((head,), (query,), run="other").receivers
        (Site('q', layer=2, head=3),)
    """

    senders: tuple[Site, ...]
    receivers: tuple[Site, ...]
    run: str
    at: Positions | None = field(default=None)
    to: Positions | None = field(default=None)

    def __post_init__(self) -> None:
        """Refuse paths that start or end nowhere, or that nothing can come along."""
        for what, positions in (("at", self.at), ("to", self.to)):
            if positions is not None:
                _refuse_empty(f"PathPatch.{what}", positions)
        for what, sites in (("senders", self.senders), ("receivers", self.receivers)):
            if not isinstance(sites, tuple):
                raise InterventionError(
                    f"PathPatch.{what} is {sites!r}; wanted a tuple of sites, such as"
                    ' (Site("z", 1, head=0),).'
                )
        if not self.senders or not self.receivers:
            raise InterventionError(
                f"a path from {len(self.senders)} senders to {len(self.receivers)}"
                " receivers: both ends need at least one site."
            )
        for receiver in self.receivers:
            if not any(_feeds(sender, receiver) for sender in self.senders):
                raise InterventionError(
                    f"no sender of {self.senders} reaches {receiver!r}, because every"
                    " head between them is frozen. Receivers are q, k, v, mlp_post,"
                    " mlp_out or resid sites behind a sender."
                )


if TYPE_CHECKING:
    Intervention: TypeAlias = (
        Nothing
        | Patch
        | Ablate
        | Add
        | Knockout
        | PathPatch
        | tuple["Intervention", ...]
    )
else:  # beartype does not follow a type into itself
    Intervention = Nothing | Patch | Ablate | Add | Knockout | PathPatch | tuple
"""One thing done to a run, or a tuple of several done at once, in order."""


def parts(
    intervention: Intervention,
) -> tuple[Patch | Ablate | Add | Knockout | PathPatch, ...]:
    """The single interventions that a possibly nested one consists of, in order.

    Raises:
        InterventionError: One of them is none.

    Example:
        >>> cut = Knockout(range(2), Positions.of(9), Positions.of(1, 2))
        >>> parts((NOTHING, (cut,))) == (cut,)
        True
    """
    if isinstance(intervention, Nothing):
        return ()
    if isinstance(intervention, tuple):
        return tuple(part for each in intervention for part in parts(each))
    if not isinstance(intervention, Patch | Ablate | Add | Knockout | PathPatch):
        raise InterventionError(
            f"{intervention!r} is no intervention. Wanted Patch, Ablate, Add, Knockout,"
            " PathPatch or NOTHING; several at once are a tuple, one run each a list."
        )
    return (intervention,)


def listed(interventions: Sequence[Intervention] | Intervention) -> list[Intervention]:
    """One entry per run: a tuple is one run, in which several things are done.

    Raises:
        InterventionError: The list is empty.

    Example:
        >>> listed(NOTHING), listed((NOTHING, NOTHING)), len(listed([NOTHING, NOTHING]))
        ([NOTHING], [(NOTHING, NOTHING)], 2)
    """
    if isinstance(interventions, Sequence) and not interventions:
        raise InterventionError(
            "the list of interventions is empty; for the clean run use [NOTHING]."
        )
    if isinstance(interventions, tuple) or not isinstance(interventions, Sequence):
        return [interventions]
    return list(interventions)
