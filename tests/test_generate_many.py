"""All arms of a sweep at once say what each of them says by itself.

The oracle is `vlm.generate`: one arm at a time, Hugging Face's own KV cache and whole
passes under hooks. It shares no pass, cache or mask with `generate_many`.
"""

import weakref
from contextlib import nullcontext

import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Ablate, Add, Knockout, Patch, Positions, Site
from mechvlm.models import generation
from mechvlm.models.rowwise import decoding

NEW = 6
CLOSE = {"rtol": 0, "atol": 1e-5}


class Case:
    """A tiny model, a prompt, and a run and a vector to intervene with."""

    def __init__(self, kind):
        self.vlm = mv.HookedVLM(*tiny.build(kind))
        for config in (self.vlm.hf_model.generation_config, self.config):
            config.eos_token_id = None  # random models end where they like
        self.prompt = tiny.ask(self.vlm, "what color")
        other = tiny.ask(self.vlm, "what color", tiny.picture(3))
        self.given = {
            "runs": {"other": mv.record(self.vlm, other, sites=mv.sites.COMPONENTS)},
            "vectors": {"push": torch.randn(self.vlm.cfg.d_model)},
        }

    @property
    def config(self):
        return self.vlm.hf_model.config.text_config

    def arms(self):
        at, n = self.prompt.layout, self.prompt.layout.n
        new = Positions.of(range(n, n + NEW - 1))
        cell, cells = Positions.of(at["image"].indices[5]), at["image"]
        some = Positions.of(cells.indices[3:9])
        layers = range(self.vlm.cfg.n_layers)
        arms = [mv.NOTHING]
        arms += [Knockout(range(layer, len(layers)), new, cells) for layer in layers]
        arms += [
            Knockout(range(layer, len(layers)), new | at["last"], some)
            for layer in layers
        ]
        arms += [Patch(Site("resid_pre", layer), cell, "other") for layer in layers]
        arms += [Patch(Site(c, 2, 0), cell, "other") for c in ("q", "k", "v", "z")]
        arms += [Patch(Site("k", 3), cell, "other"), Ablate(Site("embed"), cells)]
        arms += [Add(Site("resid_post", 1), new, "push", 3.0)]
        push = Add(Site("resid_mid", 1), new | cell, "push", 2.0)
        arms += [(push, Knockout((0, 3), new, Positions.of(2), (1,)))]
        return [*arms, Ablate(Site("mlp_out", 3), Positions.of(n - 1, n + 1))]


@pytest.fixture(scope="module", params=tiny.EVERY_KIND, ids=str)
def case(request):
    return Case(request.param)


# A window may hide the image from what is generated late.
@pytest.mark.filterwarnings("ignore:.*cuts only pairs:mechvlm.MechVLMWarning")
@pytest.mark.parametrize("batch_tokens", [None, 25])
def test_arms_together_say_what_each_says_alone(case, batch_tokens):
    vlm, prompt, arms = case.vlm, case.prompt, case.arms()
    together = vlm.generate_many(
        prompt, arms, max_new_tokens=NEW, batch_tokens=batch_tokens, **case.given
    )
    moved = []
    for arm, got in zip(arms, together, strict=True):
        alone = vlm.generate(
            prompt, interventions=arm, max_new_tokens=NEW, **case.given
        )
        assert got.ids.tolist() == alone.ids.tolist(), arm
        assert (got.text, got.layout) == (alone.text, alone.layout)
        torch.testing.assert_close(got.logits, alone.logits, **CLOSE)
        moved.append(float((got.logits - together[0].logits).abs().max()))
    assert moved[0] == 0
    assert sum(each > 1e-3 for each in moved) > len(arms) / 2, "they did nothing"


@pytest.fixture
def tiny_case(tiny_vlm, tiny_prompt, monkeypatch):
    """The shared tiny model, made to go on without end."""
    for config in (tiny_vlm.hf_model.generation_config, tiny_vlm.hf_model.config):
        monkeypatch.setattr(config, "eos_token_id", None, raising=False)
    monkeypatch.setattr(tiny_vlm.hf_model.config.text_config, "eos_token_id", None)
    return tiny_vlm, tiny_prompt


def counted(monkeypatch, module):
    """Number of rows of every call of a module."""
    rows = []
    forward = module.forward

    def count(hidden_states, *args, **kwargs):
        rows.append(hidden_states.shape[1])
        return forward(hidden_states, *args, **kwargs)

    monkeypatch.setattr(module, "forward", count)
    return rows


