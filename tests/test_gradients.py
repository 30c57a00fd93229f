"""Attribution by gradients: complete, signed, and what a loop over passes gives.

Oracles: the planted circuits' hand arithmetic, and Hugging Face's model alone with the
stream that enters layer 0 exchanged by torch's own hook.
"""

from functools import cache

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm.errors import InterventionError, MetricError
from mechvlm.gradients import along_a_path, midpoints
from mechvlm.models import planted
from mechvlm.models.planted import CIRCUITS, EXPECTED, TOLERANCE, scene

KINDS = (tiny.Kind("llama", 2, "clip"), *tiny.GEMMA_KINDS)
QUESTION = "what color is the cat ?"


@cache
def hooked(circuit):
    return mv.HookedVLM(*planted.build(circuit))


@cache
def random_model(kind):
    vlm = mv.HookedVLM(*tiny.build(kind))
    return vlm, tiny.ask(vlm, QUESTION)


def logit(vlm, word):
    token = vlm.to_single_token(word)
    return mv.Metric(f"logit of {word}", "nats", lambda x: x[:, 0], (token,))


def given_as(vlm, prompt, embedding):
    """Oracle: Hugging Face's logits where this stream enters layer 0."""
    first = vlm.hf_model.get_submodule(vlm.family.language_model).layers[0]

    def put(module, args, kwargs):
        return (embedding[None], *args[1:]), kwargs

    handle = first.register_forward_pre_hook(put, with_kwargs=True)
    logits = vlm.hf_model(**prompt.inputs, use_cache=False).logits[0, -1]
    handle.remove()
    return logits


def entering(vlm, prompt):
    """Oracle: what enters layer 0 in a plain pass."""
    seen = []
    first = vlm.hf_model.get_submodule(vlm.family.language_model).layers[0]
    keep = lambda _, args: seen.append(args[0][0].detach().clone())  # noqa: E731
    handle = first.register_forward_pre_hook(keep)
    vlm.hf_model(**prompt.inputs)
    handle.remove()
    return seen[0]


def by_loop(vlm, prompt, number, baseline, steps):
    """Oracle: one backward pass after another, over the positions of the image."""
    whole = entering(vlm, prompt)
    start, image = whole.clone(), list(prompt.layout["image"])
    start[image] = baseline
    slope = torch.zeros_like(whole)
    for step in range(steps):
        leaf = start + (2 * step + 1) / (2 * steps) * (whole - start)
        leaf = leaf.requires_grad_()
        number(given_as(vlm, prompt, leaf)).backward()
        slope += leaf.grad
    vlm.hf_model.zero_grad()
    with torch.no_grad():
        ends = [float(number(given_as(vlm, prompt, x))) for x in (whole, start)]
    return ((slope / steps) * (whole - start)).sum(dim=-1), ends


