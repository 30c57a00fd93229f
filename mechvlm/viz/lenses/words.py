"""What a logit lens says, with the word that is sought found in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechvlm.errors import ResultError
from mechvlm.viz.labels import Axis, axis, shown

__all__ = ["Said", "Words", "said_by", "without_image"]

Words: TypeAlias = Sequence[str] | Sequence[int]
"""What counts as naming the object: whole words as the token shows them, or ids."""

NEEDED = ("word", "token_id", "probability")
ABOVE = "tokens above"  # the unit of ranks that count from 0, as answer_track's do


@dataclass(frozen=True)
class Said:
    """A lens with every token of its top words stored once.

    Attributes:
        layers: The streams that were read.
        positions: Where.
        vocabulary: Token id -> the token made visible, of every token that is said.
        index: Place in the vocabulary of each top word.
        probability: Of each top word, of 1 over the model's vocabulary.
        sought: What the page calls the word that is sought; "" where none is.
        members: Places in the vocabulary that count as that word.
        ranks: The sought word's rank, 1 the best; 0 where it is not known, which is
            beyond the top words.
        exact: Whether the ranks were given, not read from the top words.
    """

    layers: Axis
    positions: Axis
    vocabulary: dict[int, str]
    index: Int[np.ndarray, "layer position k"]
    probability: Float[np.ndarray, "layer position k"]
    sought: str
    members: tuple[int, ...]
    ranks: Int[np.ndarray, "layer position"]
    exact: bool

    @property
    def k(self) -> int:
        """Top words of each cell."""
        return int(self.index.shape[2])

    @cached_property
    def deepest(self) -> int:
        """The rank that is drawn as paper."""
        return max(2, int(self.ranks.max())) if self.exact else self.k + 1

    @cached_property
    def share(self) -> Float[np.ndarray, "layer position"]:
        """How strongly each cell is tinted, 0 to 1.

        1 is rank 1 of the sought word and 0 the deepest one, in equal steps of the
        rank's logarithm; without a sought word, the best word's probability.
        """
        if not self.sought:
            return self.probability[:, :, 0] / (self.probability[:, :, 0].max() or 1)
        known = np.maximum(self.ranks, 1)
        return np.where(self.ranks > 0, 1 - np.log(known) / math.log(self.deepest), 0.0)

    @cached_property
    def best(self) -> tuple[int, int]:
        """Layer and position, as indices, of the strongest tint.

        Of several, the one whose sought word, or best word, is the most probable.
        """
        is_it = np.isin(self.index, self.members)
        own = np.where(is_it, self.probability, 0).max(axis=2)
        by = own if self.sought else self.probability[:, :, 0]
        leading = self.share >= self.share.max()
        at = int(np.where(leading, by, -1.0).argmax())
        return at // self.share.shape[1], at % self.share.shape[1]

    def word(self, layer: int, place: int, k: int = 0) -> str:
        """A top word, made visible."""
        return self.words[int(self.index[layer, place, k])]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary's words, in the order of `index`."""
        return tuple(self.vocabulary.values())


def said_by(
    lensed: xr.Dataset, words: Sequence[str | int], ranks: xr.DataArray | None
) -> Said:
    """A lens, and in it the word that is sought.

    Raises:
        ResultError: It is no lens, or the ranks are of other layers or positions.
    """
    lens = checked(lensed)
    ids = lens["token_id"].values
    unique, first, index = np.unique(ids, return_index=True, return_inverse=True)
    texts = lens["word"].values.ravel()[first]
    vocabulary = {
        int(token): shown(str(text)) for token, text in zip(unique, texts, strict=True)
    }
    given: tuple[str | int, ...] = tuple(words)
    if ranks is not None and not given and "token_id" in ranks.coords:
        given = tuple(np.ravel(ranks["token_id"].values).tolist())
    is_it = naming(vocabulary, given)
    index = index.reshape(ids.shape)
    return Said(
        axis(lens["probability"], "layer"),
        axis(lens["probability"], "position"),
        vocabulary,
        index,
        np.nan_to_num(np.asarray(lens["probability"].values, dtype=float)),
        name_of(given, vocabulary, ranks),
        tuple(np.flatnonzero(is_it).tolist()),
        within_top(index, is_it) if ranks is None else given_ranks(ranks, lens),
        ranks is not None,
    )


