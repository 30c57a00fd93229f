"""`mechvlm lens`: what each cell of the image would say at each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mechvlm.analyses.logit_lens import answer_track, logit_lens, object_hit_rate
from mechvlm.axes import Labelled, save_result
from mechvlm.cli.asked import Asked, asked, case_for
from mechvlm.cli.files import check_out, write_all
from mechvlm.cli.given import Given, Output, Which
from mechvlm.cli.told import Told, percent
from mechvlm.layout import Positions
from mechvlm.models.pieces import first_pieces, spelled
from mechvlm.viz import lens as pictured
from mechvlm.viz.labels import shown

__all__ = ["lens"]

_COMMON = 3
"""Most frequent words of a layer that are told."""


def lens(
    which: Which, given: Given, output: Output, *, word: str | None, topk: int
) -> Told:
    """Read every cell at every layer, write the words, and say where one is named."""
    check_out(output.out)
    case = case_for(which, given, "image", "question")
    one = asked(which, case, quiet=output.quiet)
    sought = word or case.thing or None
    words = () if sought is None else _counting_as(one, sought)
    where = _answered(one)
    read = logit_lens(one.vlm, one.prompt, topk=topk, progress=output.progress)
    named = {
        name: object_hit_rate(read, words, at, topk=topk)
        for name, at in _regions(one).items()
        if words
    }
    common = _common({int(h["layer"]): h.values for h in read["word"][:, :, 0]})
    figure = pictured(read, case.image, outline=case.outline, words=words)
    files = {
        "lens.nc": lambda path: save_result(read, path),
        "lens.html": figure.save,
        "lens.png": figure.save,
    }
    found = _sentence(_spoken(sought, words), topk, named)
    return Told(
        "lens",
        [f"question   {case.question}", "", *_table(common), "", *found, *where],
        {
            **one.facts,
            "object": sought,
            "topk": topk,
            "norm": read.attrs["norm"],
            "words": [{"layer": at, "most_said": said} for at, said in common.items()],
            "named": {name: rate.values.tolist() for name, rate in named.items()},
            "found": " ".join((*found, *where)),
            "n": int(read["word"][:, :, 0].size),
            "units": "share of positions",
            "paper": read.attrs["paper"],
        },
        write_all(output.out, files, quiet=output.quiet),
    )


def _counting_as(one: Asked, word: str) -> tuple[str, ...] | tuple[int, ...]:
    """A word as a token shows it whole, or else the pieces that it begins with."""
    return (word,) if spelled(one.vlm, word) else first_pieces(one.vlm, word)


def _spoken(word: str | None, words: tuple[str, ...] | tuple[int, ...]) -> str:
    """What is looked for, as a sentence calls it; "" where nothing is."""
    if word is None:
        return ""
    return f"“{word}”" if word in words else f"the beginning of “{word}”"


def _regions(one: Asked) -> dict[str, Positions]:
    """Where a word is looked for: the image, and of a known box object and rest."""
    layout = one.prompt.layout
    if one.case.outline is None:
        return {"image": layout["image"]}
    thing = layout.region(one.case.outline)
    rest = layout["image"] - thing
    return {"object": thing} | ({"background": rest} if rest else {})


def _common(said: Mapping[int, Iterable[str]]) -> dict[int, list[tuple[str, int]]]:
    """The words that most cells say, with the number of cells, by layer."""
    return {
        layer: Counter(word.strip() for word in map(str, words)).most_common(_COMMON)
        for layer, words in said.items()
    }


def _table(common: Mapping[int, list[tuple[str, int]]]) -> list[str]:
    """What the cells say, a layer a line."""
    return ["layer  said by most cells"] + [
        f"{layer:>5}  " + ", ".join(f"{shown(word)} ({n})" for word, n in said)
        for layer, said in common.items()
    ]


def _sentence(sought: str, topk: int, named: Mapping[str, Labelled]) -> list[str]:
    """Where the word is named, in one plain sentence."""
    if not sought:
        return []
    where, rate = next(iter(named.items()))
    best, among = int(rate.attrs["best_layer"]), f"its {topk} best words"
    if best < 0:
        return [f"No cell of the {where} has {sought} among {among} at any layer."]
    shares = f"{percent(float(rate.sel(layer=best)))} of the {where}'s cells"
    if "background" in named:
        rest = float(named["background"].sel(layer=best))
        shares += f" and {percent(rest)} of the background's"
    return [f"At layer {best}, {shares} have {sought} among {among}."]


def _answered(one: Asked) -> list[str]:
    """From which layer on the last position says the answer, where one is given."""
    answer = one.case.answer
    if not answer:
        return []
    track = answer_track(one.vlm, one.prompt, {answer: answer})
    ranks = track["rank"].sel(answer=answer).values.tolist()
    behind = [layer for layer, rank in enumerate(ranks) if rank > 0]
    since = behind[-1] + 1 if behind else 0
    if since == len(ranks):
        return [f"The model does not answer “{answer}”: {ranks[-1]} words are above."]
    return [f"The last position says “{answer}” from layer {since} on."]
