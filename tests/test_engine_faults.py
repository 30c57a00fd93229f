"""A wrong cone is seen; bad input and interruption do no harm."""

from importlib import import_module

import pytest
import sweeping
import tiny
import torch
from sweeping import KINDS, scene_of
from test_bad_interventions import BAD, GIVEN, raises

import mechvlm as mv
from mechvlm import Ablate, Knockout, Patch, PathPatch, Positions, Site, reference
from mechvlm.cone import Cones, Reads
from mechvlm.errors import InterventionError, MechVLMWarning
from mechvlm.models import attention
from mechvlm.models.rowwise import rows

# --- a wrong cone is caught -----------------------------------------------------------

PLAN = import_module("mechvlm.plan")  # mechvlm.plan is the function
RIGHT = Cones
IMAGE_BOTH_WAYS = [tiny.GEMMA_KINDS[1], tiny.GEMMA_KINDS[2], tiny.GEMMA_KINDS[3]]
WINDOWED = [tiny.KINDS[2], tiny.GEMMA_KINDS[0]]


class OneLayerLate(RIGHT):
    """Begins to compute a layer behind the one that is touched."""

    def of(self, intervention):
        return super().of(intervention)[1:]


class OneLayerEarly(RIGHT):
    """Stops computing a layer before the end, where more than the end is there."""

    def of(self, intervention):
        steps = super().of(intervention)
        return (*steps[:-2], *steps[-1:])


def seen_through(change):
    """Cones of other masks than those that the layers use."""

    def made(reads, last):
        masks = [change(reads.mask(layer)) for layer in range(reads.n_layers)]
        return RIGHT(Reads(masks), last)

    return made


def causal(mask):
    return mask.tril()


def narrow(mask):
    """The position itself and the 5 before it, where a layer reads 12 or more."""
    return mask.tril().triu(-5)


def share_caught(monkeypatch, kind, wrong):
    """Share of a sweep's answers that a wrong cone pushes beyond the tolerance."""
    scene = scene_of(kind)
    at = scene.prompt.layout
    few = Positions.of(at["image"].indices[5::5])
    todo = [
        what
        for layer in range(scene.vlm.cfg.n_layers - 1)
        for what in (
            Patch(Site("resid_pre", layer), few, "other"),
            Ablate(Site("v", layer), few),
            Ablate(Site("z", layer), few),
            Knockout(range(layer, 4), at["query"] | at["last"], few),
        )
    ]
    monkeypatch.setattr(PLAN, "Cones", RIGHT)
    right = scene.engine(todo)
    monkeypatch.setattr(PLAN, "Cones", wrong)
    off = (scene.engine(todo) - right).abs().amax(dim=1)
    monkeypatch.setattr(PLAN, "Cones", RIGHT)
    sweeping.check_equal(scene, right, scene.truth(todo))
    return float((off > 10 * scene.atol).float().mean())


@pytest.mark.parametrize("wrong", [OneLayerLate, OneLayerEarly])
@pytest.mark.parametrize("kind", KINDS, ids=sweeping.name_of)
def test_a_cone_off_by_one_layer_is_caught(monkeypatch, kind, wrong):
    assert share_caught(monkeypatch, kind, wrong) > 0.9


@pytest.mark.parametrize("kind", IMAGE_BOTH_WAYS, ids=sweeping.name_of)
def test_a_causal_cone_where_the_image_reads_both_ways_is_caught(monkeypatch, kind):
    assert share_caught(monkeypatch, kind, seen_through(causal)) > 0.4


@pytest.mark.parametrize("kind", WINDOWED, ids=sweeping.name_of)
def test_a_cone_of_too_narrow_a_window_is_caught(monkeypatch, kind):
    assert share_caught(monkeypatch, kind, seen_through(narrow)) > 0.6


def test_a_cone_that_is_too_wide_changes_no_answer(monkeypatch):
    """It is only slow: what is computed again without need comes out the same."""
    for kind in (tiny.KINDS[2], tiny.GEMMA_KINDS[1]):
        wrong = seen_through(lambda mask: torch.ones_like(mask).tril() | mask)
        assert share_caught(monkeypatch, kind, wrong) == 0


