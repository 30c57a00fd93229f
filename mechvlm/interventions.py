"""What can be done to a run: values that print, compare, hash and hold no tensors.

A vector or a recorded run is named here and handed over at the call that runs the
intervention (`vectors=`, `runs=`), so that a plan can be printed, saved and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Literal, TypeAlias

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
    "reaches",
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

_ATTENDED = ("z", "result", "attn_out")
"""Components that attention makes: as receivers they let their own layer attend."""


def _feeds(sender: Site, receiver: Site) -> bool:
    """Whether a change at `sender` reaches `receiver` with all other heads frozen."""
    if receiver.layer is None or sender.component in ("q", "k", "v"):
        return False
    start = (-1, 0)
    if sender.layer is not None:
        start = sender.layer, _IN_A_LAYER[sender.component]
    stop = receiver.layer, _IN_A_LAYER[receiver.component]
    if _beside(sender, receiver):
        same_head = None in (sender.head, receiver.head) or sender.head == receiver.head
        return start < stop and same_head
    return start < stop


def _beside(sender: Site, receiver: Site) -> bool:
    """Whether both are made by one layer's attention, so that none attends to both."""
    both = {sender.component, receiver.component}
    return sender.layer == receiver.layer and both <= set(_ATTENDED)


def _gathers(sender: Site, receiver: Site) -> bool:
    """Whether attention brings a change from other positions to a receiver."""
    attends = receiver.component in _ATTENDED and not _beside(sender, receiver)
    return attends and _feeds(sender, receiver)


def reaches(
    sender: Site,
    receiver: Site,
    at: Positions | None = None,
    to: Positions | None = None,
) -> bool:
    """Whether there is a path that a path patch could patch.

    Args:
        sender: Where it starts.
        receiver: Where it ends.
        at: Positions that send; None means all.
        to: Positions that receive; None means all.

    Example:
        >>> head = Site("z", 1, head=0)
        >>> reaches(head, Site("q", 2)), reaches(head, Site("q", 1))
        (True, False)
        >>> reaches(head, Site("q", 2), at=Positions.of(3), to=Positions.of(4))
        False
    """
    apart = at is not None and to is not None and set(at).isdisjoint(to)
    return _feeds(sender, receiver) and (not apart or _gathers(sender, receiver))


@dataclass(frozen=True, slots=True)
class PathPatch:
    """Patch the direct paths from some sites to others, and nothing besides.

    The senders take the other run's values while every attention head between them and
    a receiver is frozen to this run's; what the receiver then gets is patched into a
    last run. Each receiver is reached alone, never by way of another receiver. In a
    tuple, what stands beside a path applies to that last run alone.

    Positions do not read one another on the way, so a change stays where it was sent.
    Only z, result and attn_out receivers gather it: there the attention that makes
    them (of the head, or of the layer) is computed again.

    Paper: Wang et al. 2022, "Interpretability in the Wild" (path patching),
    arXiv:2211.00593.

    Attributes:
        senders: Sites whose output is taken from `run`: z or result of a head or of all
            of them, attn_out, mlp_post, mlp_out, embed and resid sites.
        receivers: Sites that receive the changed signal. With grouped queries a k or v
            is that of a key-value head, which serves several query heads.
        run: Name of the run, given in `runs=`, that the senders' values come from.
        at: Positions of the senders that are patched; None means all.
        to: Positions of the receivers that are patched; None means all.
        mlps: What MLPs on the way do. "recomputed": they pass on what they make of the
            change. "frozen": they keep this run's output, those at the ends excepted,
            so that the senders' difference travels in the stream alone.

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
    mlps: Literal["recomputed", "frozen"] = "recomputed"

    def __post_init__(self) -> None:
        """Refuse paths that start or end nowhere, or that nothing can come along."""
        if self.mlps not in ("recomputed", "frozen"):
            raise InterventionError(
                f"PathPatch.mlps is {self.mlps!r}; wanted 'recomputed' or 'frozen'."
            )
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
            if not self.feeding(receiver):
                raise InterventionError(
                    f"no sender of {self.senders} reaches {receiver!r}, because every"
                    " head between them is frozen. Receivers are q, k, v, z, attn_out,"
                    " mlp_post, mlp_out or resid sites behind a sender; a q, k or v"
                    " sends by its own head alone: name that head's z."
                )
        self._refuse_apart()

    def feeding(self, receiver: Site) -> tuple[Site, ...]:
        """Senders with a path to a receiver; those behind it have none.

        Example:
            >>> heads = Site("z", 1, head=0), Site("z", 2, head=0)
            >>> PathPatch(heads, (Site("q", 2), Site("q", 3)), "other").feeding(
            ...     Site("q", 2))
            (Site('z', layer=1, head=0),)
        """
        return tuple(site for site in self.senders if _feeds(site, receiver))

    def gathers(self, receiver: Site) -> bool:
        """Whether attention brings a change from other positions to a receiver.

        Example:
            >>> head, later = Site("z", 1, head=0), Site("z", 2, head=3)
            >>> path = PathPatch((head,), (later, Site("q", 2)), "other")
            >>> path.gathers(later), path.gathers(Site("q", 2))
            (True, False)
        """
        return any(_gathers(site, receiver) for site in self.senders)

    def _refuse_apart(self) -> None:
        """Refuse positions between which only a frozen head could carry anything."""
        for receiver in self.receivers:
            ends = ((site, receiver, self.at, self.to) for site in self.senders)
            if not any(reaches(*each) for each in ends):
                raise InterventionError(
                    f"positions {self.at} send and {self.to} receive at {receiver!r}:"
                    " heads are frozen on the way, so nothing goes from one position"
                    " to another. Give positions in common, or receive at a z or"
                    " attn_out of a later layer."
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
