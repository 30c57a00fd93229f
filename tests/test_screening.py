"""Attribution patching is the slope of activation patching; screens are verified.

Oracles: exact patches, Hugging Face's model alone with a ten-thousandth of a patch, the
planted circuits, and small lists worked out by hand.
"""

import numpy as np
import pytest
import tiny
from edges_by_hand import STEP, Plain, pair_of
from test_edge_screening import LLAMA, WAYS, every_edge, planted_pair
from unchecked import check_refusals

import mechvlm as mv
from mechvlm.analyses.attribution.agreement import agreement, missed
from mechvlm.errors import (
    ArgumentError,
    CircuitError,
    InterventionError,
    LayerError,
    MetricError,
    PairError,
)
from mechvlm.graph import Node
from mechvlm.models.planted import TOLERANCE
from mechvlm.screening import node_effects, node_scores
from mechvlm.sites import COMPONENTS

NODES = {
    "relay": ("[object]", "L0.H0", "L2.H0"),
    "direct": ("[object]", "L1.H0"),
    "enrich": ("[object]", "MLP 0", "L1.H0"),
}


@pytest.fixture
def tiny_pair(tiny_vlm):
    prompts = [tiny_vlm.prompt("what color", tiny.picture(seed)) for seed in (0, 1)]
    metric = mv.logit_difference(tiny_vlm, "red", "blue")
    return mv.Pair(*prompts, metric, mv.groups_of(prompts[0]))


def patched(vlm, pair, **call):
    """Exact patches of a pair, and their estimate."""
    made = pair.clean, pair.corrupted
    exact = mv.activation_patching(vlm, *made, metric=pair.metric, **call)
    return exact, mv.attribution_patching(vlm, *made, metric=pair.metric, **call)


