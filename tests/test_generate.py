"""Generating under interventions: every token from the cache is the one recomputed.

The oracle keeps no cache: at each step the whole sequence so far goes through the plain
eager model of test_reference.py, under masks written there.
"""

import pytest
import tiny
import torch
from test_reference import (
    CLOSE,
    IMAGE,
    LAST,
    LENGTH,
    QUERY,
    case_of,
    check_close,
    cut,
    every_kind,
    on_one,
    on_two,
    plainly,
)

import mechvlm as mv
from mechvlm import Ablate, Add, Patch, PathPatch, Positions, Site, reference

NEW = 5
WRITTEN = list(range(LENGTH, LENGTH + NEW - 1))  # the last new token is not fed back


@pytest.fixture
def case(kind):
    return case_of(kind)


def endless(monkeypatch, *models):
    """Random models end where they like: without an end there are NEW steps to see."""
    for model in models:
        monkeypatch.setattr(model.generation_config, "eos_token_id", None)
        monkeypatch.setattr(model.config.text_config, "eos_token_id", None)


def step_by_step(case, intervention, vectors):
    """Greedy ids and their logits; every step is one whole pass over all positions.

    New tokens are embedded here: one may happen to be `<image>`, whose id Hugging Face
    would take for a picture that is missing.
    """
    row = case.plain(case.inputs).at["embed", None]
    ids, logits = [], []
    for _ in range(NEW):
        inputs = {"inputs_embeds": row[None], "attention_mask": torch.ones(1, len(row))}
        made = plainly(case.plain, inputs, intervention, case.plain_runs, vectors)
        logits.append(made.logits[-1])
        ids.append(int(logits[-1].argmax()))
        new = case.plain.decoder.embed_tokens.weight[ids[-1:]]
        row = torch.cat([row, new.detach()])
    return ids, torch.stack(logits)


# --- without interventions ------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_is_hugging_faces_own(case, monkeypatch, seed):
    endless(monkeypatch, case.vlm.hf_model)
    prompt = case.vlm.prompt_raw("USER : <image> see the dog", tiny.picture(seed))
    made = case.vlm.generate(prompt, max_new_tokens=12)
    own = case.vlm.hf_model.generate(
        **prompt.inputs, max_new_tokens=12, do_sample=False
    )
    assert made.ids.tolist() == own[0, prompt.layout.n :].tolist()
    assert len(made.ids) == len(made.logits) == 12
    assert made.layout["generated"] == Positions.of(
        range(prompt.layout.n, made.layout.n)
    )
    assert made.layout.n == prompt.layout.n + 12


@every_kind
def test_a_padded_prompt_generates_the_same(case, monkeypatch):
    endless(monkeypatch, case.vlm.hf_model)
    made = case.vlm.generate(case.prompt, max_new_tokens=NEW)
    padded = case.vlm.generate(case.prompt.left_padded(3, 0), max_new_tokens=NEW)
    assert made.ids.tolist() == padded.ids.tolist()
    check_close(padded.logits, made.logits)


# --- under interventions --------------------------------------------------------------

TEXT_ROWS = [*QUERY, 25, LAST]
EVERY = range(4)
VECTORS = {
    "v": torch.linspace(-2, 2, 64),
    "z": torch.linspace(-1, 1, 16),
    "rows": torch.linspace(-2, 2, 192).reshape(3, 64),
}
CASES = {
    "nothing": mv.NOTHING,
    "cut: new from image": cut(EVERY, WRITTEN, IMAGE),
    "cut: prompt text from image": cut(EVERY, TEXT_ROWS, IMAGE),
    "cut: both": cut(EVERY, [*TEXT_ROWS, *WRITTEN], IMAGE),
    "cut: the last prompt row and the new ones": cut(EVERY, [LAST, *WRITTEN], IMAGE),
    "cut: some heads and layers": cut(range(1, 3), [LAST, *WRITTEN], QUERY, (0, 3)),
    "cut: new from new": cut(EVERY, WRITTEN[2:], WRITTEN[:2]),
    "embeddings ablated": Ablate(Site("embed"), Positions.of(IMAGE[4:])),
    "a new token ablated": Ablate(Site("mlp_out", 1), Positions.of(WRITTEN[1])),
    "a head ablated throughout": Ablate(Site("z", 2, 1), Positions.of(range(32)[:31])),
    "image patched": Patch(Site("resid_pre", 1), Positions.of(IMAGE[6:]), "other"),
    "a new token patched from a prompt's": Patch(
        Site("resid_post", 0), Positions.of(WRITTEN[0]), "other", Positions.of(LAST)
    ),
    "keys patched": Patch(Site("k", 1), Positions.of(IMAGE), "other"),
    "a row each added across the border": Add(
        Site("resid_mid", 1), Positions.of(LAST, WRITTEN[0], WRITTEN[2]), "rows", 3.0
    ),
    "a row each patched across the border": Patch(
        Site("mlp_out", 0),
        Positions.of(LAST, *WRITTEN),
        "other",
        Positions.of(QUERY[:5]),
    ),
    "a vector added to one head": Add(
        Site("q", 0, 2), Positions.of([*TEXT_ROWS, *WRITTEN]), "z", 2.0
    ),
    "several": (
        cut(EVERY, WRITTEN, IMAGE),
        Add(Site("resid_pre", 2), Positions.of(LAST, *WRITTEN), "v"),
        Patch(Site("resid_pre", 1), Positions.of(IMAGE[8:]), "other"),
    ),
}