def test_the_prompt_is_run_once_and_then_one_row_an_arm(tiny_case, monkeypatch):
    vlm, prompt = tiny_case
    n, image = prompt.layout.n, prompt.layout["image"]
    readers = Positions.of(range(n - 2, n + 3))
    arms = [Knockout(range(first, 4), readers, image) for first in range(4)]
    base = mv.base_run(vlm, prompt)
    rows = counted(monkeypatch, vlm.hf_model.model.language_model.layers[1])
    vlm.generate_many(base, arms, max_new_tokens=4)
    # Two arms have begun in layer 1, two rows each; then every arm adds one at a time.
    assert rows == [2 * 2, 4, 4, 4]
    rows.clear()
    vlm.generate_many(prompt, arms, max_new_tokens=4)
    assert rows == [n, 2 * 2, 4, 4, 4]


def test_a_base_run_serves_generate_as_well(tiny_case):
    vlm, prompt = tiny_case
    cut = Knockout(range(4), prompt.layout["last"], prompt.layout["image"])
    base = mv.base_run(vlm, prompt)
    for arm in ((), cut, (cut,)):
        alone = vlm.generate(prompt, interventions=arm, max_new_tokens=3)
        again = vlm.generate(base, interventions=arm, max_new_tokens=3)
        assert again.ids.tolist() == alone.ids.tolist()
        torch.testing.assert_close(again.logits, alone.logits, **CLOSE)


def test_arms_end_where_they_would_alone(tiny_case, monkeypatch):
    vlm, prompt = tiny_case
    arms = [mv.NOTHING] + [
        Ablate(Site("resid_pre", layer), prompt.layout["last"]) for layer in range(4)
    ]
    free = vlm.generate_many(prompt, arms, max_new_tokens=5)
    ends = [free[0].ids[0].item(), free[2].ids[2].item()]
    monkeypatch.setattr(vlm.hf_model.generation_config, "eos_token_id", ends)
    together = vlm.generate_many(prompt, arms, max_new_tokens=5)
    lengths = []
    for arm, got in zip(arms, together, strict=True):
        alone = vlm.generate(prompt, interventions=arm, max_new_tokens=5)
        assert got.ids.tolist() == alone.ids.tolist()
        assert got.logits.shape == alone.logits.shape
        lengths.append(len(got.ids))
    assert lengths[0] == 1
    assert len(set(lengths)) > 1


def test_one_token_needs_no_second_step(tiny_case):
    vlm, prompt = tiny_case
    gone = Ablate(Site("embed"), prompt.layout["image"])
    kept, changed = vlm.generate_many(prompt, [mv.NOTHING, gone], max_new_tokens=1)
    assert len(kept.ids) == len(changed.ids) == 1
    logits = mv.reference.intervene(vlm, prompt, [mv.NOTHING, gone])
    torch.testing.assert_close(kept.logits[0], logits[0], **CLOSE)
    torch.testing.assert_close(changed.logits[0], logits[1], **CLOSE)


def test_an_answer_too_short_for_its_cut_warns(tiny_case, monkeypatch):
    vlm, prompt = tiny_case
    n = prompt.layout.n
    first = vlm.generate(prompt, max_new_tokens=1).ids.item()
    monkeypatch.setattr(vlm.hf_model.generation_config, "eos_token_id", first)
    late = Knockout(range(4), Positions.of(n + 2), prompt.layout["image"])
    with pytest.warns(mv.MechVLMWarning, match="it changed nothing"):
        vlm.generate_many(prompt, [late], max_new_tokens=5)


@pytest.mark.parametrize(
    ("arms", "given", "said"),
    [
        ([], {}, "the list of interventions is empty"),
        ([mv.NOTHING], {"max_new_tokens": 0}, "wanted at least 1"),
        ([mv.NOTHING], {"batch_tokens": 0}, "batch_tokens=0: wanted at least 1"),
        (
            [mv.PathPatch((Site("z", 0),), (Site("q", 1),), "other")],
            {},
            "not defined while generating",
        ),
        ([Ablate(Site("embed"), Positions.of(99))], {}, "outside this sequence"),
    ],
)
def test_what_means_nothing_raises_before_anything_runs(
    tiny_case, no_forward, untouched, arms, given, said
):
    vlm, prompt = tiny_case
    with pytest.raises(mv.InterventionError, match=said):
        vlm.generate_many(prompt, arms, **{"max_new_tokens": 3} | given)


