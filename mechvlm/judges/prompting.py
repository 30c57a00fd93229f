"""What the model is asked, and what counts as an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from mechvlm.errors import JudgeError
from mechvlm.judges.verdict import Verdict

__all__ = ["PROMPT_VERSION", "SCHEMA", "messages", "verdict_of"]

PROMPT_VERSION = "1"
"""To be counted up with every change of the words below: old answers do not serve."""

_TASK = """\
You compare two descriptions of the same picture by the physical objects they name.

Work in this order:
1. List the objects of the reference: people, animals, plants, vehicles, furniture, \
tools, food, clothing, buildings and other things that could be touched. Leave out \
moods, activities, light, colours, weather, and places as a whole.
2. List the objects of the candidate by the same rule.
3. Pair each object of the reference with the object of the candidate that means the \
same thing, if there is one. Other words for a thing ("sofa", "couch") and a broader \
or narrower word ("vehicle", "car") pair; things that merely go together ("plate", \
"fork") do not.

Write each object once, however often it is named, as a short singular noun phrase in \
lower case. Put an object into one pair at most. In a pair, write both names exactly \
as they stand in your lists. If a description names no object, its list is empty.

Answer with one JSON object and nothing else:
{"reference_objects": [...], "candidate_objects": [...], \
"matches": [{"reference": "...", "candidate": "..."}]}"""

_EXAMPLE = (
    "Reference: A boy sits on a sofa beside two cats. It is a calm evening.\n\n"
    "Candidate: A child on a couch holds a ball.",
    '{"reference_objects": ["boy", "sofa", "cat"], "candidate_objects": ["child",'
    ' "couch", "ball"], "matches": [{"reference": "boy", "candidate": "child"},'
    ' {"reference": "sofa", "candidate": "couch"}]}',
)

_STRINGS = {"type": "array", "items": {"type": "string"}}
_PAIR = {
    "type": "object",
    "properties": {"reference": {"type": "string"}, "candidate": {"type": "string"}},
    "required": ["reference", "candidate"],
    "additionalProperties": False,
}
SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {
        "reference_objects": _STRINGS,
        "candidate_objects": _STRINGS,
        "matches": {"type": "array", "items": _PAIR},
    },
    "required": ["reference_objects", "candidate_objects", "matches"],
    "additionalProperties": False,
}
"""Form of an answer, as JSON schema."""

_FENCED = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)


def messages(candidate: str, reference: str) -> list[dict[str, str]]:
    """The conversation whose next turn is the answer."""
    question, answer = _EXAMPLE
    return [
        {"role": "system", "content": _TASK},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {
            "role": "user",
            "content": f"Reference: {reference}\n\nCandidate: {candidate}",
        },
    ]


def verdict_of(text: str) -> Verdict:
    """What an answer says, if every part of it is as it was asked for.

    Case, outer spaces and an object listed twice are forgiven.

    Raises:
        JudgeError: It is no JSON object of that form, or pairs what it did not list.

    Example:
        >>> verdict_of('{"reference_objects": ["Cat", "cat"], "candidate_objects": [],'
        ...     ' "matches": []}').reference
        ('cat',)
    """
    fenced = _FENCED.fullmatch(text)
    try:
        said = json.loads(fenced[1] if fenced else text)
    except json.JSONDecodeError as cause:
        raise JudgeError(f"{_shown(text)} is no JSON ({cause}).") from cause
    if not isinstance(said, dict) or set(said) != set(SCHEMA["required"]):  # type: ignore[call-overload]
        raise JudgeError(
            f"{_shown(text)} is not an object of reference_objects, candidate_objects"
            " and matches."
        )
    pairs = said["matches"]
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise JudgeError(
            f"matches in {_shown(text)} is no list of {{reference, candidate}}."
        )
    matched = [_names([pair["reference"], pair["candidate"]], text) for pair in pairs]
    return Verdict(
        _distinct(_names(said["reference_objects"], text)),
        _distinct(_names(said["candidate_objects"], text)),
        tuple(dict.fromkeys((pair[0], pair[1]) for pair in matched)),
    )


def _is_pair(pair: object) -> bool:
    return isinstance(pair, dict) and set(pair) == {"reference", "candidate"}


def _names(listed: object, text: str) -> tuple[str, ...]:
    """Names of objects, in lower case."""
    if not isinstance(listed, list) or not all(
        isinstance(each, str) and each.strip() for each in listed
    ):
        raise JudgeError(f"{_shown(text)} holds {listed!r} where names should stand.")
    return tuple(" ".join(each.casefold().split()) for each in listed)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _shown(text: str) -> str:
    """An answer, cut short for a message."""
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
