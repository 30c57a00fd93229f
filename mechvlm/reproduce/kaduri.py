"""Kaduri et al. 2024: how a description is made of an image, and what suffices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr

from mechvlm.analyses.attention_flow import (
    attention_fraction,
    localization_accuracy,
    pool_fractions,
)
from mechvlm.analyses.caption_knockout import caption_knockout
from mechvlm.analyses.compressed_context import context_accuracy, context_answerer
from mechvlm.analyses.mme import mme
from mechvlm.datasets import mme as mme_folder
from mechvlm.datasets import pictures
from mechvlm.errors import MetricError
from mechvlm.items import Item
from mechvlm.judges import ObjectListJudge
from mechvlm.judges.verdict import Judge
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.readings import Reading, generative, vqa
from mechvlm.reproduce.finding import Claim, Finding, Row
from mechvlm.reproduce.material import DESCRIBE, asked_twice, called_things, items
from mechvlm.reproduce.shapes import beyond, columns, stacked, titled
from mechvlm.reproduce.study import Study
from mechvlm.statistics import mean_of
from mechvlm.viz import bars, lines

__all__ = ["KADURI", "Descriptions"]

SEED = 43
KEEPS = (0.5, 0.25, 0.1, 0.05)
ENOUGH = 0.25
"""Largest share of the image tokens that counts as a compressed context."""

NEARLY = 0.9
"""Share of the naive accuracy that a compressed context must keep."""

CHANCE = 0.5
"""Share of yes-or-no questions that tossing a coin answers right."""

FLOWS = ("image->generated", "image->prompt_text", "image->both")


@dataclass(frozen=True, eq=False)
class Descriptions:
    """Pictures to describe, and questions about them.

    Attributes:
        items: One for each picture, with its objects where they are known.
        describe: How a description is asked for.
        judge: Compares two descriptions.
        questions: Questions about pictures, two or more of each, with answers.
        pairs: Yes-or-no questions in MME's form, two about each picture.
    """

    items: Sequence[Item]
    describe: Reading
    judge: Judge
    questions: Sequence[Item]
    pairs: Mapping[str, Sequence[Item]]


def of_scenes(n: int) -> Descriptions:
    """Synthetic scenes, and questions of colour and presence about them."""
    judge = ObjectListJudge(called_things())
    return Descriptions(
        items(n, SEED),
        generative(DESCRIBE, max_new_tokens=24),
        judge,
        asked_twice(n, SEED, kinds=("color", "shape")),
        {"existence": asked_twice(n, SEED, kinds=("exists",))},
    )


def of_folder(folder: Path, n: int) -> Descriptions:
    """A folder of pictures; `mme/` in it holds questions in MME's layout."""
    found = pictures.read(folder, limit=n)
    asked = folder / "mme"
    pairs = mme_folder.read(asked) if asked.is_dir() else {}
    few = {name: of[: 2 * n] for name, of in pairs.items()}
    every = [item for of in few.values() for item in of]
    return Descriptions(found, generative(), ObjectListJudge(), every, few)


