"""Put what circuits the demo has between two markers of the README.

python docs/circuits.py --run      # find and judge again (minutes), keep, write
python docs/circuits.py            # write what was kept
python docs/circuits.py --check    # fail if the README says something else
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, permutations
from math import isfinite
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from section import keep

import mechvlm as mv

KEPT = Path(__file__).parent / "circuits.json"

SETTINGS = {
    "heads": 4,
    "heads of an entity": 6,
    "edges": 100,
    "found on": 8,
    "judged on": 20,
    "mean of": 60,
    "random circuits": 100,
    "relation": "city",
}
"""What was measured; kept beside the numbers, and compared with them by --check."""

N_EDGES = SETTINGS["edges"]
PARTS = SETTINGS["found on"], SETTINGS["judged on"], SETTINGS["mean of"]
N_RANDOM = SETTINGS["random circuits"]
RELATION = SETTINGS["relation"]


# -- pairs ---------------------------------------------------------------------------


def told_apart(vlm: mv.HookedVLM, pair: mv.Pair) -> bool:
    """Whether the model prefers the right answer in both prompts."""
    clean, corrupted = (
        float(pair.metric(vlm(prompt)[:, -1]))
        for prompt in (pair.clean, pair.corrupted)
    )
    return corrupted < 0 < clean


def colors(vlm: mv.HookedVLM, first_seed: int) -> Iterator[mv.Pair]:
    """Scenes of which one thing changes its colour, asked for it."""
    for seed in count(first_seed):
        scene = mv.scenes.sample(seed=seed)
        try:
            twin = mv.scenes.counterfactual(scene, change="color", seed=seed)
        except mv.SceneError:
            continue
        pair = replace(mv.bind(vlm, twin.pair), id=str(seed))
        if told_apart(vlm, pair):
            yield pair


def entities(vlm: mv.HookedVLM, *, named: bool) -> Iterator[mv.Pair]:
    """Two entities of different cities, by name or by picture: where does it live?"""
    scenes = mv.scenes
    names = [name for name in scenes.NAMES if scenes.taught_by_picture(name, RELATION)]
    drawn = list(permutations(names, 2))
    np.random.default_rng(0).shuffle(drawn)
    for i, (one, other) in enumerate(drawn):
        answer, foil = (scenes.fact(name, RELATION) for name in (one, other))
        if answer == foil:
            continue
        metric = mv.logit_difference(vlm, answer, foil)
        asked = scenes.FACT_QUESTIONS[RELATION]
        if named:
            clean, corrupted = (vlm.prompt(asked.format(x)) for x in (one, other))
            at = mv.Positions.of(clean.tokens.index(one))
            groups = mv.groups_of(clean)
            groups = groups | {"query": groups["query"] - at, "entity": at}
        else:
            scene = scenes.sample(seed=i, n=0, entity=one)
            question = asked.format(scenes.IN_PICTURE)
            clean, corrupted = (
                vlm.prompt(question, each.image)
                for each in (scene, scene.renamed(0, other))
            )
            at = clean.layout.region(scene.mask(0))
            groups = mv.groups_of(clean, {"entity": at})
        pair = mv.Pair(clean, corrupted, metric, groups, id=f"{one}, {other}")
        if told_apart(vlm, pair):
            yield pair


def parted(drawn: Iterator[mv.Pair]) -> list[list[mv.Pair]]:
    """Pairs to look on, to judge by, and to take the mean of; none is in two parts."""
    parts = [list(islice(drawn, n)) for n in PARTS]
    if [len(part) for part in parts] != list(PARTS):
        raise RuntimeError(f"{[len(p) for p in parts]} pairs; wanted {PARTS}")
    return parts


# -- findings ------------------------------------------------------------------------


def in_probability(vlm: mv.HookedVLM, pairs: Sequence[mv.Pair]) -> list[mv.Pair]:
    """The same pairs, read by the probability of the right answer."""
    return [
        replace(pair, metric=mv.probability(vlm, pair.metric.tokens[0]))
        for pair in pairs
    ]


def mean_of(vlm: mv.HookedVLM, pairs: Sequence[mv.Pair]) -> mv.Values:
    """What everything gives on average over the prompts of some pairs."""
    return mv.mean_run(vlm, [x for pair in pairs for x in (pair.clean, pair.corrupted)])


def found(
    vlm: mv.HookedVLM, pairs: Sequence[mv.Pair], n_heads: int, mean: mv.Values
) -> tuple[mv.Circuit, mv.Circuit]:
    """The heads that explain most, and the best edges among them."""
    heads = mv.discover_heads(vlm, pairs, n_heads, ablation=mean, top=None)
    within = {"within": heads, "size": N_EDGES, "threshold": 0}
    return heads, mv.discover(vlm, pairs, ablation=mean, **within)


def judged(
    vlm: mv.HookedVLM, pairs: Sequence[mv.Pair], circuit: mv.Circuit, mean: mv.Values
) -> dict[str, Any]:
    """What a circuit and as many random parts explain of probability and log-odds."""
    told: dict[str, Any] = {
        "heads": [str(node) for node in circuit.of_kind("head")],
        "share_of_heads": circuit.share_of_heads,
        "edges": len(circuit),
        "pairs": len(pairs),
    }
    readings = {"log-odds": pairs, "probability": in_probability(vlm, pairs)}
    for name, asked in readings.items():
        result = mv.faithfulness(vlm, asked, circuit, ablation=mean)
        drawn = {"n": N_RANDOM, "ablation": mean}
        random = mv.random_baseline(vlm, asked, circuit, **drawn)
        same = mv.random_baseline(vlm, asked, circuit, nodes="same", **drawn)
        told[name] = {
            "faithfulness": float(result["faithfulness"][0]),
            "low": float(result["faithfulness_low"][0]),
            "high": float(result["faithfulness_high"][0]),
            "without": float(result["without"][0]),
            "random_best": float(random["faithfulness"].max()),
            "random_mean": float(random["faithfulness"].mean()),
            "beaten": float(random.attrs["beaten"]),
            "p": float(random.attrs["p"]),
            "same_nodes_best": float(same["faithfulness"].max()),
        }
    return told


def color_question(vlm: mv.HookedVLM) -> dict[str, Any]:
    """The circuit of the colour question, judged on scenes it was not found on."""
    drawn = colors(vlm, 0)
    on, by, others = parted(drawn)
    mean = mean_of(vlm, others)
    heads, circuit = found(vlm, on, SETTINGS["heads"], mean)
    return {
        "model_edges": n_edges(vlm, on[0]),
        "gains": heads.about["gains"],
        "all edges": judged(vlm, by, heads, mean),
        "best edges": judged(vlm, by, circuit, mean),
    }


def n_edges(vlm: mv.HookedVLM, pair: mv.Pair) -> int:
    """Edges of the whole model."""
    # One group holds the last position; the others have no edge to the logits.
    return mv.Shape.of(vlm.cfg).n_edges(len(pair.groups)) - (len(pair.groups) - 1)


def entity_question(vlm: mv.HookedVLM) -> dict[str, Any]:
    """One question about entities, asked by name and by picture."""
    told: dict[str, Any] = {}
    circuits, asked, means = {}, {}, {}
    for name, named in (("text", True), ("image", False)):
        drawn = entities(vlm, named=named)
        on, by, others = parted(drawn)
        means[name], asked[name] = mean_of(vlm, others), by
        n_heads = SETTINGS["heads of an entity"]
        heads, circuits[name] = found(vlm, on, n_heads, means[name])
        told[name] = judged(vlm, by, heads, means[name])
    overlap = mv.circuit_overlap(circuits["text"], circuits["image"])
    told["overlap"] = {
        part: {
            what: number(overlap[what].sel(part=part))
            for what in ("first", "second", "shared", "jaccard", "chance", "p", "alike")
        }
        for part in ("heads", "mlps", "edges")
    }
    told["exchanged"] = {
        f"heads of {ours}, asked by {theirs}": float(
            mv.faithfulness(
                vlm,
                in_probability(vlm, asked[theirs]),
                rewired(circuits[ours], asked[theirs][0].groups),
                ablation=means[theirs],
            )["faithfulness"][0]
        )
        for ours, theirs in permutations(("text", "image"))
    }
    return told


def number(value: SupportsFloat) -> float | None:
    """A number as JSON has it: there is none for what is not one."""
    found = float(value)
    return found if isfinite(found) else None


def rewired(circuit: mv.Circuit, groups: Iterable[str]) -> mv.Circuit:
    """A circuit's heads with all MLPs, from other token groups on."""
    tokens = [mv.Node.tokens(group) for group in groups]
    nodes = [*tokens, *circuit.of_kind("head"), *circuit.shape.mlps]
    return mv.Circuit.among(nodes, circuit.shape)


