"""Caption knockouts on planted circuits: scores, tables, and what is refused.

test_caption_passes.py holds the passes themselves against Hugging Face.
"""

from functools import cache

import numpy as np
import pytest
from unchecked import check_refusals

import mechvlm as mv
from mechvlm.errors import (
    InterventionError,
    LayerError,
    MechVLMWarning,
    MetricError,
    MissingImageError,
    ResultError,
)
from mechvlm.judges import ObjectListJudge
from mechvlm.models import planted
from mechvlm.models.planted import ANSWERS, CHANCE, EXPECTED, SURE

FLOWS = ("image->generated", "image->last+generated", "image->prompt_text")
FLOWS += ("image->both",)
N_LAYERS = 3
BY_ANSWER = ObjectListJudge(ANSWERS)
SHORT = {"start_layers": [0], "max_new_tokens": 4, "progress": False}

# --- planted: one word is the whole description ---------------------------------------
#
# Asked of all four classes, an arm that still sees has F1 = 1 in each. A blind one says
# the same word four times (all four logits are equal), which is right in one of four:
# mean F1 = CHANCE, whichever word it is.


@cache
def hooked(circuit, sink=True):
    return mv.HookedVLM(*planted.build(circuit, sink=sink))


def digits(vlm):
    return [
        vlm.prompt(planted.QUESTION, planted.scene(content), system=planted.SYSTEM)
        for content in range(4)
    ]


@cache
def swept(circuit):
    vlm = hooked(circuit)
    return mv.caption_knockout(
        vlm,
        digits(vlm),
        judge=BY_ANSWER,
        flows=FLOWS,
        start_layers=range(N_LAYERS),
        bands={f"layer {i}": range(i, i + 1) for i in range(N_LAYERS)},
        n_random=0,
        max_new_tokens=4,
        truth=[[word] for word in ANSWERS],
        progress=False,
    )


def blind_layers(circuit, flow):
    """Layers in which the circuit loses its answer, by `EXPECTED`'s hand arithmetic."""
    pairs = {
        "image->generated": (),
        "image->last+generated": ("image->last",),
        "image->prompt_text": ("image->query", "image->last"),
        "image->both": ("image->query", "image->last"),
    }[flow]
    truth = EXPECTED[circuit]
    if truth.base != SURE:  # it says one word of everything: nothing to lose
        return set()
    return {
        layer
        for pair in pairs
        for layer in range(N_LAYERS)
        if truth.knockout[pair][layer] == CHANCE
    }


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("circuit", planted.CIRCUITS)
def test_planted_circuits_lose_what_they_must(circuit, flow):
    blind = blind_layers(circuit, flow)
    every = set(range(N_LAYERS))
    cut = {"nothing": set()}
    cut |= {f"from {at}": set(range(at, N_LAYERS)) for at in every}
    cut |= {f"in layer {i}": {i} for i in every}
    cut |= {f"not in layer {i}": every - {i} for i in every}
    found = swept(circuit)
    mean = found["mean"].sel(measure="f1", flow=flow)
    wanted = {name: CHANCE if layers & blind else 1.0 for name, layers in cut.items()}
    assert {name: float(mean.sel(cut=name)) for name in cut} == wanted
    identical = found["mean"].sel(measure="identical", flow=flow)
    assert {name: float(identical.sel(cut=name)) for name in cut} == wanted


def test_planted_by_hand():
    """The same, written out: what `EXPECTED` says for the two simplest circuits."""
    relay, direct = swept("relay"), swept("direct")
    starts = [f"from {at}" for at in range(N_LAYERS)]

    def f1(found, flow):
        arms = found["mean"].sel(measure="f1", flow=flow, cut=starts)
        return arms.values.tolist()

    assert f1(relay, "image->generated") == [1, 1, 1]
    assert f1(relay, "image->last+generated") == [1, 1, 1]
    assert f1(relay, "image->prompt_text") == [0.25, 1, 1]
    assert f1(relay, "image->both") == [0.25, 1, 1]
    assert f1(direct, "image->generated") == [1, 1, 1]
    assert f1(direct, "image->last+generated") == [0.25, 0.25, 1]
    assert f1(direct, "image->prompt_text") == [0.25, 0.25, 1]


@pytest.mark.parametrize("circuit", ["relay", "direct", "enrich"])
def test_the_knockout_from_a_layer_on_is_that_of_the_table(circuit):
    """`EXPECTED.knockout_from` cuts image->query+last; so does image->prompt_text."""
    wanted = [1.0 if p == SURE else CHANCE for p in EXPECTED[circuit].knockout_from]
    found = swept(circuit)["mean"].sel(measure="f1", flow="image->prompt_text")
    starts = [f"from {at}" for at in range(N_LAYERS)]
    assert [float(found.sel(cut=name)) for name in (*starts, "nothing")] == wanted


