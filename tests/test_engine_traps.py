"""What went wrong once: each trap, and the answer of whole passes beside it."""

import threading

import pytest
import tiny
import torch
from unchecked import check_refusals

import mechvlm as mv
from mechvlm import Ablate, Knockout, Patch, PathPatch, Positions, Site
from mechvlm.models.rowwise.row_attention import Masks

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def other(tiny_vlm):
    return mv.record(tiny_vlm, tiny_vlm.prompt("what color", tiny.picture(3)))


def check_equal(vlm, prompt, todo, **given):
    ours = mv.intervene(vlm, prompt, todo, **given)
    theirs = mv.reference.intervene(vlm, prompt, todo, **given)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    clean = mv.reference.intervene(vlm, prompt, mv.NOTHING)
    assert ((theirs - clean).abs().amax(dim=1) > 1e-3).any(), "nothing was done"


@pytest.mark.parametrize("name", ["own", "path 0", "path 0 through frozen heads"])
def test_a_run_may_have_any_name(tiny_vlm, tiny_prompt, other, name):
    last = tiny_prompt.layout["last"]
    path = PathPatch((Site("z", 0),), (Site("resid_post", 3),), name, to=last)
    patch = Patch(Site("resid_pre", 1), last, name, from_=Positions.of(4))
    runs = {name: other, "other": other}
    check_equal(tiny_vlm, tiny_prompt, [path, patch, (path, patch)], runs=runs)
    plain = PathPatch((Site("z", 0),), (Site("resid_post", 3),), "other", to=last)
    one, same = mv.intervene(tiny_vlm, tiny_prompt, [path, plain], runs=runs)
    torch.testing.assert_close(one, same, **CLOSE)


def test_a_path_computes_no_row_that_nobody_reads(tiny_vlm, tiny_prompt):
    """Receivers everywhere cost as much as receivers where they matter."""
    last = tiny_prompt.layout["last"]
    ends = (Site("z", 1, 0),), (Site("resid_post", 3),)
    everywhere, there = PathPatch(*ends, "o"), PathPatch(*ends, "o", to=last)
    costs = [mv.plan(tiny_vlm, tiny_prompt, path).work for path in (everywhere, there)]
    assert costs[0] == costs[1]
    nowhere = PathPatch(*ends, "o", to=Positions.of(4))
    assert "without effect          1" in str(mv.plan(tiny_vlm, tiny_prompt, nowhere))


def test_a_plain_hook_on_a_module_is_heard(tiny_vlm, tiny_prompt, untouched):
    """Its rows would be those of many interventions, not of a prompt."""
    layer = tiny_vlm.hf_model.model.language_model.layers[1]
    last = tiny_prompt.layout["last"]
    todo = [mv.NOTHING, Ablate(Site("mlp_out", 0), last)]

    def steer(_, __, output):
        output = output.clone()
        output[:, 4] += 1
        return output

    plain = mv.intervene(tiny_vlm, tiny_prompt, todo)
    handle = layer.register_forward_hook(steer)
    try:
        truth = mv.reference.intervene(tiny_vlm, tiny_prompt, todo)
        with pytest.warns(mv.MechVLMWarning, match="hooks of its own"):
            found = mv.intervene(tiny_vlm, tiny_prompt, todo)
        with pytest.raises(mv.EngineError, match="a base run does not pass them"):
            mv.base_run(tiny_vlm, tiny_prompt)
    finally:
        handle.remove()
    torch.testing.assert_close(found, truth, **CLOSE)
    assert ((found - plain).abs().amax(dim=1) > 1e-3).all()


@pytest.mark.filterwarnings("ignore:.*hooks of its own:mechvlm.MechVLMWarning")
def test_an_analysis_measures_one_model_under_hooks(tiny_vlm, tiny_prompt):
    twin = tiny_vlm.prompt("what color", tiny.picture(3))
    metric = mv.logit_difference(tiny_vlm, "red", "blue")
    half = ("blocks.1.hook_resid_post", lambda value, hook: value * 0.5)
    with tiny_vlm.hooks(fwd_hooks=[half]):
        heat = mv.activation_patching(
            tiny_vlm, tiny_prompt, twin, metric=metric, at="last", layers=[3]
        )
        logits = [tiny_vlm(x)[:, -1].detach() for x in (tiny_prompt, twin)]
        wanted = [float(metric(each)[0]) for each in logits]
    found = [heat.attrs["clean"], heat.attrs["corrupted"]]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_a_weight_written_behind_autograds_back_is_noticed(tiny_vlm, tiny_prompt):
    base = mv.base_run(tiny_vlm, tiny_prompt)
    weight = tiny_vlm.hf_model.model.language_model.layers[2].mlp.up_proj.weight
    kept = weight.detach().clone()
    weight.data.mul_(2)
    try:
        with pytest.raises(mv.EngineError, match="weights were changed since"):
            mv.intervene(tiny_vlm, base, mv.NOTHING)
    finally:
        weight.data.copy_(kept)
    mv.intervene(tiny_vlm, base, mv.NOTHING)


class Lazy:
    """A run that records only when it is asked, in the middle of a sweep."""

    def __init__(self, vlm, prompt):
        self.vlm, self.prompt, self.ready = vlm, prompt, False

    def __getitem__(self, site):
        if not self.ready:  # the check before the sweep looks at its shape
            self.ready = True
            return torch.zeros(self.prompt.layout.n, self.vlm.cfg.d_model)
        return mv.base_run(self.vlm, self.prompt)[site]


