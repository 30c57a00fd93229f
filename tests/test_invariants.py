"""What must hold of every intervention on every model, whatever its weights.

The ten invariants of methods.md, section 6, on random LLaVAs of every kind and on the
planted ones; then passes that start or stop inside; then faults put in on purpose,
which the oracle of test_reference.py must see.
"""

import math
from functools import cache
from types import SimpleNamespace

import pytest
import tiny
import torch
from test_planted_table import ask, hooked
from test_reference import CLOSE, case_of, check_close, cut

import mechvlm as mv
from mechvlm import Ablate, Knockout, Patch, Positions, Site, reference
from mechvlm.models import attention, lowering, planted

MODELS = [*tiny.KINDS, *planted.CIRCUITS]
SOURCES = lowering.Sources({}, {})
HONEST = lowering._cuts


def name_of(model):
    if isinstance(model, str):
        return f"planted-{model}"
    return f"{model.backbone}-{model.kv_heads}-{model.tower}"


@cache
def subject_of(model):
    """A hooked model with a clean prompt and another of the same layout."""
    if isinstance(model, str):
        vlm = hooked(model)
        prompt, other = ask(vlm, 0), ask(vlm, 1)
    else:
        vlm = case_of(model).vlm
        prompt, other = case_of(model).prompt, case_of(model).other
    # At its first forward transformers hangs hooks of its own on the vision tower.
    vlm(prompt)
    every = range(vlm.cfg.n_layers)
    return SimpleNamespace(
        model=model,
        vlm=vlm,
        prompt=prompt,
        other=other,
        layers=every,
        image=prompt.layout["image"],
        last=prompt.layout["last"],
        text=prompt.layout["text"] - prompt.layout["bos"],
        streams=[Site("resid_pre", layer) for layer in every]
        + [Site("resid_post", every[-1])],
    )


@pytest.fixture(params=MODELS, ids=name_of)
def it(request):
    return subject_of(request.param)


def twin(it, implementation):
    """The same weights under another attention implementation."""
    if isinstance(it.model, str):
        made = planted.build(it.model)
        made[0].set_attn_implementation(implementation)
    else:
        made = tiny.build(it.model, attention=implementation)
    return mv.HookedVLM(*made)


def run(it, *interventions, prompt=None, **sources):
    return reference.intervene(
        it.vlm, prompt or it.prompt, list(interventions), **sources
    )


def some(it):
    """Interventions of every sort, each of which does something to a random model."""
    middle = Positions.of(list(it.image)[5:])
    return [
        Knockout(it.layers, it.text, it.image),
        Knockout(range(1, 2), it.text, it.image, (1,)),
        Ablate(Site("embed"), middle),
        Patch(Site("resid_pre", 1), it.image, "other"),
        (Ablate(Site("z", 1, 0), it.last), Knockout(it.layers[1:], it.last, middle)),
    ]


def recorded(it):
    return {"other": mv.record(it.vlm, it.other, ["resid_pre"])}


def acts(it):
    """Whether the answer reads the image; that of planted `too_late` does not."""
    return it.model != "too_late"


# --- (i) and (ii): what does nothing --------------------------------------------------


@torch.no_grad()
def test_the_empty_intervention_is_bit_identical(it):
    bare = it.vlm.hf_model(**it.prompt.inputs, use_cache=False).logits[0, -1]
    for empty in run(it, mv.NOTHING, (), (mv.NOTHING, (mv.NOTHING,))):
        assert torch.equal(empty, bare)
    assert torch.equal(it.vlm(it.prompt)[0, -1], bare)


def test_cutting_what_causality_forbids_warns_and_does_nothing(it):
    first = Positions.of(range(min(it.image)))
    backwards = Knockout(it.layers, first, it.text - first)
    with pytest.warns(mv.MechVLMWarning, match="pairs that the attention mask already"):
        clean, done = run(it, mv.NOTHING, backwards)
    check_close(done, clean)


def test_cutting_what_is_outside_a_sliding_window_does_nothing():
    it = subject_of(tiny.KINDS[2])
    far = Knockout(it.layers, it.last, Positions.of(range(1, 15)))
    with pytest.warns(mv.MechVLMWarning, match="swapped"):
        clean, done = run(it, mv.NOTHING, far)
    check_close(done, clean)


# --- (iii) causality ------------------------------------------------------------------