@dataclass(frozen=True, eq=False)
class Session:
    """Pictures before a model."""

    vlm: HookedVLM
    shown: Descriptions

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every picture with the request to describe it."""
        ask = self.shown.describe.question
        return [self.vlm.prompt(ask(item), item.image) for item in self.shown.items]


def _check_asked(asked: Sized) -> None:
    """Refuse to answer questions of which there is none.

    Raises:
        MetricError: There is none.
    """
    if not asked:
        raise MetricError("no questions are given (a folder mme/ beside the pictures).")


def _fractions(session: Session) -> Finding:
    vlm, n_new = session.vlm, session.shown.describe.max_new_tokens
    said = [vlm.generate(prompt, max_new_tokens=n_new) for prompt in session.prompts]
    pooled = {
        name: pool_fractions(
            [
                attention_fraction(
                    vlm,
                    prompt,
                    generation=made,
                    groups="paper",
                    rows="generated",
                    exclude=left_out,
                )
                for prompt, made in zip(session.prompts, said, strict=True)
            ]
        )
        for name, left_out in (("all", ()), ("without BOS", ("bos",)))
    }
    every, rest = pooled["all"], pooled["without BOS"]
    series = stacked(
        {
            str(group): columns(every, "prompt_mean", group=str(group))
            for group in every["group"].values
        },
        "group",
        "Attention of generated tokens",
    )
    text, image = (float(every["mean"].sel(group=g).mean()) for g in ("text", "image"))
    without = float(rest["mean"].sel(group="text").mean())
    return Finding(
        f"text takes {100 * text:.0f} % of the attention, the image"
        f" {100 * image:.0f} %; without the beginning of sequence text takes"
        f" {100 * without:.0f} % of what is left.",
        text > image,
        _group_rows(pooled),
        {f"attention_fraction_{k.replace(' ', '_')}": v for k, v in pooled.items()},
        lines(series.assign_attrs(titled("Attention of generated tokens", every))),
    )


def _captions(session: Session) -> Finding:
    vlm, shown = session.vlm, session.shown
    n_layers = vlm.cfg.n_layers
    found = caption_knockout(
        vlm,
        session.prompts,
        judge=shown.judge,
        bands={"middle": range(n_layers // 4, n_layers // 2)},
        max_new_tokens=shown.describe.max_new_tokens,
    )
    f1 = found.sel(measure="f1")
    series = _caption_lines(f1)
    generated, text, both = (float(series.sel(flow=flow)[0]) for flow in FLOWS)
    apart = float(series["high"].sel(flow=FLOWS[1])[0]) < float(
        series["low"].sel(flow=FLOWS[0])[0]
    )
    inside, outside = (
        float(f1["mean"].sel(flow="image->both", cut=cut))
        for cut in ("in middle", "not in middle")
    )
    return Finding(
        f"F1 with the flow cut in all layers: generated {generated:.2f}, prompt text"
        f" {text:.2f}, both {both:.2f}; with both cut in all but layers {n_layers // 4}"
        f" to {n_layers // 2 - 1}: {outside:.2f}, in these alone: {inside:.2f}."
        f" {_ORDERED[apart and both <= text]}",
        apart and both <= text,
        _caption_rows(f1),
        {"caption_knockout": found},
        lines(series.assign_attrs(titled("Objects that a description keeps", found))),
    )


def _caption_lines(f1: xr.Dataset) -> xr.DataArray:
    """F1 of each flow over the first layer that is cut."""
    starts = [str(cut) for cut in f1["cut"].values if str(cut).startswith("from ")]
    here = f1.sel(cut=starts).rename(cut="cut from layer")
    here["cut from layer"] = [start.removeprefix("from ") for start in starts]
    each = {
        flow: of["mean"].assign_coords(low=of["low"], high=of["high"])
        for flow in FLOWS
        for of in [here.sel(flow=flow)]
    }
    return stacked(each, "flow", "Objects of the own description that are kept")


def _located(session: Session) -> Finding:
    vlm, shown = session.vlm, session.shown
    if not any(item.objects for item in shown.items):
        return Finding("where objects are is not known of these pictures.", None)
    found = localization_accuracy(
        vlm, shown.items, reading=shown.describe, objects="named"
    )
    series = stacked({"peak on the object": columns(found, "accuracy")}, "read", "hits")
    better = found["hit"] - found["chance"]
    best = int(better[::2].mean("object").values.argmax())
    tested = better[1::2].isel(layer=best).values
    over = mean_of(tested[np.isfinite(tested)])
    chance = float(found["chance"].mean())
    rows: list[Row] = [("layer", "share hit", "low", "high")]
    rows += [
        (
            int(layer),
            *(float(found[f"accuracy{end}"].sel(layer=layer)) for end in _ENDS),
        )
        for layer in found["layer"].values
    ]
    return Finding(
        f"at layer {int(found['layer'][best])}, chosen on every second of"
        f" {found.sizes['object']} objects that are named, the peak of attention lies"
        f" on the others {100 * over.mean:.0f} points ({100 * over.low:.0f} to"
        f" {100 * over.high:.0f}) more often than chance ({100 * chance:.0f} %).",
        beyond(over.low),
        rows,
        {"localization": found},
        lines(series.assign_attrs(titled("Attention that peaks on its object", found))),
    )


def _compressed(session: Session) -> Finding:
    vlm, shown = session.vlm, session.shown
    _check_asked(shown.questions)
    found = context_accuracy(
        vlm,
        shown.questions,
        keeps=KEEPS,
        selects=("generated", "last"),
        describe=shown.describe.question(shown.items[0]),
        reading=vqa(max_new_tokens=3),
    )
    naive = float(found["accuracy"].sel(arm="naive"))
    small = (found["strategy"] == "query + image") & (found["keep"] <= ENOUGH)
    small &= found["select"] != "random"
    arms = found["accuracy"].where(small, drop=True)
    best = arms[int(arms.values.argmax())]
    arm = str(best["arm"].values)
    share = float(best) / naive if naive else np.nan
    fixed = f"query + image, {ENOUGH:.4g} generated"
    kept, low, alone = (
        float(found[name].sel(arm=of))
        for name, of in (
            ("accuracy", fixed),
            ("accuracy_low", fixed),
            ("accuracy_high", "query only"),
        )
    )
    control = found["minus_random"].sel(arm=arm)
    times, held = (
        float(found[name].sel(arm="naive").mean() / found[name].sel(arm=arm).mean())
        for name in ("median_seconds", "bytes")
    )
    return Finding(
        f"the best context of at most {100 * ENOUGH:.0f} % of the image tokens ({arm})"
        f" keeps {100 * share:.0f} % of the naive accuracy ({naive:.2f}),"
        f" {float(control):+.2f} against as many random tokens; it holds {held:.1f}"
        f" times fewer bytes and answers {times:.1f} times as fast, once it is made."
        f" As the paper chooses them, {100 * ENOUGH:.0f} % keep {kept:.2f}; the text"
        f" alone keeps {float(found['accuracy'].sel(arm='query only')):.2f}.",
        (kept >= NEARLY * naive and low > alone) if naive else None,
        _context_rows(found),
        {"compressed_context": found},
        bars(
            columns(found, "accuracy").assign_attrs(
                titled("Questions answered right", found)
            )
        ),
    )


def _scored(session: Session) -> Finding:
    vlm, shown = session.vlm, session.shown
    _check_asked(shown.pairs)
    describe = shown.describe.question(shown.items[0])
    short = context_answerer(vlm, keep=ENOUGH, describe=describe, max_new_tokens=3)
    scores = {
        "naive": mme(vlm, shown.pairs, max_new_tokens=3),
        "query + image": mme(vlm, shown.pairs, answerer=short),
    }
    naive, kept = (each.attrs["mean_acc"] for each in scores.values())
    able = bool((scores["naive"]["acc_low"] > CHANCE).any())
    rows: list[Row] = [("answered", "subset", "ACC", "ACC+", "pictures", "unparsed")]
    rows += [
        (
            name,
            str(subset),
            *(float(of[x]) for x in ("acc", "acc_plus", "n_images", "unparsed")),
        )
        for name, each in scores.items()
        for subset in each["subset"].values
        for of in [each.sel(subset=subset)]
    ]
    return Finding(
        f"mean ACC {naive:.2f} with the picture, {kept:.2f} from {100 * ENOUGH:.0f} %"
        " of the image tokens.",
        kept >= NEARLY * naive if able else None,
        rows,
        {f"mme_{name.replace(' + ', '_')}": each for name, each in scores.items()},
    )


_ORDERED = {
    True: "They are ordered as in the paper.",
    False: "They are not ordered as in the paper: prompt text costs no more, beyond"
    " its interval, than generated tokens do.",
}
_ENDS = ("", "_low", "_high")


def _group_rows(pooled: Mapping[str, xr.Dataset]) -> list[Row]:
    rows: list[Row] = [("sources", "group", "layer", "mean", "low", "high", "std")]
    names = ("prompt_mean", "prompt_mean_low", "prompt_mean_high", "std")
    for sources, of in pooled.items():
        for group in of["group"].values:
            for layer in of["layer"].values:
                here = of.sel(group=group, layer=layer)
                numbers = [float(here[name]) for name in names]
                rows.append((sources, str(group), int(layer), *numbers))
    return rows


def _caption_rows(f1: xr.Dataset) -> list[Row]:
    rows: list[Row] = [("flow", "cut", "F1", "low", "high", "n")]
    for flow in f1["flow"].values:
        for cut in f1["cut"].values:
            here = f1.sel(flow=flow, cut=cut)
            ends = [float(here[name]) for name in ("mean", "low", "high", "n")]
            rows.append((str(flow), str(cut), *ends))
    return rows


def _context_rows(found: xr.Dataset) -> list[Row]:
    names = ("accuracy", "accuracy_low", "accuracy_high", "minus_naive", "minus_random")
    rows: list[Row] = [("arm", *names, "image tokens", "tokens", "bytes", "seconds")]
    for arm in found["arm"].values:
        here = found.sel(arm=arm)
        costs = [float(here[x].mean()) for x in ("image_tokens", "tokens", "bytes")]
        numbers = [float(here[name]) for name in names]
        rows.append((str(arm), *numbers, *costs, float(here["median_seconds"])))
    return rows


Measure = Callable[[Session], Finding]

_CLAIMS: dict[Claim, Measure] = {
    Claim(
        "attention_fraction",
        "Generated tokens attend to text more than to the image",
        "Attention of every generated token is shared out among image, prompt text and"
        " what was generated, by layer; with and without the beginning of sequence.",
        "attention of generated tokens by group and layer is its figure 1; its text"
        " group counts the beginning of sequence in, which takes attention as a sink"
        " (released code).",
    ): _fractions,
    Claim(
        "caption_knockout",
        "The question's tokens hold a summary of the image",
        "Descriptions are made with the image cut off from generated tokens, from the"
        " prompt's text, or both, and compared with the model's own by the objects that"
        " they name.",
        "F1 with the cut in all layers: generated about .38, prompt text about .00,"
        " both about .00; all but the middle layers: .76, .80, .72 (its figure). Middle"
        " layers matter most (abstract).",
    ): _captions,
    Claim(
        "localization",
        "A generated word attends to its object's place in the image",
        "Attention at the steps that choose an object's word is laid over the picture.",
        "tokens of an object attend strongly to its region in the image (abstract).",
    ): _located,
    Claim(
        "compressed_context",
        "The question's tokens and few image tokens answer new questions",
        "Of a description's run only the text's keys and values and the most attended"
        " image tokens of each layer are kept, and new questions asked of them.",
        "5 % of the image tokens and the query keep 96 % of the accuracy on MME (81.5"
        " of 84.8, its table).",
    ): _compressed,
    Claim(
        "mme",
        "Yes-or-no questions survive compression",
        "Two questions about each picture, asked with the picture and of a compressed"
        " context; ACC counts questions, ACC+ pictures with both right.",
        "ACC and ACC+ with the picture 84.8 and 70.6, from query and 5 % 81.5 and 64.5"
        " (its table).",
    ): _scored,
}

KADURI = Study(
    "kaduri",
    "arXiv:2411.17491",
    "What is in the image, and what a description needs of it",
    24,
    of_scenes,
    of_folder,
    Session,
    _CLAIMS,
)
