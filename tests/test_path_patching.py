"""Sweeps of direct paths: hand arithmetic on planted circuits, and what they refuse."""

from functools import cache

import numpy as np
import pytest
import sweeping
import tiny
import torch
from unchecked import check_refusals

import mechvlm as mv
from mechvlm import InterventionError, PathPatch, Positions, Site
from mechvlm.analyses.path_patching.ends import label, receivers_of
from mechvlm.errors import LayerError, MetricError, PairError
from mechvlm.graph import LOGITS, Node
from mechvlm.models import planted
from mechvlm.models.planted import TOLERANCE
from mechvlm.models.rowwise import rows

HEADS = [(layer, head) for layer in range(3) for head in range(2)]
VALUES = [Site("v", layer, head) for layer, head in HEADS]


class World:
    """A planted circuit, the picture of class 0 and the one of class 1."""

    def __init__(self, circuit):
        self.vlm = vlm = mv.HookedVLM(*planted.build(circuit))
        self.clean, self.corrupted = (
            vlm.prompt(planted.QUESTION, planted.scene(shown), system=planted.SYSTEM)
            for shown in (0, 1)
        )
        self.metric = mv.logit_difference(vlm, *planted.ANSWERS[:2])
        layout = self.clean.layout
        shown = Positions.of(planted.POSITIONS["object"])
        self.groups = {
            "object": shown,
            "background": layout["image"] - shown,
            "query": layout["query"],
        }

    def lost(self, **how):
        """Share of the gap that each path carries: 0 or 1, by receiver and sender."""
        prompts = self.clean, self.corrupted
        found = mv.path_patching(self.vlm, *prompts, metric=self.metric, **how)
        assert found.attrs["clean"] > 3.9 and found.attrs["corrupted"] < -3.9
        share = 1 - found if how.get("direction") != "denoise" else found
        np.testing.assert_allclose(found["effect"], share, atol=1e-6)
        near = (share - share.round()).fillna(0)
        assert float(abs(near).max()) < TOLERANCE
        return share.round()

    def carriers(self, **how):
        """Each receiver's senders that carry all of the gap; the others none."""
        share = self.lost(**how).fillna(0)
        assert set(np.unique(share)) <= {0.0, 1.0}
        return [name_of(each) for each in share.stack(path=share.dims) if each == 1]


def name_of(cell):
    """Sender -> receiver, as the circuits' edges are written."""
    _, *sender = cell["path"].item()
    receiver = str(cell["receiver"].item())
    if "head" in cell.coords:
        return f"L{sender[0]}.H{sender[1]} -> {receiver}"
    if "group" in cell.coords:
        return f"[{sender[0]}] -> {receiver}"
    if "layer" in cell.coords:
        return f"MLP {sender[0]} -> {receiver}"
    return f"{sender[0]} -> {receiver}"


@cache
def world_of(circuit):
    return World(circuit)


both_mlps = pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
both_ways = pytest.mark.parametrize("direction", ["noise", "denoise"])

# --- planted circuits, by hand --------------------------------------------------------

TO_LOGITS = {"relay": "L2.H0", "direct": "L1.H0", "enrich": "L1.H0"}


@both_mlps
@both_ways
@pytest.mark.parametrize("circuit", TO_LOGITS)
def test_one_head_writes_the_answer(circuit, mlps, direction):
    found = world_of(circuit).carriers(mlps=mlps, direction=direction)
    assert found == [f"{TO_LOGITS[circuit]} -> logits"]


INTO_VALUES = {
    ("relay", "recomputed"): ["[object] -> L0.v0"],
    ("relay", "frozen"): ["[object] -> L0.v0"],
    ("direct", "recomputed"): ["[object] -> L1.v0"],
    ("direct", "frozen"): ["[object] -> L1.v0"],
    # The MLP of layer 0 stands between the picture and its reader.
    ("enrich", "recomputed"): ["[object] -> L1.v0"],
    ("enrich", "frozen"): [],
}


@pytest.mark.parametrize(("circuit", "mlps"), INTO_VALUES)
def test_one_value_hears_the_object(circuit, mlps):
    """Not head 1's, which meets zero output weights, and from no other group."""
    world = world_of(circuit)
    found = world.carriers(senders=world.groups, receivers=VALUES, mlps=mlps)
    assert found == INTO_VALUES[circuit, mlps]


@both_mlps
@both_ways
def test_the_relay_passes_the_class_on_by_value(mlps, direction):
    how = {"mlps": mlps, "direction": direction}
    found = world_of("relay").carriers(receivers=VALUES[2:], **how)
    assert found == ["L0.H0 -> L2.v0"]