def measured() -> None:
    """Find, judge and keep."""
    vlm = mv.load("demo")
    told = {
        "settings": SETTINGS,
        "heads": len(mv.Shape.of(vlm.cfg).heads),
        "color": color_question(vlm),
        "entity": entity_question(vlm),
    }
    KEPT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


# -- the section ---------------------------------------------------------------------

ABOUT = """\
Found in the demo by {found} pairs that it answers right, and judged by {judged} other
such pairs, with all else ablated by its mean over {mean} prompts
(`docs/circuits.py --run`). Heads and edges are chosen by log-odds of the answer against
the foil. Kept is the share of the gap between the whole model (100 %) and everything
ablated (0 %). The model has {model_heads} heads and {model_edges:,} edges. A random
circuit has as many heads and edges.

| {columns} |
|---|---|--:|--:|--:|--:|--:|
"""
COLUMNS = (
    "question",
    "heads",
    "edges",
    "probability kept",
    "log-odds kept",
    "probability without it",
    f"best of {N_RANDOM} random circuits",
)


def percent(x: float) -> str:
    """A share in whole percent."""
    return f"{100 * x:.0f} %"


def row(question: str, told: dict[str, Any]) -> str:
    """One circuit."""
    p, odds = told["probability"], told["log-odds"]
    cells = [
        question,
        f"{', '.join(told['heads'])} ({percent(told['share_of_heads'])})",
        str(told["edges"]),
        f"{percent(p['faithfulness'])} ({100 * p['low']:.0f} to {100 * p['high']:.0f})",
        percent(odds["faithfulness"]),
        percent(p["without"]),
        percent(p["random_best"]),
    ]
    return f"| {' | '.join(cells)} |"