# --- nothing is left behind -----------------------------------------------------------

IMAGE, QUERY, LAST = Positions.of(range(3, 19)), Positions.of(19, 20), Positions.of(22)
SWEEP = [
    mv.NOTHING,
    Knockout(range(4), LAST, IMAGE),
    Ablate(Site("resid_pre", 1), QUERY | LAST),
    Ablate(Site("mlp_out", 1), LAST),
    Ablate(Site("k", 2), IMAGE),
    (Ablate(Site("result", 2, 1), QUERY), Patch(Site("q", 3), LAST, "own")),
    PathPatch((Site("z", 1, 0),), (Site("q", 3), Site("resid_mid", 3)), "swapped"),
]


@pytest.fixture(scope="module")
def own(tiny_vlm, tiny_prompt):
    """Runs of the prompt itself, and of one with another picture."""
    other = tiny_vlm.prompt("what color", tiny.picture(5))
    return {
        "own": mv.record(tiny_vlm, other),
        "swapped": mv.record(tiny_vlm, other),
    }


@pytest.mark.usefixtures("untouched")
def test_a_sweep_leaves_the_model_as_it_was(tiny_vlm, tiny_prompt, own, untouched):
    for batch in (1, None):
        found = mv.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own, batch_tokens=batch)
        assert untouched() == []
    wanted = reference.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert not attention._ANSWERING
    assert not found.requires_grad


def breaking(monkeypatch, module, n, error):
    """Let the n-th call of a module fail."""
    honest, calls = module.forward, []

    def forward(*given, **named):
        calls.append(1)
        if len(calls) == n:
            raise error
        return honest(*given, **named)

    monkeypatch.setattr(module, "forward", forward)
    return calls


PLACES = {
    "an MLP": lambda vlm: vlm.blocks[1].layer.mlp,
    "a projection of keys": lambda vlm: vlm.blocks[2].layer.k,
    "an output projection": lambda vlm: vlm.blocks[1].layer.o,
    "the final norm": lambda vlm: vlm.ln_final.norm,
    "the rotation": lambda vlm: vlm.hf_model.model.language_model.rotary_emb,
    "the unembedding": lambda vlm: vlm.hf_model.lm_head,
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("error", [KeyboardInterrupt("by hand"), RuntimeError("broke")])
@pytest.mark.parametrize("place", PLACES)
def test_an_interruption_leaves_the_model_as_it_was(
    tiny_vlm, tiny_prompt, own, untouched, place, error
):
    wanted = mv.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own)
    n = 0
    while True:
        n += 1
        with pytest.MonkeyPatch.context() as patch:
            calls = breaking(patch, PLACES[place](tiny_vlm), n, error)
            try:
                mv.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own, batch_tokens=30)
                break
            except type(error) as raised:
                assert raised is error
        assert untouched() == [], f"call {n}"
        assert not attention._ANSWERING
    assert n == len(calls) + 1
    assert n > 2, "it broke little: this shows little"
    again = mv.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own)
    assert torch.equal(again, wanted)


@pytest.mark.usefixtures("untouched")
def test_a_tap_that_breaks_leaves_the_model_as_it_was(tiny_vlm, tiny_prompt, untouched):
    """A run that fails only when it is read, in the midst of a layer."""

    class Failing:
        def __init__(self):
            self.calls = 0

        def __getitem__(self, site):
            self.calls += 1
            if self.calls > 1:
                raise KeyboardInterrupt
            return torch.zeros(23, 4, 16)

    for component in ("q", "z"):
        what = Patch(Site(component, 1), LAST, "failing")
        with pytest.raises(KeyboardInterrupt):
            mv.intervene(tiny_vlm, tiny_prompt, what, runs={"failing": Failing()})
        assert untouched() == []


# --- hooks of the user's own ----------------------------------------------------------


