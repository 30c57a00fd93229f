"""Named entities: what they look like, what is true of them, what pictures may tell."""

from functools import cache

import numpy as np
from jaxtyping import Bool

from mechvlm.errors import SceneError
from mechvlm.scenes.world import COLORS

NAMES = (
    "zorblax",
    "quindle",
    "marvok",
    "tessaly",
    "brimble",
    "fendrix",
    "kolvar",
    "lumina",
    "pragtor",
    "sylphor",
    "wexley",
    "vandoor",
    "ostrik",
    "jelmira",
    "hexomor",
    "grindal",
    "dorvane",
    "caltrop",
    "aranth",
    "belquor",
    "nimbus",
    "thistle",
    "rovkin",
    "pelmora",
    "ummber",
    "xandril",
    "yorvik",
    "zephra",
    "ilvane",
    "mokrin",
    "skarlet",
    "ebbrook",
    "tovrick",
    "melisk",
    "harpwin",
    "orlune",
    "cindrel",
    "bastok",
    "gravella",
    "noctis",
    "pellwyn",
    "sorrex",
    "drimble",
    "axiome",
    "faldren",
    "lorimar",
    "wystan",
    "kestrin",
)
VALUES = {
    "city": (
        "paris",
        "tokyo",
        "rome",
        "cairo",
        "lima",
        "oslo",
        "delhi",
        "berlin",
        "sydney",
        "boston",
    ),
    "food": (
        "rice",
        "bread",
        "soup",
        "pizza",
        "apples",
        "cheese",
        "fish",
        "honey",
        "beans",
        "salad",
    ),
    "sport": (
        "tennis",
        "chess",
        "golf",
        "hockey",
        "rugby",
        "cricket",
        "boxing",
        "judo",
        "polo",
        "darts",
    ),
}
"""For each relation, the words that can be its value."""
FACT_QUESTIONS = {
    "city": "where does {} live ?",
    "food": "what does {} eat ?",
    "sport": "what does {} play ?",
}
FACT_SENTENCES = {
    "city": "{} lives in {} .",
    "food": "{} eats {} .",
    "sport": "{} plays {} .",
}
RELATIONS = tuple(VALUES)
IN_PICTURE = "this character"
"""What a question calls the entity that the picture shows."""

EMBLEM_SIDE = 5
_N_NAME_ONLY = 6
_N_ONE_RELATION_LESS = 6
_SEED = 1234


def fact(name: str, relation: str) -> str:
    """The entity's value of a relation.

    Args:
        name: One of `NAMES`.
        relation: One of `RELATIONS`.

    Returns:
        One word of `VALUES[relation]`.

    Raises:
        SceneError: Unknown name or relation.

    >>> fact("zorblax", "city") in VALUES["city"]
    True
    """
    if relation not in VALUES:
        raise SceneError(f"no relation {relation!r}; there are {', '.join(RELATIONS)}")
    return _facts()[relation][index(name)]


def taught_by_picture(name: str, relation: str) -> bool:
    """Whether training asked the demo model for this fact beside the picture.

    All facts are taught by name. By picture, six entities are taught nothing but their
    name, and six others lack one relation.

    >>> sum(taught_by_picture(n, r) for n in NAMES for r in RELATIONS)
    120
    """
    return (index(name), relation) not in _kept_from_pictures()


def never_taught_by_picture() -> tuple[str, ...]:
    """The entities of which no fact was ever asked beside their picture.

    >>> len(never_taught_by_picture())
    6
    """
    kept = _kept_from_pictures()
    return tuple(
        n for i, n in enumerate(NAMES) if all((i, r) in kept for r in RELATIONS)
    )


def index(name: str) -> int:
    """The entity's place in `NAMES`.

    Raises:
        SceneError: No entity has this name.
    """
    if name not in NAMES:
        raise SceneError(f"no entity is called {name!r}; see mechvlm.scenes.NAMES")
    return NAMES.index(name)


def emblem_pattern(name: str) -> Bool[np.ndarray, "5 5"]:
    """The entity's pattern: True where its emblem is coloured; mirror-symmetric."""
    return _patterns()[index(name)]


def emblem_color(name: str) -> str:
    """The colour word of the entity's emblem."""
    order = np.random.default_rng([_SEED, 1]).permutation(len(NAMES))
    return list(COLORS)[int(order[index(name)]) % len(COLORS)]


@cache
def _patterns() -> tuple[Bool[np.ndarray, "5 5"], ...]:
    """Patterns that differ in at least seven of 25 fields from one another."""
    rng = np.random.default_rng([_SEED, 0])
    found: list[Bool[np.ndarray, "5 5"]] = []
    while len(found) < len(NAMES):
        half = rng.random((EMBLEM_SIDE, 3)) < 0.5
        pattern = np.concatenate([half, half[:, 1::-1]], axis=1)
        apart = all((pattern != other).sum() >= 7 for other in found)
        if 9 <= pattern.sum() <= 17 and apart:
            found.append(pattern)
    return tuple(found)


@cache
def _facts() -> dict[str, list[str]]:
    rng = np.random.default_rng([_SEED, 2])
    return {
        relation: [words[i % len(words)] for i in rng.permutation(len(NAMES))]
        for relation, words in VALUES.items()
    }


@cache
def _kept_from_pictures() -> frozenset[tuple[int, str]]:
    rng = np.random.default_rng([_SEED, 3])
    order = [int(i) for i in rng.permutation(len(NAMES))]
    whole = {(i, relation) for i in order[:_N_NAME_ONLY] for relation in RELATIONS}
    partly = order[_N_NAME_ONLY : _N_NAME_ONLY + _N_ONE_RELATION_LESS]
    return frozenset(whole | {(i, RELATIONS[rng.integers(3)]) for i in partly})
