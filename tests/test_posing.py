"""The first word of a right answer, in all the ways that tokenizers spell it."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mechvlm as mv
from mechvlm import posing
from mechvlm.models.generation import Generation
from mechvlm.models.pieces import first_pieces, spelled

GPT = (
    *("<unk>", "<s>", "red", "Ġred", "<image>", "Red", "ĠRed", "RED", "Ġlight"),
    *("ĠParis", "traffic"),
)
"""Words after a space are tokens of their own, as in most real vocabularies."""

BARE = ("<unk>", "<s>", "Ġ", "red", "<image>", "Red", "light")
"""A space is a token of its own."""


@pytest.fixture
def speaking(tiny_vlm, monkeypatch):
    """The tiny model with another tokenizer: words that keep the space before them."""

    def with_words(known):
        split = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if known is BARE:
            split = pre_tokenizers.Sequence(
                [split, pre_tokenizers.Split("Ġ", behavior="isolated")]
            )
        ids = {word: i for i, word in enumerate(known)}
        words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        words.pre_tokenizer, words.decoder = split, decoders.ByteLevel()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token="<unk>", bos_token="<s>"
        )
        monkeypatch.setattr(tiny_vlm.processor, "tokenizer", fast)
        return tiny_vlm

    return with_words


@pytest.mark.parametrize(
    ("known", "word", "tokens"),
    [
        (GPT, "red", {"red", "Ġred", "Red", "ĠRed"}),
        (GPT, " Red ", {"red", "Ġred", "Red", "ĠRed"}),
        (GPT, "RED", {"RED", "red", "Ġred", "Red", "ĠRed"}),
        (GPT, "paris", {"ĠParis"}),
        (GPT, "traffic light", set()),  # its first piece may begin other words
        (GPT, "traffic", {"traffic"}),
        (GPT, "<s>", set()),
        (GPT, "<image>", set()),
        (GPT, "elephant", set()),  # unknown
        (GPT, " ", set()),
        (BARE, "red", {"red", "Red"}),
        (BARE, "red light", set()),
    ],
)
def test_a_word_is_every_spelling_of_one_token(speaking, known, word, tokens):
    wanted = tuple(sorted(map(known.index, tokens)))
    assert spelled(speaking(known), word) == wanted


def test_trap_08_no_spelling_is_special_and_first_pieces_agree(speaking):
    vlm = speaking(GPT)
    assert first_pieces(vlm, "red light") == spelled(vlm, "red")
    assert first_pieces(vlm, "traffic light") == (GPT.index("traffic"),)
    with pytest.raises(mv.TokenError, match="begins with no token"):
        first_pieces(vlm, "<s>")


def test_the_probability_of_an_answer_is_that_of_all_its_spellings(speaking):
    """A capital or a space is as right; what is spelled alike counts once."""
    vlm = speaking(GPT)
    p_of = {"red": 0.1, "Ġred": 0.15, "Red": 0.2, "ĠRed": 0.05, "ĠParis": 0.3}
    said = torch.tensor([p_of.get(word, 0.0) for word in GPT])
    said[GPT.index("traffic")] = 0.2
    layout = mv.Layout(1, {"query": mv.Positions.of(0)})
    made = [Generation(torch.tensor([5]), "Red", said.log()[None], layout)] * 2
    for answers, p in (
        (("red",), 0.5),
        (("red", "Red", "red light"), 0.5),
        (("red", "Paris"), 0.8),
        (("red light", "elephant"), np.nan),
    ):
        found = posing.first_word(vlm, answers, made)
        np.testing.assert_allclose(found, [p, p], atol=1e-6)


def test_an_arm_keeps_the_logits_of_its_first_word_alone(tiny_vlm, tiny_prompt):
    arms = posing.Arms([mv.NOTHING])
    made = posing.answered(tiny_vlm, tiny_prompt, arms, 3)
    clean = tiny_vlm.generate(tiny_prompt, max_new_tokens=3)
    for one in made:
        assert one.text == clean.text
        torch.testing.assert_close(one.logits, clean.logits[:1], rtol=0, atol=1e-5)