def compared(told: dict[str, Any]) -> str:
    """The text and the image version of one question, in words."""
    heads, edges = told["overlap"]["heads"], told["overlap"]["edges"]
    exchanged = {name: percent(x) for name, x in told["exchanged"].items()}
    return (
        "\nThe entity is named in one version of the question and shown in the other."
        f" Their circuits share {heads['shared']:.0f} of {heads['first']:.0f} and"
        f" {heads['second']:.0f} heads (chance {heads['chance']:.1f}) and"
        f" {edges['shared']:.0f} of {edges['first']:.0f} and {edges['second']:.0f}"
        f" edges (by chance {edges['chance']:.0f}, given their heads); their heads'"
        " spread over the depth is"
        f" {percent(heads['alike'])} alike. Given each other's heads, with every edge"
        " among them, they keep"
        f" {exchanged['heads of text, asked by image']} (the text's heads, asked by"
        f" picture) and {exchanged['heads of image, asked by text']} (the picture's"
        " heads, asked by name) of the probability.\n"
    )


def section() -> str:
    """What was found, as a section of the README."""
    told: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    if told["settings"] != SETTINGS:
        raise SystemExit("docs/circuits.json was measured with other settings")
    color, entity = told["color"], told["entity"]
    about = ABOUT.format(
        found=PARTS[0],
        judged=PARTS[1],
        mean=2 * PARTS[2],
        columns=" | ".join(COLUMNS),
        model_heads=told["heads"],
        model_edges=color["model_edges"],
    )
    rows = [
        row("what color is the ... ?", color["all edges"]),
        row("the same, best edges", color["best edges"]),
        row("where does ... live ?, by name", entity["text"]),
        row("where does this character live ?", entity["image"]),
    ]
    return about + "\n".join(rows) + "\n" + compared(entity)


if __name__ == "__main__":
    keep(__doc__, "circuits", measure=measured, write=section)