@pytest.mark.usefixtures("untouched")
def test_a_hook_of_the_users_own_is_heard(tiny_vlm, tiny_prompt, own):
    clean = mv.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own)
    metric = mv.logit_difference(tiny_vlm, "red", "blue")
    tiny_vlm.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value * 1.5)
    try:
        with pytest.warns(MechVLMWarning, match=r"hooks of its own.*reset_hooks"):
            found = mv.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own)
        wanted = reference.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own)
        with pytest.warns(MechVLMWarning, match="whole pass"):
            read = mv.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own, metric=metric)
    finally:
        tiny_vlm.reset_hooks()
    assert torch.equal(found, wanted)
    assert torch.equal(read, metric(wanted))
    assert ((found - clean).abs().amax(dim=1) > 1e-3).all()


def test_bad_input_is_refused_beside_a_hook_too(tiny_vlm, tiny_prompt):
    hooks = [("blocks.1.hook_mlp_out", lambda value, hook: value)]
    with (
        raises(InterventionError, "batch_tokens=0: wanted at least 1"),
        tiny_vlm.hooks(fwd_hooks=hooks),
    ):
        mv.intervene(tiny_vlm, tiny_prompt, mv.NOTHING, batch_tokens=0)


@pytest.mark.usefixtures("untouched")
def test_a_hook_of_the_users_own_is_heard_beside_a_base_run(tiny_vlm, tiny_prompt, own):
    """The base run was made without the hook, so its activations are of no use."""
    base = mv.base_run(tiny_vlm, tiny_prompt)
    hooks = [("blocks.0.hook_resid_pre", lambda value, hook: value * 0.5)]
    with (
        tiny_vlm.hooks(fwd_hooks=hooks),
        pytest.warns(MechVLMWarning, match="hooks of its own"),
    ):
        found = mv.intervene(tiny_vlm, base, SWEEP, runs=own)
        wanted = reference.intervene(tiny_vlm, tiny_prompt, SWEEP, runs=own)
    assert torch.equal(found, wanted)


# --- bad input ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started(tiny_vlm, tiny_prompt):
    return mv.base_run(tiny_vlm, tiny_prompt)


@pytest.fixture
def no_layer(started, tiny_vlm, no_forward, monkeypatch):
    """Fail where a layer runs that should not."""

    def never(*_, **__):
        raise AssertionError("a layer ran although the input is bad")

    for block in tiny_vlm.blocks:
        monkeypatch.setattr(block.layer.mlp, "forward", never)
    monkeypatch.setattr(rows.RowPass, "run", never)


@pytest.mark.usefixtures("untouched", "no_layer")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_runs(
    tiny_vlm, tiny_prompt, started, name
):
    what, error, message = BAD[name]
    for given in (tiny_prompt, started):
        for todo in (
            what,
            [mv.NOTHING, Ablate(Site("z", 1), LAST), (mv.NOTHING, what)],
        ):
            with raises(error, message):
                mv.intervene(tiny_vlm, given, todo, **GIVEN)


@pytest.mark.usefixtures("untouched", "no_layer")
def test_sweeps_that_mean_nothing(tiny_vlm, tiny_prompt, started):
    for given in (tiny_prompt, started):
        with raises(
            InterventionError, r"list of interventions is empty; .*\[NOTHING\]"
        ):
            mv.intervene(tiny_vlm, given, [])
        for batch in (0, -3):
            with raises(InterventionError, f"batch_tokens={batch}: wanted at least 1"):
                mv.intervene(tiny_vlm, given, [mv.NOTHING], batch_tokens=batch)
            with raises(InterventionError, f"batch_tokens={batch}: wanted at least 1"):
                mv.plan(tiny_vlm, given, [mv.NOTHING], batch_tokens=batch)


def test_a_cut_of_what_is_cut_already_warns(tiny_vlm, tiny_prompt, started):
    idle = Knockout(range(2), Positions.of(3), LAST)
    for given in (tiny_prompt, started):
        with pytest.warns(MechVLMWarning, match=r"Are target .* and source .* swapped"):
            done, clean = mv.intervene(tiny_vlm, given, [idle, mv.NOTHING])
        torch.testing.assert_close(done, clean, rtol=0, atol=1e-5)