@pytest.mark.parametrize("back", [0, 2])
def test_a_cut_row_leaves_earlier_rows_alone_in_every_layer(it, back):
    row = it.prompt.layout.last - back
    what = Knockout(it.layers, Positions.of(row), it.image)
    clean = mv.record(it.vlm, it.prompt)
    hooks = list(lowering.hooks_of(what, range(it.prompt.layout.n), SOURCES))
    with it.vlm.hooks(fwd_hooks=hooks):
        done = mv.record(it.vlm, it.prompt)
    moved = 0.0
    for site in it.streams:
        check_close(done[site][:row], clean[site][:row])
        moved = max(moved, float((done[site][row] - clean[site][row]).abs().max()))
    readers = {("relay", 2), ("direct", 0), ("enrich", 0)}
    assert (moved > 10 * CLOSE) == (
        it.model in tiny.KINDS or (it.model, back) in readers
    )


# --- (iv) nothing stays behind --------------------------------------------------------


class Broken(Exception):
    """A hook of the user's that fails."""


def left_behind(vlm):
    """Everything that a run may install, as it is now."""
    hf_model = vlm.hf_model
    language_model = hf_model.model.language_model
    hooks = [
        len(found)
        for module in hf_model.modules()
        for found in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    ]
    return (
        hooks,
        id(language_model.layers),
        [id(layer) for layer in language_model.layers],
        hf_model.config.text_config._attn_implementation,
        len(attention._LISTENING),
        sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in vlm.hook_dict.values()),
        vlm.cfg.use_attn_result,
    )


def breaks(_, **__):
    raise Broken


ENDINGS = {
    "run_with_hooks": lambda it, name: it.vlm.run_with_hooks(
        it.prompt, fwd_hooks=[(name, breaks)]
    ),
    "starting inside": lambda it, name: it.vlm.run_with_hooks(
        torch.zeros(1, it.prompt.layout.n, it.vlm.cfg.d_model),
        prompt=it.prompt,
        start_at_layer=1,
        fwd_hooks=[(name, breaks)],
    ),
    "stopping inside": lambda it, name: it.vlm.run_with_hooks(
        it.prompt, stop_at_layer=3, fwd_hooks=[(name, breaks)]
    ),
    "among others": lambda it, name: it.vlm.run_with_hooks(
        it.prompt,
        fwd_hooks=[(lambda each: "blocks" in each, lambda x, hook: x), (name, breaks)],
    ),
}
POINTS = ["hook_resid_pre", "attn.hook_q", "attn.hook_rot_k", "attn.hook_attn_scores"]
POINTS += ["attn.hook_pattern", "hook_resid_mid", "mlp.hook_post", "ln2.hook_scale"]


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("point", POINTS)
def test_nothing_is_left_after_a_hook_broke(ending, point):
    it = subject_of(tiny.KINDS[0])
    before, clean = left_behind(it.vlm), run(it, mv.NOTHING)
    with pytest.raises(Broken):
        ending(it, f"blocks.1.{point}")
    assert left_behind(it.vlm) == before
    assert torch.equal(run(it, mv.NOTHING), clean)


def test_nothing_is_left_after_any_run(it):
    before, clean = left_behind(it.vlm), run(it, mv.NOTHING)
    weights = {name: w.clone() for name, w in it.vlm.hf_model.state_dict().items()}
    run(it, *some(it), runs=recorded(it))
    it.vlm.generate(it.prompt, max_new_tokens=2, interventions=some(it)[0])
    it.vlm.reads(it.prompt)
    it.vlm.run_with_cache(it.prompt)
    run(it, Ablate(Site("result", 0), it.last))
    assert left_behind(it.vlm) == before
    assert torch.equal(run(it, mv.NOTHING), clean)
    after = it.vlm.hf_model.state_dict()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_nothing_is_left_after_a_broken_intervention(monkeypatch):
    it = subject_of(tiny.KINDS[0])
    before = left_behind(it.vlm)
    scores = "blocks.2.attn.hook_attn_scores"
    monkeypatch.setattr(lowering, "_cuts", lambda part, _: [(scores, breaks)])
    with pytest.raises(Broken):
        it.vlm.generate(it.prompt, interventions=some(it)[0])
    with pytest.raises(Broken):
        run(it, some(it)[0])
    assert left_behind(it.vlm) == before


