"""Put what circuits the demo has between two markers of the README.

python docs/circuits.py --run      # find and judge again (minutes), keep, write
python docs/circuits.py            # write what was kept
python docs/circuits.py --check    # fail if the README says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, permutations
from pathlib import Path
from typing import Any

import mechvlm as mv

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
KEPT = HERE / "circuits.json"
START, END = "<!-- circuits -->\n", "<!-- end of circuits -->\n"

N_HEADS, N_EDGES = 4, 100
N_FOUND_ON, N_JUDGED_ON, N_MEAN_OF = 8, 20, 60
N_RANDOM = 100
RELATION = "city"


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
    for i, (one, other) in enumerate(permutations(names, 2)):
        answer, foil = (scenes.fact(name, RELATION) for name in (one, other))
        if i % 7 or answer == foil:  # spread over all entities
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
    vlm: mv.HookedVLM, pairs: Sequence[mv.Pair], mean: mv.Values
) -> tuple[mv.Circuit, mv.Circuit]:
    """The heads that explain most, and the best edges among them."""
    heads = mv.discover_heads(vlm, pairs, N_HEADS, ablation=mean, top=None)
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
        random = mv.random_baseline(vlm, asked, circuit, n=N_RANDOM, ablation=mean)
        told[name] = {
            "faithfulness": float(result["faithfulness"][0]),
            "low": float(result["faithfulness_low"][0]),
            "high": float(result["faithfulness_high"][0]),
            "without": float(result["without"][0]),
            "random_best": float(random["faithfulness"].max()),
            "random_mean": float(random["faithfulness"].mean()),
            "beaten": float(random.attrs["beaten"]),
            "p": float(random.attrs["p"]),
        }
    return told


def color_question(vlm: mv.HookedVLM) -> dict[str, Any]:
    """The circuit of the colour question, judged on scenes it was not found on."""
    drawn = colors(vlm, 0)
    on, by, others = (
        list(islice(drawn, n)) for n in (N_FOUND_ON, N_JUDGED_ON, N_MEAN_OF)
    )
    mean = mean_of(vlm, others)
    heads, circuit = found(vlm, on, mean)
    return {
        "model_edges": n_edges(vlm, on[0]),
        "gains": heads.about["gains"],
        "all edges": judged(vlm, by, heads, mean),
        "best edges": judged(vlm, by, circuit, mean),
    }


def n_edges(vlm: mv.HookedVLM, pair: mv.Pair) -> int:
    """Edges of the whole model."""
    return len(mv.Circuit.whole(mv.Shape.of(vlm.cfg), pair.groups))


def entity_question(vlm: mv.HookedVLM) -> dict[str, Any]:
    """One question about entities, asked by name and by picture."""
    told: dict[str, Any] = {}
    circuits, asked, means = {}, {}, {}
    for name, named in (("text", True), ("image", False)):
        drawn = entities(vlm, named=named)
        on, by = (list(islice(drawn, n)) for n in (N_FOUND_ON, N_JUDGED_ON))
        means[name], asked[name] = mean_of(vlm, [*on, *by]), by
        heads, circuits[name] = found(vlm, on, means[name])
        told[name] = judged(vlm, by, heads, means[name])
    overlap = mv.circuit_overlap(circuits["text"], circuits["image"])
    told["overlap"] = {
        part: {
            what: float(overlap[what].sel(part=part))
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


def rewired(circuit: mv.Circuit, groups: Iterable[str]) -> mv.Circuit:
    """A circuit's heads with all MLPs, from other token groups on."""
    tokens = [mv.Node.tokens(group) for group in groups]
    nodes = [*tokens, *circuit.of_kind("head"), *circuit.shape.mlps]
    return mv.Circuit.among(nodes, circuit.shape)


def measured() -> None:
    """Find, judge and keep."""
    vlm = mv.load("demo")
    told = {
        "heads": len(mv.Shape.of(vlm.cfg).heads),
        "color": color_question(vlm),
        "entity": entity_question(vlm),
    }
    KEPT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


# -- the section ---------------------------------------------------------------------

ABOUT = """\
Found in the demo on {found} pairs, and judged on {judged} others, with all else ablated
by its mean over prompts (`docs/circuits.py --run`). Kept is the share of the gap
between the whole model (100 %) and everything ablated (0 %), of the right answer's
probability and of its log-odds against the foil. The model has {model_heads} heads and
{model_edges:,} edges.

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
        f" edges (chance {edges['chance']:.0f}); their heads' spread over the depth is"
        f" {percent(heads['alike'])} alike. Given each other's heads, with every edge"
        " among them, they keep"
        f" {exchanged['heads of text, asked by image']} (the text's heads, asked by"
        f" picture) and {exchanged['heads of image, asked by text']} (the picture's"
        " heads, asked by name) of the probability.\n"
    )


def section() -> str:
    """What was found, as a section of the README."""
    told: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    color, entity = told["color"], told["entity"]
    about = ABOUT.format(
        found=N_FOUND_ON,
        judged=N_JUDGED_ON,
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


def main() -> None:
    """Write the section, or compare it with what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="find and judge first")
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    if args.run:
        measured()
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    wanted = f"{before}{START}\n{section()}\n{END}{after}"
    if args.check:
        if wanted != text:
            sys.exit("the README's circuits are not those of docs/circuits.json")
        return
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
