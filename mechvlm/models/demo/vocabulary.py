"""The demo model's words and their token ids."""

from collections.abc import Sequence

from mechvlm.scenes import (
    COLORS,
    COLUMNS,
    NAMES,
    NUMBERS,
    PLURALS,
    ROWS,
    SHAPES,
    SIZES,
    VALUES,
)

PAD, BOS, EOS, UNKNOWN, IMAGE = range(5)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
BLANK_WORD = "blank"
_COMMON = (
    "user assistant : ? . , a an the is are in on of and there what color shape size "
    "object objects how many where who this it describe image detail yes no character "
    "does live lives eat eats play plays not that has have one see blank"
)


def words() -> tuple[str, ...]:
    """Every token of the model, in the order of its id."""
    known = set(_COMMON.split())
    for group in (
        SHAPES,
        PLURALS.values(),
        COLORS,
        SIZES,
        ROWS,
        COLUMNS,
        NUMBERS,
        NAMES,
        *VALUES.values(),
    ):
        known |= set(group)
    return (*SPECIAL, *sorted(known))


WORDS = words()
ID_OF = {word: i for i, word in enumerate(WORDS)}
BLANK = ID_OF[BLANK_WORD]


def encode(text: str) -> list[int]:
    """Token ids of words that stand apart by spaces; an unknown word is a KeyError."""
    return [ID_OF[word] for word in text.split()]


def decode(ids: Sequence[int]) -> str:
    """The words of these ids, up to the end of the answer."""
    found = list(ids)
    kept = found[: found.index(EOS)] if EOS in found else found
    return " ".join(WORDS[i] for i in kept)