# --- (v) the same answer by another way -----------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_implementation_gives_the_same_answers(it, implementation):
    other = twin(it, implementation)
    done = run(it, mv.NOTHING, *some(it), runs=recorded(it))
    again = reference.intervene(
        other, it.prompt, [mv.NOTHING, *some(it)], runs=recorded(it)
    )
    check_close(again, done)
    moved = (done[1:] - done[0]).abs().amax(dim=1)
    assert not acts(it) or moved[0] > 10 * CLOSE
    assert isinstance(it.model, str) or moved.min() > 10 * CLOSE


def moved_up(intervention, by):
    """The same intervention on a prompt that starts `by` positions later."""
    if isinstance(intervention, tuple):
        return tuple(moved_up(part, by) for part in intervention)
    up = lambda at: Positions.of(i + by for i in at)  # noqa: E731
    if isinstance(intervention, Knockout):
        layers, heads = intervention.layers, intervention.heads
        return Knockout(layers, up(intervention.target), up(intervention.source), heads)
    if isinstance(intervention, Patch):
        at = intervention.at
        return Patch(intervention.site, up(at), intervention.run, from_=at)
    return Ablate(intervention.site, up(intervention.at), intervention.value)


def test_padding_changes_no_answer(it):
    padded = it.prompt.left_padded(4, 0)
    assert padded.layout["image"] == Positions.of(i + 4 for i in it.image)
    what, runs = some(it), recorded(it)
    done = run(it, mv.NOTHING, *what, runs=runs)
    moved = [mv.NOTHING, *(moved_up(each, 4) for each in what)]
    check_close(run(it, *moved, prompt=padded, runs=runs), done)


def test_many_at_once_are_each_alone(it):
    what, runs = [mv.NOTHING, *some(it), mv.NOTHING], recorded(it)
    together = run(it, *what, runs=runs)
    for each, row in zip(what, together, strict=True):
        assert torch.equal(run(it, each, runs=runs)[0], row)


# --- (vi) and (vii): edges and sums ---------------------------------------------------


def test_cutting_from_the_end_is_the_baseline_and_from_the_start_is_everything(it):
    n_layers, call = len(it.layers), {"answer": 7, "width": 1}
    cuts = {"image->text": (it.text, it.image)}
    since, until, alone = (
        mv.knockout_windows(it.vlm, it.prompt, cuts, mode=mode, **call)[0].values
        for mode in ("from", "upto", "window")
    )
    # Layers from L on are none: the last window of "from" is one layer, as of "window".
    assert since[-1] == pytest.approx(alone[-1], abs=1e-3)  # of 100 %
    assert until[0] == pytest.approx(alone[0], abs=1e-3)
    assert since[0] == pytest.approx(until[-1], abs=1e-3)
    whole = run(it, mv.NOTHING, Knockout(it.layers, it.text, it.image))
    p = whole.softmax(dim=-1)[:, 7]
    assert since[0] == pytest.approx(float(100 * (p[1] / p[0] - 1)), abs=1e-3)
    with pytest.raises(mv.InterventionError, match="cuts nothing"):
        Knockout(range(n_layers, n_layers), it.text, it.image)


def test_attention_rows_and_the_shares_of_groups_sum_to_one(it):
    rows = mv.attention_patterns(it.vlm, it.prompt)
    one = torch.ones(rows.shape[:-1])
    check_close(torch.from_numpy(rows.sum("source").values), one)
    shares = rows.groupby("source_group").sum().sum("source_group")
    check_close(torch.from_numpy(shares.values), one)
    above = torch.triu(torch.ones(rows.shape[-2:]), diagonal=1)
    assert float((torch.from_numpy(rows.values) * above).abs().max()) == 0
    seen = []
    what = Knockout(it.layers, it.text, it.image)
    hooks = list(lowering.hooks_of(what, range(it.prompt.layout.n), SOURCES))
    pattern = "blocks.1.attn.hook_pattern"
    look = (pattern, lambda x, hook: seen.append(x[0]))
    with torch.no_grad():
        it.vlm.run_with_hooks(it.prompt, fwd_hooks=[*hooks, look])
    check_close(seen[0].sum(dim=-1), one[1])
    assert float(seen[0][:, list(it.text)][:, :, list(it.image)].abs().max()) == 0


# --- (viii) and (ix): keeping everything, changing nothing ----------------------------