# --- planted circuits -----------------------------------------------------------------


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_scores_add_up_to_the_answer_and_lie_on_the_object(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    prompt = vlm.prompt(planted.QUESTION, scene(0), system=planted.SYSTEM)
    mean = mv.mean_token(vlm, [scene(0, background=c, cells=()) for c in range(4)])
    scores = mv.integrated_gradients(vlm, prompt, logit(vlm, "zero"), baseline=mean)
    near = {"rel": 0, "abs": 4 * TOLERANCE}
    assert float(scores.sum()) == pytest.approx(truth.attribution, **near)
    whole = scores.attrs["value"] - scores.attrs["baseline"]
    assert whole == pytest.approx(truth.attribution, **near)
    assert scores.attrs["gap"] == pytest.approx(0, abs=1e-4)
    assert scores.attrs["totals"]["image"] == pytest.approx(truth.attribution, **near)
    if truth.attribution:
        top = np.sort(np.argsort(scores.values)[-3:])
        assert tuple(top) == planted.POSITIONS["object"]
        share = scores.values[list(planted.POSITIONS["object"])]
        assert share.tolist() == pytest.approx([4 / 3] * 3, **near)
        scores[list(planted.POSITIONS["object"])] = 0
        assert np.abs(scores.values).max() < 4 * TOLERANCE


def test_what_speaks_against_an_answer_scores_below_0():
    """The object's tokens speak for "zero" as much as against "one"."""
    vlm = hooked("direct")
    prompt = vlm.prompt(planted.QUESTION, scene(0), system=planted.SYSTEM)
    metric = mv.logit_difference(vlm, "one", "zero")
    mean = planted.background_vector(vlm.hf_model, vlm.processor)
    scores = mv.integrated_gradients(vlm, prompt, metric, baseline=mean)
    assert scores.values[list(planted.POSITIONS["object"])].max() < -1
    assert float(scores.sum()) == pytest.approx(-4, abs=4 * TOLERANCE)


def test_the_gap_betrays_a_path_that_changes_only_in_length():
    """Normalisation forgets length: from zero on, all is decided in the first step."""
    vlm = hooked("direct")
    prompt = vlm.prompt(planted.QUESTION, scene(0), system=planted.SYSTEM)
    scores = mv.integrated_gradients(vlm, prompt, logit(vlm, "zero"), baseline="zero")
    assert scores.attrs["gap"] == pytest.approx(-4, abs=0.05)


# --- random models --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_integrated_gradients_are_a_loop_over_plain_passes(kind):
    vlm, prompt = random_model(kind)
    red, blue = vlm.to_single_token("red"), vlm.to_single_token("blue")
    baseline = torch.linspace(-1, 1, vlm.cfg.d_model)
    wanted, ends = by_loop(vlm, prompt, lambda x: x[red] - x[blue], baseline, steps=3)
    scores = mv.integrated_gradients(
        vlm,
        prompt,
        mv.logit_difference(vlm, "red", "blue"),
        baseline=baseline,
        steps=3,
    )
    np.testing.assert_allclose(scores.values, wanted.numpy(), rtol=1e-3, atol=1e-5)
    assert np.abs(wanted.numpy()).max() > 1e-3
    found = [scores.attrs["value"], scores.attrs["baseline"]]
    assert found == pytest.approx(ends, abs=1e-5)
    assert scores.attrs["gap"] == pytest.approx(
        float(wanted.sum()) - (ends[0] - ends[1]), abs=1e-4
    )


def test_the_gap_closes_with_more_steps(tiny_vlm, tiny_prompt):
    metric = mv.log_probability(tiny_vlm, "red")
    gaps = [
        abs(
            mv.integrated_gradients(
                tiny_vlm, tiny_prompt, metric, at="all", steps=steps
            ).attrs["gap"]
        )
        for steps in (2, 128)
    ]
    assert gaps[1] < 0.05 * gaps[0]


def test_gradient_x_input_is_the_slope_at_the_prompt(tiny_vlm, tiny_prompt):
    red = tiny_vlm.to_single_token("red")
    leaf = entering(tiny_vlm, tiny_prompt).requires_grad_()
    (slope,) = torch.autograd.grad(given_as(tiny_vlm, tiny_prompt, leaf)[red], leaf)
    wanted = (slope * leaf).sum(dim=-1).detach().numpy()
    found = mv.gradient_x_input(tiny_vlm, tiny_prompt, logit(tiny_vlm, "red"), at="all")
    np.testing.assert_allclose(found.values, wanted, rtol=1e-3, atol=1e-5)
    image = list(tiny_prompt.layout["image"])
    some = mv.gradient_x_input(tiny_vlm, tiny_prompt, logit(tiny_vlm, "red"))
    np.testing.assert_allclose(some.values[image], wanted[image], rtol=1e-3, atol=1e-5)
    assert some.attrs["totals"]["query"] == 0


def test_nothing_of_the_model_is_left_changed(tiny_vlm, tiny_prompt, untouched):
    """Whether weights ask for gradients, and whether gradients are on, is the user's.

    The fixture checks weights, their flags, their gradients and all hooks.
    """
    metric = mv.log_probability(tiny_vlm, "red")
    first = mv.integrated_gradients(tiny_vlm, tiny_prompt, metric, steps=2)
    assert untouched() == []
    with torch.no_grad():
        again = mv.integrated_gradients(tiny_vlm, tiny_prompt, metric, steps=2)
        assert not torch.is_grad_enabled()
    assert again.identical(first)
    weights = list(tiny_vlm.hf_model.parameters())
    asked = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(False)
    frozen = mv.integrated_gradients(tiny_vlm, tiny_prompt, metric, steps=2)
    assert not any(weight.requires_grad for weight in weights)
    for weight, before in zip(weights, asked, strict=True):
        weight.requires_grad_(before)
    np.testing.assert_allclose(frozen.values, first.values, atol=1e-6)


def test_a_result_is_labelled_and_comes_back_from_disk(tiny_vlm, tiny_prompt, tmp_path):
    run = mv.base_run(tiny_vlm, tiny_prompt)
    metric = mv.logit_difference(tiny_vlm, "red", "blue")
    scores = mv.integrated_gradients(tiny_vlm, run, metric, steps=2)
    assert scores["token"].values.tolist() == list(tiny_prompt.tokens)
    by_group = scores.groupby("group").sum()
    for group, total in scores.attrs["totals"].items():
        assert float(by_group.sel(group=group)) == pytest.approx(total, abs=1e-6)
    assert (scores.attrs["units"], scores.attrs["steps"]) == ("nats", 2)
    assert mv.cite(scores).startswith("Neo")
    kept = mv.open_result(mv.save_result(scores, tmp_path / "ig.nc"))
    assert kept.identical(scores)


# --- traps of the field ---------------------------------------------------------------


def test_trap_07_padding_shifts_positions_and_nothing_else(tiny_vlm, tiny_prompt):
    metric = mv.log_probability(tiny_vlm, "red")
    plain = mv.integrated_gradients(tiny_vlm, tiny_prompt, metric, steps=4)
    padded = mv.integrated_gradients(
        tiny_vlm, tiny_prompt.left_padded(3, 0), metric, steps=4
    )
    np.testing.assert_allclose(padded.values[3:], plain.values, atol=1e-5)
    assert not padded.values[:3].any()


def test_trap_08_the_watched_token_is_the_word_and_not_bos(tiny_vlm, tiny_prompt):
    """A tokenizer that puts BOS in front makes `encode("Yes")[0]` BOS."""
    bos = tiny_vlm.tokenizer.bos_token_id
    assert tiny_vlm.tokenizer("red")["input_ids"][0] == bos
    found = mv.integrated_gradients(tiny_vlm, tiny_prompt, logit(tiny_vlm, "red"))
    red = given_as(tiny_vlm, tiny_prompt, entering(tiny_vlm, tiny_prompt))
    value = red[tiny_vlm.to_single_token("red")].item()
    assert found.attrs["value"] == pytest.approx(value, abs=1e-5)
    assert abs(value - red[bos].item()) > 1e-3


def test_the_first_text_token_keeps_its_embedding(tiny_vlm, tiny_prompt):
    """A baseline slice with its end one too far would overwrite it."""
    image = list(tiny_prompt.layout["image"])
    metric = logit(tiny_vlm, "red")
    scores = mv.integrated_gradients(tiny_vlm, tiny_prompt, metric, baseline="zero")
    blank = entering(tiny_vlm, tiny_prompt)
    blank[image] = 0
    wanted = given_as(tiny_vlm, tiny_prompt, blank)[metric.tokens[0]].item()
    assert scores.attrs["baseline"] == pytest.approx(wanted, abs=1e-5)
    assert not scores.values[image[-1] + 1 :].any()


def test_absolute_values_would_not_add_up(tiny_vlm, tiny_prompt):
    metric = logit(tiny_vlm, "red")
    found = mv.integrated_gradients(tiny_vlm, tiny_prompt, metric, steps=100)
    whole = found.attrs["value"] - found.attrs["baseline"]
    assert float(found.sum()) == pytest.approx(whole, rel=0.02)
    assert float(np.abs(found).sum()) > 1.2 * abs(whole)


# --- baselines and what is refused ----------------------------------------------------


def test_the_mean_is_that_of_the_tokens_that_are_replaced(tiny_vlm, tiny_prompt):
    metric = mv.log_probability(tiny_vlm, "red")
    whole = entering(tiny_vlm, tiny_prompt)
    at = list(tiny_prompt.layout["image"])
    vectors = {
        "mean": whole[at].mean(dim=0),
        "each": whole[at].mean(dim=0).expand(len(at), -1),
        "numpy": whole[at].mean(dim=0).numpy(),
    }
    own = mv.integrated_gradients(tiny_vlm, tiny_prompt, metric, steps=2)
    for vector in vectors.values():
        given = mv.integrated_gradients(
            tiny_vlm, tiny_prompt, metric, baseline=vector, steps=2
        )
        np.testing.assert_allclose(given.values, own.values, atol=1e-6)


def test_midpoints_are_the_middles():
    assert midpoints(4) == [0.125, 0.375, 0.625, 0.875]
    with pytest.raises(InterventionError, match=r"steps=0: wanted at least 1"):
        midpoints(0)


def test_what_cannot_be_attributed_is_refused(tiny_vlm, tiny_prompt, no_forward):
    metric = mv.log_probability(tiny_vlm, "red")
    blind = tiny_vlm.prompt("what color")
    for prompt, call, told in [
        (blind, {}, r"at='image' is empty in this prompt.*without its image"),
        (tiny_prompt, {"at": mv.Positions.of(23)}, "position 23 lies behind .* 22"),
        (tiny_prompt, {"baseline": torch.ones(3)}, r"shape \[3\] does not fit"),
        (tiny_prompt, {"baseline": torch.ones(2, 64)}, r"wanted \[64\], or \[16, 64\]"),
    ]:
        with pytest.raises(InterventionError, match=f"(?s){told}"):
            mv.integrated_gradients(tiny_vlm, prompt, metric, steps=1, **call)


def test_a_metric_that_counts_has_no_gradient(tiny_vlm, tiny_prompt):
    with pytest.raises(MetricError, match="'rank of red' has no gradient"):
        along_a_path(
            tiny_vlm,
            tiny_prompt,
            mv.rank(tiny_vlm, "red"),
            shares=[1.0],
            baseline="zero",
            at="image",
        )