def test_a_users_hooks_are_heard(tiny_case):
    """They make the sweep slow, not wrong."""
    vlm, prompt = tiny_case
    cut = Knockout(range(4), prompt.layout["last"], prompt.layout["image"])
    plain = vlm.generate_many(prompt, [cut], max_new_tokens=2)[0]
    hook = ("blocks.2.hook_mlp_out", lambda value, hook: value * 0)
    with (
        vlm.hooks(fwd_hooks=[hook]),
        pytest.warns(mv.MechVLMWarning, match="right, but slow"),
    ):
        heard = vlm.generate_many(prompt, [cut], max_new_tokens=2)[0]
    with vlm.hooks(fwd_hooks=[hook]):
        alone = vlm.generate(prompt, interventions=cut, max_new_tokens=2)
    torch.testing.assert_close(heard.logits, alone.logits, **CLOSE)
    assert (heard.logits[0] - plain.logits[0]).abs().max() > 1e-3


def test_nothing_is_left_behind(tiny_case, untouched, monkeypatch):
    """Also where a key is pressed in the middle of the second step."""
    vlm, prompt = tiny_case
    cut = Knockout(range(4), prompt.layout["last"], prompt.layout["image"])
    vlm.generate_many(prompt, [mv.NOTHING, cut], max_new_tokens=3)
    module = vlm.hf_model.model.language_model.layers[2]
    forward, calls = module.forward, []

    def press(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "forward", press)
        with pytest.raises(KeyboardInterrupt):
            vlm.generate_many(prompt, [mv.NOTHING, cut], max_new_tokens=5)
    assert untouched() == []


# --- logits of the first step alone ---------------------------------------------------


def heard_hooks(vlm):
    """Hooks of a user's own, that change nothing: the reference path is taken."""
    return vlm.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", lambda value, hook: value)])


@pytest.mark.filterwarnings("ignore:.*hooks of its own:mechvlm.MechVLMWarning")
@pytest.mark.parametrize("path", ["rows", "reference"])
def test_the_first_steps_logits_are_those_of_all(tiny_case, path):
    vlm, prompt = tiny_case
    cut = Knockout(range(4), prompt.layout["last"], prompt.layout["image"])
    with heard_hooks(vlm) if path == "reference" else nullcontext():
        every, first = (
            vlm.generate_many(prompt, [mv.NOTHING, cut], max_new_tokens=4, logits=kept)
            for kept in ("all", "first")
        )
    for whole, one in zip(every, first, strict=True):
        assert (one.ids.tolist(), one.text) == (whole.ids.tolist(), whole.text)
        assert one.layout == whole.layout and len(whole.logits) == 4
        torch.testing.assert_close(one.logits, whole.logits[:1], rtol=0, atol=0)
        # A view of one row would hold all rows in memory.
        assert one.logits.untyped_storage().nbytes() == one.logits.nbytes


@pytest.mark.filterwarnings("ignore:.*hooks of its own:mechvlm.MechVLMWarning")
@pytest.mark.parametrize("path", ["rows", "reference"])
@pytest.mark.parametrize(("kept", "most"), [("all", 7), ("first", 2)])
def test_later_logits_are_let_go_step_by_step(tiny_case, monkeypatch, path, kept, most):
    """Alive while a further step is made: the first step's, and the last one's."""
    vlm, prompt = tiny_case
    steps, alive = [], []
    module, name = {
        "rows": (decoding, "read_out"),
        "reference": (generation, "_step"),
    }[path]
    step = getattr(module, name)

    def watched(*args, **kwargs):
        alive.append(sum(ref() is not None for ref in steps))
        made = step(*args, **kwargs)
        steps.append(weakref.ref(made))
        return made

    monkeypatch.setattr(module, name, watched)
    with heard_hooks(vlm) if path == "reference" else nullcontext():
        vlm.generate_many(prompt, [mv.NOTHING], max_new_tokens=8, logits=kept)
    # By rows the first step's logits are the base run's, and not read out anew.
    assert max(alive) == most - (path == "rows")


def test_kept_logits_have_two_names():
    generation.check_kept("first")
    with pytest.raises(mv.InterventionError, match="logits='last': wanted 'all', or"):
        generation.check_kept("last")