@both_mlps
def test_the_relay_waits_at_the_query(mlps):
    world, value = world_of("relay"), Site("v", 2, 0)
    for where, wanted in (("query", ["L0.H0 -> L2.v0"]), ("image", []), ("last", [])):
        assert world.carriers(receivers=value, at=where, mlps=mlps) == wanted
        assert world.carriers(receivers=value, to=where, mlps=mlps) == wanted


def test_an_mlp_makes_the_picture_readable():
    world = world_of("enrich")
    for mlps in ("recomputed", "frozen"):
        into = {"senders": world.groups, "receivers": Site("mlp_out", 0), "mlps": mlps}
        assert world.carriers(**into) == ["[object] -> MLP 0"]
        out = world.carriers(senders="mlps", receivers=VALUES[2:], mlps=mlps)
        assert out == ["MLP 0 -> L1.v0"]


@both_mlps
@pytest.mark.parametrize(("circuit", "layer"), [("relay", 0), ("direct", 1)])
def test_what_attention_gives_is_a_receiver(circuit, layer, mlps):
    """The object sends and another position receives: the layer itself attends."""
    world = world_of(circuit)
    z, other, added = (
        *(Site("z", layer, 0), Site("z", layer, 1)),
        Site("attn_out", layer),
    )
    to = "query" if circuit == "relay" else "last"
    how = {"senders": world.groups, "mlps": mlps}
    found = world.carriers(receivers=[z, other, added], to=to, **how)
    assert found == [f"[object] -> L{layer}.H0", f"[object] -> L{layer}.attn_out"]


@pytest.mark.parametrize("circuit", TO_LOGITS)
def test_where_heads_look_is_the_same_in_both_pictures(circuit):
    world = world_of(circuit)
    looks = [Site(each, layer, 0) for each in ("q", "k") for layer in (1, 2)]
    assert not world.carriers(receivers=looks)
    assert not world.carriers(senders=world.groups, receivers=looks)


def test_receivers_of_one_name_receive_jointly():
    world = world_of("relay")
    pairs = {"both": (Site("v", 2, 0), Site("v", 2, 1)), "other": Site("v", 2, 1)}
    found = world.lost(receivers=pairs)
    assert found.sel(receiver="both", layer=0, head=0) == 1
    assert found.sel(receiver="other", layer=0, head=0) == 0
    assert found["serves"].values.tolist() == ["L2.v0: 0; L2.v1: 1", "1"]


def test_no_gap_is_refused():
    with pytest.raises(MetricError, match="no gap to recover"):
        world_of("too_late").lost()


# --- what the result says -------------------------------------------------------------


def test_a_sender_without_a_path_is_no_number():
    """It was not run; that is another thing than a path without effect."""
    world = world_of("relay")
    found = world.lost(receivers=[Site("v", 1, 0), Site("mlp_out", 1)])
    assert found.dims == ("receiver", "layer", "head")
    silent = found.isnull().all("head")
    assert silent.sel(receiver="L1.v0").values.tolist() == [False, True, True]
    assert silent.sel(receiver="MLP 1").values.tolist() == [False, False, True]
    assert found.attrs["n_paths"] == 2 + 4 and found["raw"].isnull().sum() == 6
    groups = world.lost(senders=world.groups | {"last": "last"})
    assert groups.dims == ("receiver", "group")
    assert groups["group"][groups.notnull()[0]].values.tolist() == ["last"]


def test_it_says_what_was_done_and_survives_a_file(tmp_path):
    world = world_of("direct")
    sites = [Site("z", 0, 1), Site("embed"), Site("attn_out", 1), Site("mlp_post", 0)]
    found = mv.path_patching(
        *(world.vlm, world.clean, world.corrupted),
        metric=world.metric,
        senders=sites,
        direction="denoise",
        mlps="frozen",
    )
    assert found.dims == ("receiver", "sender")
    labels = ["L0.H1", "embed", "L1.attn_out", "L0.mlp_post"]
    assert found["sender"].values.tolist() == labels
    attrs = {"direction": "denoise", "mlps": "frozen", "n": 1, "n_paths": 4}
    assert attrs.items() <= found.attrs.items()
    assert "Interpretability in the Wild" in mv.cite(found)
    gap = found.attrs["clean"] - found.attrs["corrupted"]
    assert gap == pytest.approx(8, abs=4 * 2 * TOLERANCE)
    again = found.attrs["corrupted"] + gap * found
    np.testing.assert_allclose(again, found["raw"], atol=1e-6)
    reread = mv.open_result(mv.save_result(found, tmp_path / "paths.nc"))
    np.testing.assert_array_equal(reread, found)
    assert reread["serves"].values.tolist() == [""]
    assert reread.identical(found)


