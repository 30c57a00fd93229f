"""The table of rules, one for each kind of result; the first that knows it shows it."""

from __future__ import annotations

from mechvlm.report.rules import (
    circuits,
    counted,
    cuts,
    lenses,
    patches,
    seeing,
)
from mechvlm.report.shown import Rule

__all__ = ["RULES"]

CHANGE = "change of the answer's probability"

RULES: tuple[Rule, ...] = (
    Rule(
        "activation_patching", patches.recovered,
        name="recovery", dims=("layer",), attrs={"site": None, "direction": None},
    ),
    Rule(
        "attribution_patching", patches.recovered,
        name="estimated recovery", dims=("layer",),
    ),
    Rule("path_patching", patches.paths, name="recovery", dims=("receiver",)),
    Rule(
        "integrated_gradients, gradient_x_input", patches.scored,
        name="attribution", dims=("position",), attrs={"method": None},
        heading="Attribution to tokens",
    ),
    Rule(
        "screen_then_verify", patches.screened,
        variables=("score", "effect"), dims=("candidate",),
        heading="Screened, then verified",
    ),
    Rule(
        "knockout_windows", cuts.cut_by_window,
        name=CHANGE, attrs={"mode": None}, heading="Attention knockout",
    ),
    Rule(
        "knockout_accuracy", cuts.cut_in_accuracy,
        variables=("accuracy", "control", "n"), dims=("cut", "window"),
        heading="Attention knockout over items",
    ),
    Rule(
        "caption_knockout, rejudge", cuts.cut_while_describing,
        variables=("mean", "low", "high"), dims=("measure", "flow", "cut"),
        heading="Descriptions with the image cut off",
    ),
    Rule(
        "cumulative_knockout", cuts.cut_more_and_more,
        variables=("rate",), dims=("n_cut",),
    ),
    Rule(
        "back_patch", cuts.put_back,
        variables=("rate",), dims=("source", "target"), heading="Back-patching",
    ),
    Rule(
        "freeze", cuts.held,
        variables=("rate",), dims=("source",), heading="Frozen image",
    ),
    Rule(
        "cross_patch", cuts.exchanged,
        variables=("original", "injected", "critical_layer"), dims=("layer",),
        heading="Cross patching",
    ),
    Rule("modality_gap", counted.told_both_ways, variables=("gap", "mean_by_name")),
    Rule(
        "mme", counted.scored_by_subset,
        variables=("acc", "acc_plus"), heading="MME",
    ),
    Rule(
        "token_ablation", counted.ablated,
        variables=("decrease", "control"), dims=("reading", "set"),
    ),
    Rule(
        "context_accuracy", counted.compressed,
        variables=("accuracy", "minus_naive"), dims=("arm",),
        heading="Answers from a compressed context",
    ),
    Rule(
        "logit_lens", lenses.read,
        variables=("word", "probability"), dims=("layer", "position", "k"),
    ),
    Rule(
        "object_hit_rate", lenses.hit,
        name="share of positions that name it", dims=("layer",), attrs={"words": None},
        heading="Tokens that name an object",
    ),
    Rule(
        "object_lens", lenses.named_by_layer,
        variables=("hit_rate", "control_rate"), dims=("object", "layer"),
        heading="Objects in the logit lens",
    ),
    Rule(
        "answer_track", lenses.tracked,
        variables=("rank", "probability"), dims=("answer", "layer"),
        heading="Answers by layer",
    ),
    Rule(
        "attention_fraction", seeing.shared,
        variables=("fraction", "kept"), dims=("layer", "row", "group"),
    ),
    Rule(
        "pool_fractions", seeing.pooled,
        variables=("prompt_mean", "mean"), dims=("group", "layer"),
        heading="Attention fractions over prompts",
    ),
    Rule(
        "attention_map", seeing.mapped,
        name="attention to the image", dims=("layer", "row", "grid_row", "grid_col"),
    ),
    Rule(
        "attention_rollout", seeing.rolled,
        variables=("rollout",), dims=("layer", "row", "source"),
    ),
    Rule(
        "localization", seeing.located,
        variables=("hit", "image_mass"), dims=("layer", "row"),
        heading="Attention on an object",
    ),
    Rule(
        "localization_accuracy", seeing.found_where_named,
        variables=("accuracy", "accuracy_near"), dims=("layer",),
        heading="Attention while naming",
    ),
    Rule(
        "attention_patterns", seeing.patterned,
        name="attention", dims=("layer", "head", "target", "source"),
    ),
    Rule(
        "faithfulness", circuits.explained,
        variables=("faithfulness", "without"), dims=("circuit",),
    ),
    Rule("completeness", circuits.missing, variables=("difference",), dims=("set",)),
    Rule("minimality", circuits.needed, variables=("loss",), dims=("part",)),
    Rule(
        "random_baseline", circuits.beaten,
        variables=("faithfulness",), dims=("draw",), attrs={"circuit": None},
        heading="Against random circuits",
    ),
    Rule(
        "circuit_overlap", circuits.overlapping,
        variables=("first", "second", "shared"), dims=("part",),
        heading="Two circuits compared",
    ),
    Rule(
        "flow_graph", circuits.flowing,
        variables=("effect", "excess", "beyond"), dims=("target", "source", "band"),
        heading="Flow between groups",
    ),
)  # fmt: skip
