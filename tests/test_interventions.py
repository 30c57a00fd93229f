"""Interventions are values: they print as they are written, compare, hash and nest."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechvlm.errors import InterventionError
from mechvlm.interventions import (
    NOTHING,
    Ablate,
    Add,
    Knockout,
    Nothing,
    Patch,
    PathPatch,
    parts,
)
from mechvlm.layout import Positions
from mechvlm.sites import Site

NAMESPACE = {
    kind.__name__: kind
    for kind in (Ablate, Add, Knockout, Patch, PathPatch, Positions, Site)
} | {"NOTHING": NOTHING}


def read_back(printed):
    """The value that a printed intervention shows; positions print as `0, 5..9`."""

    def spelled(match):
        runs = [run.split("..") for run in match[1].split(", ") if run]
        each = [f"range({run[0]}, {int(run[-1]) + 1})" for run in runs]
        return f"Positions.of({', '.join(each)})"

    return eval(re.sub(r"Positions\((.*?)\)", spelled, printed), dict(NAMESPACE))


HERE, THERE, NOWHERE = Positions.of(3), Positions.of(range(5, 9), 12), Positions()
STREAM, HEAD = Site("resid_pre", 13), Site("z", 2, head=1)
SINGLES = [
    Patch(STREAM, THERE, "clean"),
    Patch(STREAM, THERE, "it's"),
    Patch(STREAM, HERE, "clean", from_=Positions.of(0)),
    Ablate(Site("embed"), HERE),
    Ablate(Site("embed"), HERE, "mean"),
    Add(HEAD, THERE, "direction"),
    Add(HEAD, THERE, "direction", -0.5),
    Knockout(range(2, 5), HERE, THERE),
    Knockout(range(2, 5), THERE, HERE),
    Knockout(range(2, 5), HERE, THERE, heads=(0, 3)),
    PathPatch((HEAD, STREAM), (Site("q", 4),), "clean"),
    PathPatch((HEAD,), (Site("q", 4),), "clean", at=HERE, to=HERE | THERE),
    PathPatch((HEAD,), (Site("z", 4, 1),), "clean", at=HERE, mlps="frozen"),
]
nested = st.recursive(
    st.sampled_from([*SINGLES, NOTHING]), lambda inner: st.lists(inner).map(tuple)
)


@given(what=nested)
def test_an_intervention_prints_as_it_is_written(what):
    again = read_back(repr(what))
    assert again == what
    assert hash(again) == hash(what)
    assert repr(again) == repr(what)


@given(what=nested, other=nested)
def test_interventions_compare_as_they_print(what, other):
    assert (what == other) == (repr(what) == repr(other))
    assert len({what, other}) == 1 + (what != other)


@given(what=nested)
def test_the_parts_are_the_single_ones_in_order(what):
    """Oracle: the printed values, with brackets and commas of the tuples taken away."""

    def flat(each):
        return "".join(map(flat, each)) if isinstance(each, tuple) else repr(each)

    assert "".join(map(repr, parts(what))) == flat(what).replace("NOTHING", "")


def test_nothing_has_no_parts_and_one_value():
    assert parts(NOTHING) == parts(()) == parts(((), (NOTHING,))) == ()
    assert Nothing() == NOTHING
    assert repr((NOTHING,)) == "(NOTHING,)"


def test_a_patch_reads_as_many_positions_as_it_writes():
    here, there = Positions.of(1, 2), Positions.of(5, 9)
    assert Patch(Site("embed"), here, "clean", from_=there).from_ == there
    with pytest.raises(
        InterventionError, match=r"3 positions are read .* for 2 that are"
    ):
        Patch(Site("embed"), here, "clean", from_=Positions.of(range(3)))
    with pytest.raises(InterventionError, match="from_ is empty"):
        Patch(Site("embed"), here, "clean", from_=Positions())


@pytest.mark.parametrize(
    ("what", "make"),
    [
        (r"Patch\.at", lambda: Patch(Site("embed"), NOWHERE, "clean")),
        (r"Ablate\.at", lambda: Ablate(Site("embed"), NOWHERE)),
        (r"Add\.at", lambda: Add(Site("embed"), NOWHERE, "v")),
        (r"Knockout\.target", lambda: Knockout(range(2), NOWHERE, HERE)),
        (r"Knockout\.source", lambda: Knockout(range(2), HERE, NOWHERE)),
    ],
)
def test_an_intervention_on_no_position_is_refused(what, make):
    with pytest.raises(InterventionError, match=rf"{what} is empty, .* use NOTHING"):
        make()


def test_a_knockout_of_no_layer_or_head_is_refused():
    with pytest.raises(
        InterventionError, match=r"layers range\(2, 2\) and heads None cut"
    ):
        Knockout(range(2, 2), HERE, HERE)
    with pytest.raises(
        InterventionError, match=r"heads \(\) cuts nothing; use NOTHING"
    ):
        Knockout(range(2), HERE, HERE, heads=())


def test_a_path_needs_two_ends():
    with pytest.raises(InterventionError, match="from 0 senders to 1 receivers: both"):
        PathPatch((), (Site("z", 1),), "clean")
    with pytest.raises(InterventionError, match="from 1 senders to 0 receivers"):
        PathPatch((Site("z", 1),), (), "clean")


Z0 = Site("z", 1, 0)


@pytest.mark.parametrize(
    "receiver",
    [
        Site("z", 1, 1),
        Site("q", 1),
        Site("resid_pre", 1),
        Site("embed"),
        Site("result", 1, 1),
        Site("attn_out", 0),
    ],
)
def test_a_path_that_nothing_can_come_along_is_refused(receiver):
    """Heads between sender and receiver are frozen, so these keep their own values."""
    with pytest.raises(InterventionError, match=r"no sender of .* reaches"):
        PathPatch((Z0,), (receiver,), "other")


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_a_query_sends_by_its_own_head_alone(component):
    with pytest.raises(InterventionError, match="own head alone: name that head's z"):
        PathPatch((Site(component, 1, 0),), (Site("q", 3),), "other")


@pytest.mark.parametrize(
    "receiver",
    [
        *(Site("q", 2), Site("attn_out", 1), Site("mlp_out", 1), Site("resid_post", 3)),
        *(Site("result", 1, 0), Site("z", 2, 0), Site("attn_out", 2)),
        Site("result", 2),
    ],
)
def test_a_path_that_leads_somewhere_is_kept(receiver):
    assert PathPatch((Z0,), (receiver,), "other").receivers == (receiver,)


def test_frozen_heads_carry_nothing_from_position_to_position():
    for receiver in (Site("q", 2), Site("attn_out", 1), Site("resid_post", 3)):
        with pytest.raises(InterventionError, match=r"3 send and 5\.\.8, 12 receive"):
            PathPatch((Z0,), (receiver,), "other", at=HERE, to=THERE)
    gathers = PathPatch((Z0,), (Site("attn_out", 2),), "other", at=HERE, to=THERE)
    assert gathers.gathers(Site("attn_out", 2))


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(InterventionError, match=r"Add\.scale is nan"):
        Add(Site("embed"), Positions.of(1), "v", scale=float("nan"))


def test_layers_may_be_picked():
    picked = Knockout((0, 3), Positions.of(9), Positions.of(1))
    assert list(picked.layers) == [0, 3]
    assert hash(picked) == hash(Knockout((0, 3), Positions.of(9), Positions.of(1)))