def checked(lensed: xr.Dataset) -> xr.Dataset:
    """A lens in the order (layer, position, k), best word first.

    Raises:
        ResultError: It is none, or an empty one.
    """
    missing = [name for name in NEEDED if name not in lensed]
    if missing:
        raise ResultError(
            f"a lens needs {', '.join(NEEDED)}; this Dataset lacks {missing} and has"
            f" {[str(name) for name in lensed]}. Give what mv.logit_lens returns."
        )
    dims = tuple(str(dim) for dim in lensed["word"].dims)
    if set(dims) != {"layer", "position", "k"}:
        raise ResultError(
            f"a lens is over (layer, position, k); this one's words are over {dims}."
            " Select ranges, which keep the dimension: lensed.sel(layer=[8])."
        )
    if lensed["word"].size == 0:
        raise ResultError(
            f"the lens is empty: {dict(lensed['word'].sizes)}. Usual cause: a selection"
            " that left no layer or position."
        )
    if not np.isfinite(lensed["probability"].values).any():
        raise ResultError("the lens holds no finite probability: nothing to draw.")
    return lensed[list(NEEDED)].transpose("layer", "position", "k")


def naming(
    vocabulary: dict[int, str], sought: Sequence[str | int]
) -> Bool[np.ndarray, " word"]:
    """Which tokens count as the word that is sought; case does not matter."""
    tokens = {int(each) for each in sought if not isinstance(each, str)}
    names = {shown(each).lower() for each in sought if isinstance(each, str)}
    return np.array(
        [token in tokens or text.lower() in names for token, text in vocabulary.items()]
    )


def name_of(
    sought: Sequence[str | int], vocabulary: dict[int, str], ranks: object
) -> str:
    """What the page calls the word that is sought."""
    if not sought:
        return "" if ranks is None else "the object"
    names = [
        shown(each) if isinstance(each, str) else vocabulary.get(each, f"token {each}")
        for each in sought
    ]
    return ", ".join(dict.fromkeys(names))


def within_top(
    index: Int[np.ndarray, "layer position k"], is_it: Bool[np.ndarray, " word"]
) -> Int[np.ndarray, "layer position"]:
    """Rank of the sought word among the top words; 0 where it is not among them."""
    hits = is_it[index]
    return np.where(hits.any(axis=2), hits.argmax(axis=2) + 1, 0)


def given_ranks(
    ranks: xr.DataArray, lens: xr.Dataset
) -> Int[np.ndarray, "layer position"]:
    """Ranks from 1, in the order of the lens.

    Raises:
        ResultError: They are of other dimensions, layers or positions, or are no ranks.
    """
    if set(ranks.dims) == {"layer"} and lens.sizes["position"] == 1:
        ranks = ranks.expand_dims(position=lens["position"].values)
    if set(ranks.dims) != {"layer", "position"}:
        raise ResultError(
            f"ranks are over {tuple(ranks.dims)}; wanted (layer, position), or (layer)"
            ' for a lens of one position. Select one answer: ranks.sel(answer="red").'
        )
    for dim in ("layer", "position"):
        same_places(ranks, lens, dim)
    values = np.asarray(ranks.transpose("layer", "position").values, dtype=float)
    values = values + (ranks.attrs.get("units") == ABOVE)
    found = np.where(np.isfinite(values), values, 0)
    if (found < 0).any() or (found != found.round()).any() or not found.any():
        raise ResultError(
            "ranks are whole numbers, 1 the best (0 where it is not known), or in the"
            f' unit "{ABOVE}", 0 the best; these go from {values.min():g} to'
            f" {np.nanmax(values):g}."
        )
    return found.astype(int)


def same_places(ranks: xr.DataArray, lens: xr.Dataset, dim: str) -> None:
    """Refuse ranks of other layers or positions than the lens's."""
    own, wanted = (
        list(each[dim].values) if dim in each.coords else list(range(each.sizes[dim]))
        for each in (ranks, lens)
    )
    if own != wanted:
        where = next(
            (i for i, (a, b) in enumerate(zip(own, wanted, strict=False)) if a != b),
            min(len(own), len(wanted)),
        )
        a, b = ([*each, "none"][where] for each in (own, wanted))
        raise ResultError(
            f"the ranks are of {len(own)} {dim}s and the lens of {len(wanted)}; the"
            f" first difference is number {where}: {a} and {b}. Ask both for the same"
            f" ones: ranks.sel({dim}=lensed[{dim!r}])."
        )


def without_image(outline: object, grid: int) -> None:
    """Refuse what is drawn on a picture where no picture is given."""
    if outline is not None or grid:
        raise ResultError(
            "outline and grid say what is drawn on the picture, and no picture is"
            " given: viz.lens(lensed, image, outline=...)."
        )