def test_what_a_blind_arm_says_of_the_truth():
    found = swept("direct")
    truth = found["mean"].sel(measure="truth_f1", flow="image->both")
    assert float(truth.sel(cut="nothing")) == 1.0
    assert float(truth.sel(cut="from 0")) == CHANCE
    lost = mv.lost_objects(found, flow="image->both", cut="from 0")
    said = {word for names in lost for word in names}
    assert len(said) == sum(map(len, lost)) == 3
    assert said < set(ANSWERS)
    assert mv.lost_objects(found, flow="image->both", cut="from 2") == ((),) * 4


def test_trap_03_a_cut_of_the_whole_image_leaves_nothing_to_invent_from():
    """A cut goes in before the softmax: what is left is read all the more.

    Without a sink, the object alone cut, the last position says what the background
    weakly shows (`RENORMALISED`). The flows cut the whole image, and what is left of
    the prompt shows nothing: the four answers are alike, with and without a sink.
    """
    for sink in (True, False):
        vlm = hooked("direct", sink)
        asked = digits(vlm)
        at = mv.Positions.of(planted.POSITIONS["object"])
        last = asked[0].layout["last"]
        part = vlm.generate(
            asked[0], max_new_tokens=2, interventions=mv.Knockout(range(3), last, at)
        )
        answers = [vlm.to_single_token(word) for word in ANSWERS]
        alike = float(part.logits[0, answers].std()) < planted.TOLERANCE
        assert alike == sink
        assert sink or part.text == "three"
        found = mv.caption_knockout(
            vlm,
            asked,
            judge=BY_ANSWER,
            flows=["image->both"],
            start_layers=[0],
            max_new_tokens=3,
            progress=False,
        )
        arm = found.sel(flow="image->both", cut="from 0")
        assert len(set(arm["text"].values.tolist())) == 1
        assert float(arm["f1"].mean()) == CHANCE


# --- the demo -------------------------------------------------------------------------


def test_the_demo_describes_less_when_it_sees_nothing(demo):
    scenes = [mv.scenes.sample(seed=seed, n=2) for seed in range(40, 44)]
    pairs = [f"{color} {it}" for color in mv.scenes.COLORS for it in mv.scenes.SHAPES]
    found = mv.caption_knockout(
        demo,
        [demo.prompt("describe the image .", scene.image) for scene in scenes],
        judge=ObjectListJudge(pairs),
        flows=["image->generated", "image->both"],
        start_layers=[0],
        max_new_tokens=20,
        truth=[[f"{x.color} {x.shape}" for x in scene.things] for scene in scenes],
        progress=False,
    )
    blind = {"flow": "image->both", "cut": "from 0"}
    mean = found["mean"].sel(blind)
    seeing = found["mean"].sel(blind | {"cut": "nothing"})
    assert float(mean.sel(measure="f1")) < float(seeing.sel(measure="f1")) == 1.0
    truth_f1 = {"measure": "truth_f1"}
    assert float(mean.sel(truth_f1)) < float(seeing.sel(truth_f1))
    assert any(mv.lost_objects(found, **blind))


# --- scores, files and other judges ---------------------------------------------------


def test_a_result_is_saved_as_it_is(tmp_path):
    found = swept("relay")
    again = mv.open_result(mv.save_result(found, tmp_path / "captions.nc"))
    assert again.identical(found)
    lost = {"flow": "image->both", "cut": "from 0"}
    assert mv.lost_objects(again, **lost) == mv.lost_objects(found, **lost)
    assert mv.cite(again).startswith("Kaduri")
    assert again.attrs["judge"] == "list of 4 objects"


def test_another_judge_scores_the_same_descriptions():
    found = swept("direct")
    lenient = ObjectListJudge({"digit": ANSWERS})
    again = mv.rejudge(found, lenient)
    assert again["text"].identical(found["text"])
    assert float(again["f1"].min()) == 1.0
    assert "truth_f1" not in again
    same = mv.rejudge(found, BY_ANSWER, truth=[[word] for word in ANSWERS])
    assert same.identical(found)