def test_a_map_of_effects_shows_where_something_happens():
    """Of recoveries in a noising sweep nearly all are 1, and of effects 0."""
    world = world_of("relay")
    found = mv.path_patching(
        world.vlm, world.clean, world.corrupted, metric=world.metric
    )
    effect = found["effect"]
    assert (effect.dims, effect.name) == (found.dims, "effect")
    assert effect.attrs["units"] == found.attrs["units"]
    assert effect.attrs["direction"] == "noise"
    shown = effect.sel(receiver="logits")
    assert mv.viz.heatmap(shown).kind == "map"
    assert shown.values.round().tolist() == [[0, 0], [0, 0], [1, 0]]


def test_ends_are_called_as_nodes_are():
    """So that a path's ends can be looked up among a circuit's."""
    nodes = [Node("head", 3, 1), Node("mlp", 2), Node("q", 2, 3)]
    nodes += [Node("k", 2, 1), Node("v", 0, 0)]
    assert [label(node.site) for node in nodes] == list(map(str, nodes))
    vlm = world_of("relay").vlm
    layout = world_of("relay").clean.layout
    receivers = receivers_of(vlm.cfg, layout, [Site("v", 2, 0)], to=None)
    receivers += receivers_of(vlm.cfg, layout, "logits", to=None)
    assert [each.name for each in receivers] == ["L2.v0", str(LOGITS)]


@pytest.fixture(scope="module")
def grouped():
    vlm = mv.HookedVLM(*tiny.build(sweeping.KINDS[1]))
    prompts = (tiny.ask(vlm, sweeping.QUESTION, tiny.picture(seed)) for seed in (0, 1))
    return vlm, *prompts, mv.logit_difference(vlm, "red", "blue")


def test_trap_14_a_key_receiver_says_whom_it_serves(grouped):
    vlm, clean, corrupted, metric = grouped
    sites = [Site("k", 2, 1), Site("v", 2), Site("q", 2, 1), Site("z", 2, 3)]
    found = mv.path_patching(vlm, clean, corrupted, metric=metric, receivers=sites)
    assert found["serves"].values.tolist() == ["2 3", "0 1 2 3", "1", "3"]
    with pytest.raises(LayerError, match=r"2 key-value heads, 0\.\.1"):
        mv.path_patching(
            vlm, clean, corrupted, metric=metric, receivers=Site("k", 2, 2)
        )


def test_trap_07_padding_changes_no_path(grouped):
    vlm, clean, corrupted, metric = grouped
    how = {"metric": metric, "receivers": Site("v", 2, 0), "mlps": "frozen"}
    plain = mv.path_patching(vlm, clean, corrupted, **how)
    padded = (each.left_padded(5, 0) for each in (clean, corrupted))
    found = mv.path_patching(vlm, *padded, **how)
    np.testing.assert_allclose(found, plain, atol=1e-4)


@both_mlps
@both_ways
def test_each_number_is_its_own_path_patch(grouped, mlps, direction):
    """Oracle: the reference, a whole pass for every path."""
    vlm, clean, corrupted, metric = grouped
    base, donor = (clean, corrupted) if direction == "noise" else (corrupted, clean)
    how = {"mlps": mlps, "direction": direction, "at": "image", "to": "image"}
    sites = {"key": Site("k", 2, 1), "mlp": Site("mlp_out", 1)}
    found = mv.path_patching(
        vlm, clean, corrupted, metric=metric, receivers=sites, layers=[1, 0], **how
    )
    run, image = mv.record(vlm, donor, ["z"]), clean.layout["image"]
    paths = [
        PathPatch((Site("z", layer, head),), (site,), "donor", image, image, mlps)
        for site in sites.values()
        for layer in (1, 0)
        for head in range(4)
    ]
    wanted = mv.reference.intervene(
        vlm, base, paths, runs={"donor": run}, metric=metric
    )
    np.testing.assert_allclose(found["raw"].values.flatten(), wanted, atol=1e-5)
    assert found["layer"].values.tolist() == [1, 0]
    untouched = {"noise": 1, "denoise": 0}[direction]
    assert (abs(found - untouched) > 1e-6).all()


# --- what it costs --------------------------------------------------------------------


