"""The words of a planted model, its chat template and its processor.

A prompt is 21 tokens: the beginning, one system word, 16 image tokens, two question
words and the answer's cue, whose next token is the answer.
"""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from mechvlm.models.planted.picture import CELL_PX, PICTURE_PX

__all__ = [
    "ANSWERS",
    "CUE",
    "QUESTION",
    "SYSTEM",
    "VOCABULARY",
    "messages",
    "processor",
]

SYSTEM = "look"
QUESTION = "what digit"
CUE = "answer"
ANSWERS = ("zero", "one", "two", "three")
"""The word of each class, one token each."""

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
VOCABULARY = {
    word: at
    for at, word in enumerate((*_SPECIAL, SYSTEM, *QUESTION.split(), CUE, *ANSWERS))
}
"""Every word with its token id."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + CUE + " {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + CUE + "{% endif %}"
)


def messages(question: str = QUESTION) -> list[dict[str, object]]:
    """Return the conversation that planted models are made for, image and all.

    >>> [turn["role"] for turn in messages()]
    ['system', 'user']
    """
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": content},
    ]


def processor() -> LlavaProcessor:
    """Return the processor of every planted model; no resizing happens at 56 x 56.

    Mean 0 and deviation 1 leave the pixels as they are, 0 to 1.
    """
    side = {"height": PICTURE_PX, "width": PICTURE_PX}
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": PICTURE_PX},
        crop_size=side,
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=_tokenizer(),
        patch_size=CELL_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with the beginning of the sequence put in front."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", VOCABULARY["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )
