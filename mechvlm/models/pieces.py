"""The tokens that a word is, or begins with, in an answer."""

from __future__ import annotations

from mechvlm.errors import TokenError
from mechvlm.models.vocabulary import Vocabulary

__all__ = ["first_pieces", "spelled"]


def first_pieces(vlm: Vocabulary, word: str) -> tuple[int, ...]:
    """Token ids that a word can begin with in running text.

    A name of several tokens ("traffic light") has no id of its own; what tells it is
    its first piece, as it stands at the start of a text or after a space, in lower case
    or capitalised. Neither BOS nor a bare space is a piece.

    Args:
        vlm: The model.
        word: One word or several.

    Returns:
        Ids in rising order, each once. Other words may begin with the same piece.

    Raises:
        TokenError: Nothing of the word is in the vocabulary.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> mv.first_pieces(vlm, "red ring") == (vlm.to_single_token("red"),)
        True
    """
    shown = (_shown(vlm, text) for text in _spellings(word))
    firsts = {pieces[0] for pieces in shown if pieces}
    pieces = tuple(sorted(firsts - _special(vlm)))
    if not pieces:
        raise TokenError(
            f"{word!r} begins with no token of this model: it is empty, or the"
            " vocabulary lacks it. Give a word that the model can say."
        )
    return pieces


def spelled(vlm: Vocabulary, word: str) -> tuple[int, ...]:
    """Token ids that are a whole word, however an answer's first word is written.

    Whether an answer begins with a capital, and whether a space stands in front,
    depends on template and tokenizer; the probability of saying a word is the sum over
    all of these. Spellings of several tokens are left out, for their first piece may
    begin other words too; see `first_pieces`.

    Args:
        vlm: The model.
        word: What is said: as it is given, in lower case or capitalised, at the start
            of a text or after a space.

    Returns:
        Ids in rising order, each once; none where no spelling is a single token. BOS,
        the unknown and other special tokens are never among them.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> vlm.to_single_token("red") in spelled(vlm, "Red"), spelled(vlm, "red ring")
        (True, ())
    """
    shown = (_shown(vlm, text) for text in _spellings(word))
    whole = {pieces[0] for pieces in shown if len(pieces) == 1}
    return tuple(sorted(whole - _special(vlm)))


def _spellings(word: str) -> set[str]:
    bare = word.strip()
    forms = {form(bare) for form in (str, str.lower, str.capitalize)}
    return {lead + form for form in forms for lead in ("", " ")}


def _shown(vlm: Vocabulary, text: str) -> list[int]:
    """The tokens of a text that show something, so that no bare space is among them."""
    found = vlm.to_tokens(text, prepend_bos=False)[0].tolist()
    return [int(token) for token in found if vlm.to_string(token).strip()]


def _special(vlm: Vocabulary) -> set[int]:
    return {*vlm.tokenizer.all_special_ids, vlm.processor.image_token_id}
