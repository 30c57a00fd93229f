"""Small results of every analysis, on the demo, each made when first wanted."""

from __future__ import annotations

from functools import cache

import mechvlm as mv

QUESTION = "how many objects are there ?"
SCENE = mv.scenes.sample(seed=3, n=1)
SHAPE = SCENE.things[0].shape
TWO_CIRCUITS = (["[name] -> L0.v0", "L0.H0 -> logits"], ["[object] -> L0.v0"])


@cache
def vlm():
    return mv.load("demo")


@cache
def count():
    return vlm().prompt(QUESTION, SCENE.image)


def posed():
    return [mv.Posed(count(), ("one",))]


@cache
def red_and_blue():
    red = SCENE.recolored(0, "red")
    ask = f"what color is the {SHAPE} ?"
    return (
        vlm().prompt(ask, red.image),
        vlm().prompt(ask, red.recolored(0, "blue").image),
    )


@cache
def pair():
    return mv.bind(vlm(), mv.scenes.counterfactual(SCENE, change="color").pair)


def item(question=f"what color is the {SHAPE} ?", answer=SCENE.things[0].color):
    return mv.Item(SCENE.image, question, answer, {SHAPE: SCENE.box(0)}, SHAPE)


def patching(analysis, **more):
    metric = mv.logit_difference(vlm(), "red", "blue")
    return analysis(vlm(), *red_and_blue(), metric=metric, **more)


def entity():
    name = mv.scenes.NAMES[0]
    fact = mv.Fact(
        f"where does {name} live ?",
        "where does this character live ?",
        (mv.scenes.fact(name, "city"),),
    )
    picture = mv.scenes.Scene((mv.scenes.Emblem(name, 4),)).image
    return mv.Entity(name, picture, (fact,))


def flows():
    prompt = count()
    thing = prompt.layout.region(SCENE.mask(0))
    asked = mv.Grouped(prompt, {"object": thing, "last": "last"}, "one")
    bands = {"early": range(4), "late": range(4, 8)}
    return mv.flow_graph(vlm(), [asked], bands=bands, n_random=19)


def captions():
    scene = mv.scenes.sample(seed=0, n=2)
    names = [f"{c} {s}" for c in mv.scenes.COLORS for s in mv.scenes.SHAPES]
    return mv.caption_knockout(
        vlm(),
        [vlm().prompt("describe the image .", scene.image)],
        judge=mv.judges.ObjectListJudge(names),
        start_layers=[0, 4],
        max_new_tokens=20,
    )


def while_naming():
    ask = mv.readings.generative("describe the image .", max_new_tokens=8)
    said = vlm().generate(vlm().prompt("describe the image .", SCENE.image)).text
    named = mv.Item(SCENE.image, "", objects={said.split()[1]: SCENE.mask(0)})
    return mv.localization_accuracy(vlm(), [named], reading=ask, objects="named")


def yes_or_no():
    other = "ring" if SHAPE != "ring" else "square"
    image = SCENE.image
    asked = [(SHAPE, "Yes"), (other, "No")]
    two = [mv.Item(image, f"is there a {what} ?", answer) for what, answer in asked]
    return mv.mme(vlm(), {"existence": two})


def two_circuits():
    each = (mv.Circuit.parse(labels, mv.Shape(2, 2, 2)) for labels in TWO_CIRCUITS)
    return mv.circuit_overlap(*each, groups={"name": "object"})


def scores(analysis, **more):
    metric = mv.logit_difference(vlm(), "one", "two")
    return analysis(vlm(), count(), metric, **more)


def cuts():
    layout = {"image->last": ("last", "image"), "image->query": ("query", "image")}
    return mv.knockout_windows(vlm(), count(), layout, answer="one", mode="from")


def hits():
    where = count().layout.region(SCENE.mask(0))
    return mv.object_hit_rate(made("logit_lens"), [SHAPE], where)


def cuts_of_items():
    ask = mv.scenes.questions(SCENE, "color")[0]
    said = vlm().generate(vlm().prompt(ask.text, SCENE.image), max_new_tokens=1).text
    windows = {"all": range(8), "early": range(4)}
    return mv.knockout_accuracy(vlm(), [item(ask.text, said)], windows=windows)


def lost_answers():
    return mv.token_ablation(
        vlm(),
        [item()],
        {"object": mv.selecting.object_tokens()},
        metric=mv.readings.vqa(),
        value="zero",
        n_random=2,
    )


def by_context():
    return mv.context_accuracy(
        vlm(),
        [item(QUESTION, "one")],
        keeps=[0.1],
        selects=["last"],
        describe="describe the image .",
    )


MADE = {
    "activation_patching": lambda: patching(mv.activation_patching),
    "attribution_patching": lambda: patching(mv.attribution_patching),
    "path_patching": lambda: patching(mv.path_patching),
    "integrated_gradients": lambda: scores(mv.integrated_gradients, steps=4),
    "gradient_x_input": lambda: scores(mv.gradient_x_input, at="all"),
    "screen_then_verify": lambda: mv.screen_then_verify(
        vlm(), [pair()], of="heads", top=8, audit=8
    ),
    "knockout_windows": cuts,
    "knockout_accuracy": cuts_of_items,
    "caption_knockout": captions,
    "cumulative_knockout": lambda: mv.cumulative_knockout(
        vlm(), posed(), max_new_tokens=2
    ),
    "back_patch": lambda: mv.back_patch(
        vlm(), posed(), sources=[1, 4], targets=[1, 2], max_new_tokens=2
    ),
    "freeze": lambda: mv.freeze(vlm(), posed(), max_new_tokens=2),
    "cross_patch": lambda: mv.cross_patch(
        vlm(), [mv.Swap(*red_and_blue(), ("red",), ("blue",))], max_new_tokens=2
    ),
    "modality_gap": lambda: mv.modality_gap(
        vlm(), [entity()], identify=mv.Ask("who is this ?"), answer=mv.Ask()
    ),
    "mme": yes_or_no,
    "token_ablation": lost_answers,
    "context_accuracy": by_context,
    "logit_lens": lambda: mv.logit_lens(vlm(), count(), topk=3),
    "object_hit_rate": hits,
    "object_lens": lambda: mv.object_lens(vlm(), [item(QUESTION)]),
    "answer_track": lambda: mv.answer_track(
        vlm(), count(), {"one": "one", "two": "two"}
    ),
    "attention_fraction": lambda: mv.attention_fraction(vlm(), count()),
    "pool_fractions": lambda: mv.pool_fractions([made("attention_fraction")] * 2),
    "attention_map": lambda: mv.attention_map(vlm(), count()),
    "attention_rollout": lambda: mv.attention_rollout(vlm(), count()),
    "localization": lambda: mv.localization(made("attention_map"), SCENE.mask(0)),
    "localization_accuracy": while_naming,
    "attention_patterns": lambda: mv.attention_patterns(vlm(), count(), layers=[0, 3]),
    "discover": lambda: mv.discover(vlm(), [pair()], size=20, top=30, progress=False),
    "faithfulness": lambda: mv.faithfulness(vlm(), [pair()], made("discover")),
    "completeness": lambda: mv.completeness(vlm(), [pair()], made("discover")),
    "minimality": lambda: mv.minimality(vlm(), [pair()], made("discover")),
    "random_baseline": lambda: mv.random_baseline(
        vlm(), [pair()], made("discover"), n=3
    ),
    "circuit_overlap": two_circuits,
    "flow_graph": flows,
}
"""Public name of an analysis -> a small result of it."""


@cache
def made(analysis):
    return MADE[analysis]()