# --- attribution patching -------------------------------------------------------------


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("circuit", WAYS)
def test_along_a_linear_way_the_estimate_is_the_patch(circuit, direction):
    vlm, pair = planted_pair(circuit)
    for site in ("resid_pre", "embed", "z", "v", "mlp_out", "result"):
        exact, found = patched(vlm, pair, site=site, direction=direction)
        near = {"rtol": 0, "atol": TOLERANCE}
        np.testing.assert_allclose(found, exact, **near, err_msg=site)
        np.testing.assert_allclose(found.raw, exact.raw, rtol=0, atol=8 * TOLERANCE)
    exact, found = patched(vlm, pair, direction=direction, at=dict(pair.groups))
    np.testing.assert_allclose(found, exact, **near)
    assert set(found.sel(layer=0).values.round(2)) == {0.0, 1.0}


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", COMPONENTS)
def test_places_and_labels_are_those_of_exact_patches(
    tiny_vlm, tiny_pair, site, direction
):
    layers = None if site == "embed" else [1, 3]
    call = {"site": site, "direction": direction, "layers": layers, "at": "query"}
    exact, found = patched(tiny_vlm, tiny_pair, **call)
    assert (found.dims, found.shape) == (exact.dims, exact.shape)
    for name in exact.coords:
        if name != "raw":
            assert found[name].values.tolist() == exact[name].values.tolist()
    for end in ("clean", "corrupted"):
        assert found.attrs[end] == pytest.approx(exact.attrs[end], abs=1e-5)
    wanted = (found.raw - found.attrs["corrupted"]) / (
        found.attrs["clean"] - found.attrs["corrupted"]
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def small_patch(plain, pair, module, kind, rows, columns, place=1.0):
    """Oracle: slope of a patch at some rows and columns of what passes a module."""
    _, change, _, gap = plain.known(pair)
    there = plain.known(pair)[0]["embed"] + (1 - place) * change["embed"]
    start = plain.layers[0], lambda _, args: (there, *args[1:]), "forward_pre_hook"
    seen = []
    hear = lambda _, given, *out: seen.append((*out, *given)[0])  # noqa: E731
    for prompt in (pair.clean, pair.corrupted):
        plain.run(prompt, pair.metric, put=[(module, hear, kind)])
    ends = []
    for size in (STEP, -STEP):

        def put(_, given, *out, size=size):
            new = (*out, *given)[0].clone()
            moved = size * (seen[1] - seen[0])
            new[:, rows, columns] += moved[:, rows, columns]
            return new if out else (new, *given[1:])

        both = [(module, put, kind)] if place == 1 else [start, (module, put, kind)]
        ends.append(plain.run(pair.clean, pair.metric, put=both))
    return 1 - (ends[1] - ends[0]) / (2 * STEP) / gap


@pytest.mark.parametrize("steps", [1, 2])
def test_an_estimate_is_the_slope_of_a_patch(steps):
    vlm, pair = pair_of(LLAMA)
    plain, places = Plain(vlm), [1.0] if steps == 1 else [0.25, 0.75]
    every = slice(None)
    head = slice(2 * vlm.cfg.d_head, 3 * vlm.cfg.d_head)
    last = pair.clean.layout.last
    for site, cell, module, kind, rows, columns in [
        ("resid_pre", {"position": 5}, plain.layers[2], "forward_pre_hook", 5, every),
        (
            "mlp_out",
            {"position": last},
            plain.part(2, "mlp"),
            "forward_hook",
            -1,
            every,
        ),
        ("z", {"head": 2}, plain.part(2, "o"), "forward_pre_hook", every, head),
    ]:
        wanted = np.mean(
            [small_patch(plain, pair, module, kind, rows, columns, x) for x in places]
        )
        found = mv.attribution_patching(
            vlm,
            pair.clean,
            pair.corrupted,
            metric=pair.metric,
            site=site,
            direction="noise",
            steps=steps,
            layers=[2],
        )
        assert found.sel(cell).item() == pytest.approx(wanted, rel=1e-4), site
        assert abs(wanted - 1) > 1e-4, site


def test_an_estimate_comes_back_from_disk(tiny_vlm, tiny_pair, tmp_path, untouched):
    both = [mv.base_run(tiny_vlm, x) for x in (tiny_pair.clean, tiny_pair.corrupted)]
    found = mv.attribution_patching(tiny_vlm, *both, metric=tiny_pair.metric, steps=2)
    assert untouched() == []
    assert mv.open_result(mv.save_result(found, tmp_path / "a.nc")).identical(found)
    assert mv.cite(found).startswith("Syed")
    assert (found.attrs["steps"], found.attrs["site"]) == (2, "resid_pre")


def test_what_cannot_be_estimated_is_refused(tiny_vlm, tiny_pair, no_forward):
    short, n = tiny_vlm.prompt("what"), tiny_pair.clean.layout.n
    clean, corrupted = tiny_pair.clean, tiny_pair.corrupted
    for other, call, kind, told in [
        (short, {}, PairError, "cannot be matched one to one"),
        (corrupted, {"layers": [4]}, LayerError, r"layers \[4\] cannot be patched"),
        (corrupted, {"at": "pad"}, InterventionError, "at='pad' is empty"),
        (corrupted, {"at": mv.Positions.of(n)}, InterventionError, f"{n}"),
        (corrupted, {"at": {}, "site": "z"}, InterventionError, "head by head"),
        (corrupted, {"at": {"no": mv.Positions()}}, InterventionError, "is empty"),
    ]:
        with pytest.raises(kind, match=told):
            mv.attribution_patching(
                tiny_vlm, clean, other, metric=tiny_pair.metric, **call
            )


def test_a_metric_that_counts_cannot_be_estimated(tiny_vlm, tiny_pair):
    with pytest.raises(MetricError, match="'rank of red' has no gradient"):
        mv.attribution_patching(
            tiny_vlm,
            tiny_pair.clean,
            tiny_pair.corrupted,
            metric=mv.rank(tiny_vlm, "red"),
        )


# --- nodes ----------------------------------------------------------------------------


@pytest.mark.parametrize("circuit", NODES)
def test_nodes_on_a_linear_way_have_all_of_the_effect(circuit):
    vlm, pair = planted_pair(circuit)
    found = node_scores(vlm, pair)
    wanted = [float(str(node) in NODES[circuit]) for node in found.nodes]
    assert found.values.tolist() == pytest.approx(wanted, abs=TOLERANCE)
    exact = node_effects(vlm, pair, found.nodes, progress=False)
    assert exact.tolist() == pytest.approx(wanted, abs=TOLERANCE)
    assert {str(node) for node, _ in found.ranked()[: sum(map(int, wanted))]} == {
        *NODES[circuit]
    }


def test_integrated_scores_of_all_tokens_add_up_to_the_gap(demo):
    """What enters layer 0 is all that differs, and a gradient at one end is not it."""
    scene = mv.scenes.sample(seed=3, n=1).recolored(0, "red")
    asked = f"what color is the {scene.things[0].shape} ?"
    twin = scene.recolored(0, "blue").image
    made = mv.PicturePair(scene.image, twin, asked, "red", "blue")
    pair = mv.bind(demo, made)
    sums = []
    for steps in (1, 32):
        found = node_scores(demo, pair, steps=steps)
        tokens = [node.kind == "tokens" for node in found.nodes]
        sums.append(float(found.values[tokens].sum()))
    assert sums[1] == pytest.approx(1, abs=0.02)
    assert abs(sums[0] - 1) > 0.1


def test_nodes_that_give_nothing_have_no_effect_to_measure(tiny_vlm, tiny_pair):
    for label in ("L0.q0", "logits"):
        with pytest.raises(CircuitError, match=f"{label} gives nothing to the stream"):
            node_effects(tiny_vlm, tiny_pair, [Node.parse(label)])


# --- screen, verify, audit ------------------------------------------------------------


def screened(vlm, pairs, **call):
    return mv.screen_then_verify(vlm, pairs, progress=False, **call)


@pytest.mark.parametrize("circuit", WAYS)
def test_a_planted_circuit_is_the_top_of_the_screen(circuit):
    vlm, pair = planted_pair(circuit)
    way = sorted(WAYS[circuit])
    found = screened(vlm, [pair], top=len(way), audit=1000)
    assert sorted(found.candidate.values[: len(way)]) == way
    top = found.where(found.role == "top", drop=True)
    assert top.effect.values == pytest.approx(1, abs=TOLERANCE)
    assert top.score.values == pytest.approx(1, abs=TOLERANCE)
    told = found.attrs["missed"]
    assert (told["share"], told["estimated"]) == (0, 0)
    assert abs(told["largest"]) < TOLERANCE
    n_edges = len(every_edge(vlm, pair)) + 1  # [last] -> logits
    assert found.attrs["candidates"] == found.attrs["verified"] == n_edges


def test_the_audit_tells_what_a_saturated_attention_hides():
    """The key's edge does all there is to do, and has no slope."""
    vlm, pair = planted_pair("direct", corrupted=None)
    found = screened(vlm, [pair], top=2, audit=1000)
    told = found.attrs["missed"]
    assert told["candidate"] == "[object] -> L1.k0"
    assert told["largest"] == pytest.approx(1, abs=0.01)
    assert told["n"] == found.attrs["verified"] - 2 > 100
    assert found.role.sel(candidate="[object] -> L1.k0") == "audit"


def test_a_draw_depends_on_its_seed_alone(tiny_vlm, tiny_pair):
    call = {"of": "nodes", "top": 2, "audit": 4}
    first, again, other = (
        screened(tiny_vlm, [tiny_pair], **call, seed=seed) for seed in (0, 0, 1)
    )
    assert again.identical(first)
    assert other.candidate.values[:2].tolist() == first.candidate.values[:2].tolist()
    assert other.candidate.values.tolist() != first.candidate.values.tolist()


def test_everything_may_be_verified_and_nothing_audited(tiny_vlm, tiny_pair, tmp_path):
    found = screened(tiny_vlm, [tiny_pair], of="heads", top=100)
    assert (found.role == "top").all()
    assert found.sizes["candidate"] == 16
    none = {name: found.attrs["missed"][name] for name in ("share", "estimated_high")}
    assert (none, found.attrs["missed"]["n"]) == (dict.fromkeys(none), 0)
    assert found.attrs["agreement"]["audit"]["spearman"] is None
    kept = mv.open_result(mv.save_result(found, tmp_path / "s.nc"))
    assert kept.identical(found)


def test_screens_that_make_no_sense_are_refused(tiny_vlm, tiny_pair, no_forward):
    for call, told in [
        ({"top": 0}, "top is 0; wanted 1 or more"),
        ({"audit": -1}, "audit is -1; wanted 0 or more"),
        ({"steps": 0}, "steps is 0; wanted 1 or more"),
        ({"seed": -1}, "seed is -1; wanted 0 or more"),
    ]:
        with pytest.raises(ArgumentError, match=told):
            mv.screen_then_verify(tiny_vlm, [tiny_pair], **call)


OTHER_KINDS = """
import mechvlm as mv
from mechvlm.errors import InterventionError
vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
pair = mv.bind(vlm, mv.scenes.counterfactual(scene, change="color").pair)
ends = pair.clean, pair.corrupted
up = lambda: mv.attribution_patching(
    vlm, *ends, metric=pair.metric, direction="up")
score, exact = mv.screening.edge_scores, mv.screening.edge_effects
edges = [mv.Edge.parse("L0.H0 -> logits")]
cases = [
    (up, InterventionError, "direction='up': wanted 'denoise' or 'noise'"),
    (lambda: mv.screen_then_verify(vlm, pair), "(Pair); wanted a list of Pair"),
    (lambda: mv.screen_then_verify(vlm, [ends]), "pairs[0] is"),
    (lambda: mv.screen_then_verify(vlm, [pair], of="mlps"), "wanted edges, nodes"),
    (lambda: mv.screen_then_verify(vlm, [pair], of=["edges"]), "of=['edges']: wanted"),
    (lambda: mv.screen_then_verify(vlm, [pair], top="a"), "top is 'a' (str)"),
    (lambda: mv.screen_then_verify(vlm, [pair], audit=2.5), "audit is 2.5 (float)"),
    (lambda: mv.screen_then_verify(vlm, [pair], steps=None), "steps is None (None"),
    (lambda: mv.screen_then_verify(vlm, [pair], seed=None), "seed is None (NoneType)"),
    (lambda: exact(vlm, pair, edges, ablated=pair.corrupted), "are a Prompt; wanted"),
    (lambda: score(vlm, pair, ablated="mean"), "ablated values are a str; wanted"),
    (lambda: score(vlm, pair.clean), "pair is"),
    (lambda: exact(vlm, pair, ["L0.H0 -> logits"]), "edges[0] is"),
]
"""


def test_what_is_of_another_kind_is_said_to_be():
    check_refusals(OTHER_KINDS)


# --- numbers by hand ------------------------------------------------------------------


def test_agreement_by_hand():
    """Ranks 1 2 3 4 against 1 2 4 3: spearman 1 - 6 * 2 / 60, kendall 4 of 6."""
    scores = np.array([0.1, 0.2, 0.3, -0.4, 0.0])
    effects = np.array([0.1, 0.2, 0.3, 0.25, 1e-7])
    found = agreement(scores, effects, ["top"] * 4 + ["audit"])
    assert found["top"]["spearman_of_sizes"] == pytest.approx(0.8)
    assert found["top"]["same_sign"] == found["all"]["same_sign"] == 0.75
    assert (found["all"]["n"], found["all"]["same_sign_n"]) == (5, 4)
    assert found["audit"]["kendall"] is None
    assert found["audit"]["same_sign"] is None
    swapped = agreement(np.arange(4.0), np.array([0.0, 1, 3, 2]), ["top"] * 4)
    assert swapped["all"]["kendall"] == pytest.approx(4 / 6)
    alike = agreement(np.arange(4.0), np.ones(4), ["top"] * 4)
    assert alike["all"]["spearman"] is None


def test_misses_by_hand():
    """Two of four audited do more than the least of the top; ten are not verified."""
    effects = np.array([0.9, -0.2, 0.1, -0.3, 0.0, 0.25])
    roles = ["top", "top", *["audit"] * 4]
    found = missed(effects, list("abcdef"), roles, n_all=16)
    assert (found["share"], found["n"], found["estimated"]) == (0.5, 4, 5)
    assert found["estimated_low"] == pytest.approx(10 * found["share_low"])
    assert (found["largest"], found["candidate"]) == (-0.3, "d")
    assert found["smallest_of_top"] == pytest.approx(0.2)


def test_rounding_is_no_miss():
    """A top that does nothing at all must not make everything a miss."""
    effects = np.array([0.5, 1e-8, 2e-7, -3e-7])
    found = missed(effects, list("abcd"), ["top"] * 2 + ["audit"] * 2, n_all=4)
    assert found["share"] == 0