def test_a_sweep_inside_a_sweep_is_refused(tiny_vlm, tiny_prompt, untouched):
    patch = Patch(Site("resid_pre", 1), tiny_prompt.layout["last"], "lazy")
    lazy = {"lazy": Lazy(tiny_vlm, tiny_prompt)}
    with pytest.raises(mv.EngineError, match="in the middle of a sweep"):
        mv.intervene(tiny_vlm, tiny_prompt, patch, runs=lazy)
    assert untouched() == []


def test_two_threads_on_one_model_are_told(tiny_vlm, tiny_prompt, monkeypatch):
    """One waits inside a layer while the other begins."""
    cut = Knockout(range(4), tiny_prompt.layout["last"], tiny_prompt.layout["image"])
    base = mv.base_run(tiny_vlm, tiny_prompt)
    inside, go_on, failed = threading.Event(), threading.Event(), []
    layer = tiny_vlm.hf_model.model.language_model.layers[1]
    forward = layer.forward

    def wait(*args, **kwargs):
        inside.set()
        go_on.wait(30)
        return forward(*args, **kwargs)

    def first():
        failed.append(mv.intervene(tiny_vlm, base, cut))

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", wait)
        thread = threading.Thread(target=first)
        thread.start()
        assert inside.wait(30)
        with pytest.raises(mv.EngineError, match="sweep from one thread"):
            mv.intervene(tiny_vlm, base, cut)
        go_on.set()
        thread.join()
    wanted = mv.reference.intervene(tiny_vlm, tiny_prompt, cut)
    torch.testing.assert_close(failed[0], wanted, **CLOSE)


def test_an_answer_need_not_read_itself(tiny_vlm, tiny_prompt, monkeypatch):
    """A prompt's row is cut from a position that is still to be generated."""
    monkeypatch.setattr(tiny_vlm.hf_model.generation_config, "eos_token_id", 10**6)
    n = tiny_prompt.layout.n
    cut = Knockout(range(4), Positions.of(n - 1, n + 1), Positions.of(5, n))
    alone = tiny_vlm.generate(tiny_prompt, interventions=cut, max_new_tokens=3)
    [found] = tiny_vlm.generate_many(tiny_prompt, [cut], max_new_tokens=3)
    torch.testing.assert_close(found.logits, alone.logits, **CLOSE)
    kept = tiny_vlm.generate(tiny_prompt, max_new_tokens=3)
    assert (kept.logits - found.logits).abs().max() > 1e-3


def test_masks_of_past_steps_are_forgotten(tiny_vlm, tiny_prompt, monkeypatch):
    monkeypatch.setattr(tiny_vlm.hf_model.generation_config, "eos_token_id", 10**6)
    held, forget = [], Masks.forget

    def forgotten(self):
        held.append(len(self._blocks))
        forget(self)

    monkeypatch.setattr(Masks, "forget", forgotten)
    n, image = tiny_prompt.layout.n, tiny_prompt.layout["image"]
    cut = Knockout(range(4), Positions.of(range(n, n + 5)), image, (0,))
    tiny_vlm.generate_many(tiny_prompt, [cut], max_new_tokens=6)
    assert held == [1] * 5


# Here beartype would say so first; a user's calls go unchecked.
WRONG_KINDS = """
import mechvlm as mv
from mechvlm import NOTHING, Add, PathPatch, Patch, Positions, Site
vlm = mv.load("demo")
prompt = vlm.prompt("how many objects are there ?", mv.scenes.sample(seed=0).image)
last, ends = prompt.layout["last"], ((Site("z", 0),), (Site("q", 1),))
patch, push = Patch(Site("embed"), last, "other"), Add(Site("embed"), last, "v")
run = lambda *a, **k: mv.intervene(vlm, *a, **k)
cases = [
    (lambda: run(prompt, [[NOTHING]]), mv.InterventionError, "is no intervention"),
    (lambda: run(prompt, Site("z", 0)), mv.InterventionError, "is no intervention"),
    (lambda: run("how many", NOTHING), mv.PromptError, "would lose the image"),
    (lambda: run(prompt, NOTHING, metric=len), mv.MetricError, "wanted a Metric"),
    (lambda: run(prompt, NOTHING, batch_tokens=2.5), mv.InterventionError, "2.5"),
    (lambda: run(prompt, patch, runs={"other": 3}), mv.RunError, "what record"),
    (lambda: run(prompt, push, vectors={"v": [0.0]}), mv.InterventionError, "a tensor"),
    (lambda: PathPatch(ends[0][0], ends[1], "o"), mv.InterventionError, "tuple of"),
    (lambda: PathPatch(*ends, "o", to=3), mv.InterventionError, "wanted Positions"),
    (lambda: PathPatch(*ends, "o", mlps="kept"), mv.InterventionError, "mlps is 'kep"),
]
"""


def test_what_is_of_the_wrong_kind_is_named():
    check_refusals(WRONG_KINDS)


@pytest.mark.parametrize("where", ["at", "to"])
def test_a_path_has_positions_at_both_ends(where):
    ends = (Site("z", 0),), (Site("q", 1),)
    with pytest.raises(mv.InterventionError, match=f"PathPatch.{where} is empty"):
        PathPatch(*ends, "other", **{where: Positions()})