def test_an_answer_decoded_from_the_whole_cache_is_the_one_pass_answer(it):
    made = it.vlm.generate(it.prompt, max_new_tokens=3)
    check_close(made.logits[0], run(it, mv.NOTHING)[0])
    if len(made.ids) > 1:
        tokens = tuple(it.vlm.to_str_tokens(made.ids[:-1]))
        longer = it.prompt.extended(made.ids[:-1], tokens)
        check_close(made.logits[-1], run(it, mv.NOTHING, prompt=longer)[0])


def test_a_run_patched_into_itself_is_that_run(it):
    own = {"own": mv.record(it.vlm, it.prompt)}
    clean, *done = run(
        it,
        mv.NOTHING,
        *(Patch(site, it.image, "own") for site in it.streams),
        Patch(Site("z", 1, 1), it.image | it.last, "own"),
        tuple(Patch(Site("mlp_out", layer), it.last, "own") for layer in it.layers),
        runs=own,
    )
    for each in done:
        assert torch.equal(each, clean)


def test_freezing_at_the_layer_itself_is_no_freeze(it):
    rows = mv.record(it.vlm, it.prompt, ["resid_pre"])
    vectors = {
        f"h{at}": rows[Site("resid_pre", at)][list(it.image)] for at in it.layers
    }
    same = [Ablate(Site("resid_pre", at), it.image, value=f"h{at}") for at in it.layers]
    held = [Ablate(Site("resid_pre", at), it.image, value="h0") for at in it.layers]
    clean, frozen, *done = run(it, mv.NOTHING, tuple(held), *same, vectors=vectors)
    for each in done:
        assert torch.equal(each, clean)
    if not isinstance(it.model, str):
        assert (frozen - clean).abs().max() > 10 * CLOSE


# --- passes that start or stop inside -------------------------------------------------


@torch.no_grad()
def test_a_pass_that_starts_inside_runs_only_what_is_left(it):
    n_layers = len(it.layers)
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_, at=at: calls.append(at))
        for at, layer in enumerate(it.vlm.hf_model.model.language_model.layers)
    ]
    try:
        whole, rows = it.vlm(it.prompt), mv.record(it.vlm, it.prompt)
        for start in range(n_layers + 1):
            calls.clear()
            given = rows[it.streams[start]][None]
            check_close(it.vlm(given, prompt=it.prompt, start_at_layer=start), whole)
            assert calls == list(range(start, n_layers))
        for stop in range(n_layers + 1):
            calls.clear()
            stream = it.vlm(it.prompt, stop_at_layer=stop)
            assert torch.equal(stream[0], rows[it.streams[stop]])
            assert calls == list(range(stop))
        calls.clear()
        given, call = rows[it.streams[1]][None], {"start_at_layer": 1}
        middle = it.vlm(given, prompt=it.prompt, stop_at_layer=2, **call)
        check_close(middle[0], rows[it.streams[2]])
        assert calls == [1]
    finally:
        for handle in handles:
            handle.remove()


# --- faults put in on purpose ---------------------------------------------------------


def swapped(part, target):
    keys = torch.tensor(list(part.source))

    def cut_backwards(scores, **_):
        new = scores.clone()
        new[0, :, keys[:, None], torch.tensor(target)[None]] = -math.inf
        return new

    for layer in part.layers:
        yield f"blocks.{layer}.attn.hook_attn_scores", cut_backwards


def written_as_zero(part, target):
    keys = torch.tensor(list(part.source))

    def allow(scores, **_):
        new = scores.clone()
        new[0, :, torch.tensor(target)[:, None], keys[None]] = 0.0
        return new

    for layer in part.layers:
        yield f"blocks.{layer}.attn.hook_attn_scores", allow


def one_layer_late(part, target):
    for name, function in HONEST(part, target):
        layer = min(int(name.split(".")[1]) + 1, 3)
        yield f"blocks.{layer}.attn.hook_attn_scores", function


@pytest.mark.parametrize("sabotage", [swapped, written_as_zero, one_layer_late])
def test_the_oracle_catches_a_wrong_cut(monkeypatch, sabotage):
    """Faults published in this field, put in on purpose: each must be seen."""
    case = case_of(tiny.KINDS[0])
    what = cut(range(1, 2), [19, 20, 26], range(3, 18))
    case.check_agree(what)
    monkeypatch.setattr(lowering, "_cuts", sabotage)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        case.check_agree(what)