@every_kind
def test_the_cache_changes_nothing(case, monkeypatch):
    endless(monkeypatch, case.vlm.hf_model)
    calls = {"max_new_tokens": NEW, "runs": case.runs, "vectors": VECTORS}
    plain = case.vlm.generate(case.prompt, max_new_tokens=NEW)
    for name, what in CASES.items():
        made = case.vlm.generate(case.prompt, interventions=what, **calls)
        ids, logits = step_by_step(case, what, VECTORS)
        assert made.ids.tolist() == ids, name
        check_close(made.logits, logits)
        moved = (made.logits - plain.logits).abs().max() > 10 * CLOSE
        assert moved or what is mv.NOTHING, f"{name} did nothing: this shows nothing"


@on_two
def test_cutting_the_image_from_new_tokens_leaves_the_first_alone(case, monkeypatch):
    """The last prompt row predicts it, and that row is not generated."""
    endless(monkeypatch, case.vlm.hf_model)

    def generated(target):
        what = cut(EVERY, target, IMAGE)
        return case.vlm.generate(case.prompt, max_new_tokens=NEW, interventions=what)

    plain = case.vlm.generate(case.prompt, max_new_tokens=NEW)
    later, too = generated(WRITTEN), generated([LAST, *WRITTEN])
    assert torch.equal(later.logits[0], plain.logits[0])
    assert (later.logits[1:] - plain.logits[1:]).abs().max() > 10 * CLOSE
    assert (too.logits[0] - plain.logits[0]).abs().max() > 10 * CLOSE


@on_one
def test_the_first_step_is_the_references_run(case):
    what = CASES["cut: prompt text from image"]
    made = case.vlm.generate(case.prompt, max_new_tokens=1, interventions=what)
    check_close(made.logits, reference.intervene(case.vlm, case.prompt, [what]))


@on_one
def test_one_intervention_a_list_and_a_tuple_are_the_same(case):
    one = cut(EVERY, [LAST], IMAGE)
    runs = [
        case.vlm.generate(case.prompt, max_new_tokens=2, interventions=what).logits
        for what in (one, [one], (one,), [(one, mv.NOTHING)])
    ]
    assert all(torch.equal(run, runs[0]) for run in runs)


# --- where it ends, and what is refused -----------------------------------------------


@on_one
@pytest.mark.parametrize("form", [int, lambda token: [63, token]], ids=["one", "two"])
def test_the_end_of_sequence_ends_it(case, monkeypatch, form):
    endless(monkeypatch, case.vlm.hf_model)
    free = case.vlm.generate(case.prompt, max_new_tokens=NEW).ids.tolist()
    end = free[2]
    config = case.vlm.hf_model.generation_config
    monkeypatch.setattr(config, "eos_token_id", form(end))
    made = case.vlm.generate(case.prompt, max_new_tokens=NEW)
    assert made.ids.tolist() == free[: free.index(end) + 1]
    assert made.layout.n == LENGTH + len(made.ids)


@on_one
def test_what_generation_refuses(case):
    vlm, prompt = case.vlm, case.prompt
    with pytest.raises(
        mv.InterventionError, match="max_new_tokens=0: wanted at least 1"
    ):
        vlm.generate(prompt, max_new_tokens=0)
    path = PathPatch((Site("z", 0, 1),), (Site("resid_post", 3),), "other")
    with pytest.raises(
        mv.InterventionError, match="PathPatch consists of several runs"
    ):
        vlm.generate(prompt, interventions=path, runs=case.runs)
    beyond = cut(EVERY, [LENGTH + 1], IMAGE)
    with pytest.raises(mv.InterventionError, match=r"outside this sequence of 28"):
        vlm.generate(prompt, max_new_tokens=2, interventions=beyond)


def test_an_answer_that_ends_too_early_for_a_cut_says_so(demo):
    scene = mv.scenes.sample(seed=1, n=2)
    prompt = demo.prompt("how many objects are there ?", scene.image)
    late = mv.Ablate(mv.Site("resid_pre", 2), mv.Positions.of(prompt.layout.n + 10))
    with pytest.warns(mv.MechVLMWarning, match="the answer ended after"):
        said = demo.generate(prompt, interventions=(late,))
    assert said.text == "two"