def test_a_description_without_objects_has_no_score_and_says_so():
    vlm = hooked("direct")
    with pytest.warns(MechVLMWarning, match=r"prompt 1, 'one', names no object"):
        found = mv.caption_knockout(
            vlm,
            digits(vlm)[:2],
            judge=ObjectListJudge(["zero"]),
            flows=["image->both"],
            start_layers=[2],
            max_new_tokens=3,
            progress=False,
        )
    assert np.isnan(found["f1"].sel(prompt=1).values).all()
    assert found["n"].sel(measure="f1").values.tolist() == [[1.0, 1.0]]
    assert found["n"].sel(measure="identical").values.tolist() == [[2.0, 2.0]]
    assert found["change_n"].values.tolist() == [[1.0, 1.0]]
    with (
        pytest.warns(MechVLMWarning, match="names no object"),
        pytest.raises(MetricError, match="no description names an object"),
    ):
        mv.rejudge(found, ObjectListJudge(["cat"]))


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"flows": []}, InterventionError, "wanted one or more different"),
        ({"flows": [FLOWS[0]] * 2}, InterventionError, "wanted one or more different"),
        ({"max_new_tokens": 1}, InterventionError, "wanted 2 or more"),
        ({"start_layers": []}, InterventionError, "nothing would be cut"),
        ({"start_layers": [4]}, LayerError, r"different layers of 0\.\.3"),
        ({"start_layers": [-1]}, LayerError, r"different layers of 0\.\.3"),
        ({"start_layers": [1, 1]}, LayerError, r"different layers of 0\.\.3"),
        ({"bands": {"x": range(4)}}, LayerError, "holds every layer"),
        ({"bands": {"x": range(3, 5)}}, LayerError, "band 'x' is range"),
        ({"bands": {"x": range(0)}}, LayerError, "band 'x' is range"),
        ({"n_random": -1}, InterventionError, "n_random=-1"),
        ({"truth": [["cat"]] * 3}, MetricError, "3 entries for 1 prompts"),
        ({"truth": ["cat"]}, MetricError, "wanted a list of names"),
        ({"truth": [["unicorn"]]}, MetricError, "finds no object in the truth of prom"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_it_runs(
    tiny_vlm, tiny_prompt, no_forward, given, error, told
):
    judge = ObjectListJudge(["cat", "dog"])
    with pytest.raises(error, match=told):
        mv.caption_knockout(tiny_vlm, [tiny_prompt], **SHORT | {"judge": judge} | given)


WRONG_KINDS = """
import numpy as np
import mechvlm as mv
from mechvlm.errors import ArgumentError, JudgeError
from mechvlm.judges import ObjectListJudge
vlm = mv.load("demo")
prompt = vlm.prompt("describe the image .", mv.scenes.sample(seed=0).image)
judge = ObjectListJudge(mv.scenes.SHAPES)
def run(prompts=[prompt], **more):
    given = {"judge": judge, "start_layers": [0], "max_new_tokens": 6} | more
    return mv.caption_knockout(vlm, prompts, **given)
cases = [
    (lambda: run(prompt), ArgumentError, "prompts is"),
    (lambda: run(["describe"]), ArgumentError, "prompts[0] is 'describe' (str)"),
    (lambda: run(judge=ObjectListJudge), JudgeError, "is the class ObjectListJudge"),
    (lambda: run(judge="a judge"), JudgeError, "judge is 'a judge' (str); wanted some"),
    (lambda: run(bands={"b": (2, 5)}), ArgumentError, "bands['b'] is (2, 5) (tuple);"),
    (lambda: run(bands=[(2, 5)]), ArgumentError, "bands is [(2, 5)] (list)"),
    (lambda: run(start_layers=0), ArgumentError, "start_layers is 0 (int)"),
    (lambda: run(start_layers=["0"]), ArgumentError, "start_layers[0] is '0' (str)"),
    (lambda: run(flows="image->both"), ArgumentError, "flows is the one string"),
    (lambda: mv.rejudge(3, judge), ArgumentError, "result is 3 (int); wanted Dataset"),
    (lambda: mv.rejudge(run(), ObjectListJudge), JudgeError, "is the class"),
]
assert run(start_layers=np.arange(0, 8, 4))["start"].values.tolist() == [8, 0, 4]
"""


def test_what_is_of_the_wrong_kind_is_named():
    check_refusals(WRONG_KINDS)


def test_prompts_that_show_nothing_are_refused(tiny_vlm, tiny_prompt, no_forward):
    with pytest.raises(InterventionError, match="there is no prompt to describe"):
        mv.caption_knockout(tiny_vlm, [], judge=BY_ANSWER, **SHORT)
    blind = tiny_vlm.prompt("what color")
    with pytest.raises(MissingImageError, match=r"prompt 1 .* has no image"):
        mv.caption_knockout(tiny_vlm, [tiny_prompt, blind], judge=BY_ANSWER, **SHORT)


def test_a_truth_that_is_not_wholly_known_is_told():
    vlm = hooked("direct")
    with pytest.warns(
        MechVLMWarning, match=r"finds \['zero'\] in the truth of prompt 0"
    ):
        mv.caption_knockout(
            vlm,
            digits(vlm)[:1],
            truth=[["zero", "unicorn"]],
            judge=BY_ANSWER,
            **SHORT,
        )


def test_what_is_no_such_result_is_refused():
    found = swept("direct")
    with pytest.raises(ResultError, match="there is no arm 'image->both', 'from 9'"):
        mv.lost_objects(found, flow="image->both", cut="from 9")
    with pytest.raises(ResultError, match="has no lost"):
        mv.lost_objects(found.drop_vars("lost"), flow="image->both", cut="from 0")
    with pytest.raises(ResultError, match="has no text"):
        mv.rejudge(found.drop_vars("text"), BY_ANSWER)
