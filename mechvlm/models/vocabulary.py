"""Words and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechvlm.errors import TokenError
from mechvlm.models.config import Config
from mechvlm.prompts import Prompt

__all__ = ["Vocabulary"]


class Vocabulary:
    """Words of a hooked model, under TransformerLens's names."""

    processor: Any
    cfg: Config

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.processor.tokenizer

    def to_tokens(
        self, text: str, prepend_bos: bool = True
    ) -> Int[Tensor, "1 position"]:
        """Token ids of a text; `prepend_bos` adds the special tokens, BOS first."""
        ids = self.tokenizer(text, add_special_tokens=prepend_bos)["input_ids"]
        return torch.tensor([ids], dtype=torch.long, device=self.cfg.device)

    def to_string(self, ids: Int[Tensor, "..."] | Sequence[int] | int) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(torch.as_tensor(ids).flatten().tolist()))

    def to_str_tokens(
        self, prompt: Prompt | str | Int[Tensor, "..."] | Sequence[int]
    ) -> list[str]:
        """What each position shows, one string per position."""
        if isinstance(prompt, Prompt):
            return list(prompt.tokens)
        if isinstance(prompt, str):
            return self.to_str_tokens(self.to_tokens(prompt))
        ids = torch.as_tensor(prompt)
        each = [[i] for i in ids.flatten().tolist()]
        return [str(word) for word in self.tokenizer.batch_decode(each)]

    def to_single_token(self, word: str) -> int:
        """Token id of a word that is exactly one token.

        Raises:
            TokenError: It is several tokens, none, or not in the vocabulary.
        """
        more = {self.processor.image_token_id}
        return _single_token(self.tokenizer, word, more)


def _single_token(tokenizer: Any, word: str, more: set[int]) -> int:
    """Token id of a word that is exactly one token; `more` are special ones too.

    Raises:
        TokenError: The word is no token, several tokens, a special one, or not in the
            vocabulary.
    """
    found = list(tokenizer(word, add_special_tokens=False)["input_ids"])
    if len(found) != 1:
        raise TokenError(
            f"{word!r} is {len(found)} tokens {tokenizer.convert_ids_to_tokens(found)};"
            f" a metric needs exactly one. {_advice(tokenizer, word)}"
        )
    if found[0] == tokenizer.unk_token_id and word != tokenizer.unk_token:
        raise TokenError(
            f"{word!r} is not in the vocabulary: the tokenizer has only"
            f" {tokenizer.unk_token!r} for it."
        )
    if found[0] in {*tokenizer.all_special_ids, *more}:
        raise TokenError(
            f"{word!r} is the special token {found[0]}, which is no answer to measure."
            " If it is meant (end of sequence, say), pass its id to the metric."
        )
    return int(found[0])


def _advice(tokenizer: Any, word: str) -> str:
    tried = (word.strip(), " " + word.strip(), word.strip().capitalize())
    for other in tried:
        if other and len(tokenizer(other, add_special_tokens=False)["input_ids"]) == 1:
            return f"{other!r} is one token."
    return "Choose answers that are single tokens, or pass a token id."
