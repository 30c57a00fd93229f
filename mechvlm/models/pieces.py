"""The token that a word begins with, for words that are several tokens."""

from __future__ import annotations

from mechvlm.errors import TokenError
from mechvlm.models.vocabulary import Vocabulary

__all__ = ["first_pieces"]


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
    bare = word.strip()
    forms = {form(bare) for form in (str, str.lower, str.capitalize)}
    found = {_first(vlm, lead + form) for form in forms for lead in ("", " ")}
    pieces = tuple(sorted(piece for piece in found if piece is not None))
    if not pieces:
        raise TokenError(
            f"{word!r} begins with no token of this model: it is empty, or the"
            " vocabulary lacks it. Give a word that the model can say."
        )
    return pieces


def _first(vlm: Vocabulary, text: str) -> int | None:
    """The first token that shows something; None if that is a special one."""
    special = {*vlm.tokenizer.all_special_ids, vlm.processor.image_token_id}
    for token in vlm.to_tokens(text, prepend_bos=False)[0].tolist():
        if vlm.to_string(token).strip():
            return None if token in special else int(token)
    return None