def test_all_senders_of_a_receiver_are_one_batch(grouped, monkeypatch):
    vlm, clean, corrupted, metric = grouped
    made, honest = [], rows.RowPass.__init__

    def counted(self, vlm, base, items, sources):
        made.append(len(items))
        honest(self, vlm, base, items, sources)

    monkeypatch.setattr(rows.RowPass, "__init__", counted)
    prompts, how = (vlm, clean, corrupted), {"metric": metric, "mlps": "frozen"}
    mv.path_patching(*prompts, **how)
    assert made == [16], "heads to logits are linear algebra: they need no run before"
    made.clear()
    mv.path_patching(*prompts, **how, receivers=[Site("q", 2, 3)], to="last")
    assert made == [8, 8]


def test_a_plan_tells_what_frozen_paths_cost(grouped):
    vlm, clean, *_ = grouped
    last = clean.layout["last"]

    def of(receiver, mlps):
        heads = [Site("z", layer, head) for layer in range(2) for head in range(4)]
        paths = [
            PathPatch((head,), (receiver,), "donor", last, last, mlps) for head in heads
        ]
        return mv.plan(vlm, clean, paths)

    direct, query = of(Site("resid_post", 3), "frozen"), of(Site("q", 2, 3), "frozen")
    assert len(direct.passes) == len(query.passes) == len(query.stage_passes) == 1
    assert not direct.stages and len(direct.sendings) == 8
    # One row behind the last layer; one that hears, and one in each layer behind it.
    assert (direct.rows, query.rows) == (8, 8 * (1 + 2 + 1))
    assert direct.work == 8 * 64 * 64
    assert query.work < of(Site("q", 2, 3), "recomputed").work


# --- what it refuses ------------------------------------------------------------------

REFUSED = {
    "no sender has a path to 'L0.v0'": {"receivers": Site("v", 0, 0)},
    "no sender has a path to 'logits'": {"senders": {"image": "image"}},
    "wanted a list of sites": {"senders": []},
    "senders names L0.H1 twice": {"senders": [Site("z", 0, 1)] * 2},
    "receivers names MLP 2 twice": {"receivers": [Site("mlp_out", 2)] * 2},
    "names no token group": {"senders": {}},
    "there is none. Wanted 'logits'": {"receivers": []},
    "named one by one": {"senders": {"image": "image"}, "layers": [0]},
    "at= has nothing left to say": {"senders": {"last": "last"}, "at": "image"},
    "at='generated' is empty": {"at": "generated"},
    "the logits are read there alone": {"to": "image"},
    "no group is called 'object'": {"senders": {"object": "object"}},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_means_nothing_is_refused(grouped, said):
    vlm, clean, corrupted, metric = grouped
    with pytest.raises((InterventionError, mv.LayoutError)) as refused:
        mv.path_patching(vlm, clean, corrupted, metric=metric, **REFUSED[said])
    assert said in " ".join(str(refused.value).split())


def test_layers_and_pairs_are_checked(grouped):
    vlm, clean, corrupted, metric = grouped
    with pytest.raises(LayerError, match=r"layers \[9\] do not exist"):
        mv.path_patching(vlm, clean, corrupted, metric=metric, layers=[9])
    other = tiny.ask(vlm, "what color is the red cat ?", tiny.picture(1))
    with pytest.raises(PairError, match="matched one to one"):
        mv.path_patching(vlm, clean, other, metric=metric)


def test_a_choice_that_is_none_is_named():
    check_refusals("""
import mechvlm as mv
vlm = mv.load("demo")
prompt = vlm.prompt("how many objects are there ?", mv.scenes.sample(seed=0).image)
metric = mv.logit_difference(vlm, "red", "blue")
run = lambda **how: mv.path_patching(vlm, prompt, prompt, metric=metric, **how)
cases = [
    (lambda: run(direction="back"), mv.InterventionError, "wanted 'denoise' or"),
    (lambda: run(mlps="kept"), mv.InterventionError, "wanted 'recomputed' or"),
    (lambda: run(senders="tokens"), mv.InterventionError, "wanted 'heads', 'mlps'"),
    (lambda: run(receivers="answer"), mv.InterventionError, "wanted 'logits', a s"),
    (lambda: run(receivers=[3]), mv.InterventionError, "there is none. Wanted 'log"),
]
""")


def test_a_model_with_hooks_gives_the_same_slowly(grouped):
    vlm, clean, corrupted, metric = grouped
    how = {"metric": metric, "layers": [1], "mlps": "frozen"}
    wanted = mv.path_patching(vlm, clean, corrupted, **how)
    with (
        vlm.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, **_: x)]),
        pytest.warns(mv.MechVLMWarning, match="right, but slow"),
    ):
        found = mv.path_patching(vlm, clean, corrupted, **how)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert torch.is_grad_enabled()
