"""From text and an image to a prompt: ids, pixels, and which position is what."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mechvlm.errors import (
    ImageError,
    LayoutError,
    MissingImageError,
    PlaceholderError,
    PromptError,
    UnreadableImageError,
)
from mechvlm.layout import ImageGrid, Layout, Positions
from mechvlm.models.family import Family, Frame
from mechvlm.models.spelling import Span, spell
from mechvlm.prompts import Prompt

__all__ = ["ImageLike", "Prompter", "opened"]

ImageLike = Image.Image | str | Path
"""A picture, taken as it is, or the path of one, turned up as the file says."""

_MARK = "\ue000"
"""A private-use character that no template holds: marks where a text will stand."""


@dataclass(frozen=True)
class Prompter:
    """Builds prompts for one model.

    Attributes:
        processor: The model's Hugging Face processor.
        config: The model's config.
        family: Where the family keeps what.
    """

    processor: Any
    config: Any
    family: Family

    def chat(
        self,
        text: str,
        image: ImageLike | None,
        *,
        prefix: str = "",
        system: str | None = None,
    ) -> Prompt:
        """A prompt in the model's own chat template; see `HookedVLM.prompt`."""
        if self.placeholder in text + prefix + (system or ""):
            raise PlaceholderError(
                f"the text holds the image placeholder {self.placeholder!r}, and"
                " `prompt` puts it in by itself. Leave it out, or use `prompt_raw`,"
                " which takes text literally."
            )
        if not text.strip():
            raise PromptError("the text is empty: there is nothing to ask.")
        end = self.frame.end
        if prefix and end:
            raise PromptError(
                f"this processor puts {end!r} after the whole text, so a prefix would"
                " not begin the answer but end the question. Leave it out and call"
                " `prompt.extended(ids, tokens)` with the tokens of the prefix."
            )
        picture = None if image is None else opened(image)
        rendered = self._rendered(text, picture, system)
        spans = {"query": self._span(rendered, text, picture, system, of="query")}
        if system is not None:
            spans["system"] = self._span(rendered, text, picture, system, of="system")
        return self._prompt(rendered + prefix, picture, spans)

    def raw(self, text: str, image: ImageLike | None) -> Prompt:
        """A prompt of literal text; see `HookedVLM.prompt_raw`."""
        if not text.strip():
            raise PromptError("the text is empty: there is nothing to ask.")
        picture = None if image is None else opened(image)
        return self._prompt(text, picture, {"query": (0, len(text))})

    @property
    def placeholder(self) -> str:
        """The word that stands for an image in text."""
        return self.frame.placeholder

    @property
    def frame(self) -> Frame:
        """What the processor adds to a text."""
        return self.family.frame(self.processor)

    def _rendered(self, text: str, image: object, system: str | None) -> str:
        if self.processor.chat_template is None:
            raise PromptError(
                "this checkpoint has no chat template, so `prompt` cannot know how its"
                " questions are put. Use `prompt_raw` with the whole text, or set"
                " `vlm.processor.chat_template` (in a checkpoint's folder: the file"
                " chat_template.jinja)."
            )
        content = [{"type": "image"}] if image is not None else []
        user = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
        messages: list[dict[str, Any]] = [user]
        if system is not None:
            words = [{"type": "text", "text": system}]
            messages.insert(0, {"role": "system", "content": words})
        rendered = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    def _span(
        self, rendered: str, text: str, image: object, system: str | None, *, of: str
    ) -> Span:
        """Characters of the rendered prompt that are the user's or the system's own."""
        ours = text if of == "query" else str(system)
        marked = self._rendered(
            _MARK if of == "query" else text, image, _MARK if of == "system" else system
        )
        start = marked.find(_MARK)
        own = next(
            (t for t in (ours, ours.strip()) if rendered[start:].startswith(t)), None
        )
        if start < 0 or own is None:
            raise PromptError(
                f"the chat template does not show the {of} text as it was given, so its"
                " positions cannot be told. Does the template know this role? Use"
                " `prompt_raw` with the whole text."
            )
        return start, start + len(own)

    def _prompt(
        self, text: str, image: Image.Image | None, spans: Mapping[str, Span]
    ) -> Prompt:
        self._check_placeholders(text, image)
        bos = self.processor.tokenizer.bos_token
        special = not (bos and text.startswith(bos))
        with warnings.catch_warnings():
            # PaliGemma's processor copies a tensor in a way that numpy 2 warns of.
            warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
            inputs = self.processor(
                text=[text],
                images=None if image is None else [image],
                add_special_tokens=special,
                return_tensors="pt",
            )
        left_out = self.family.unused
        tensors = {
            name: x
            for name, x in inputs.items()
            if isinstance(x, Tensor) and name not in left_out
        }
        layout = self._layout(tensors, text, image, spans, special=special)
        decode = self.processor.tokenizer.batch_decode
        tokens = decode([[i] for i in tensors["input_ids"][0].tolist()])
        fills = self.family.fills
        return Prompt(tensors, layout, text, tuple(tokens), image, fills)

    def _check_placeholders(self, text: str, image: Image.Image | None) -> None:
        n = text.count(self.placeholder)
        if image is None and n:
            raise MissingImageError(
                f"the text holds {n} image placeholder(s) {self.placeholder!r} and no"
                " image was given. Pass the image, or take the placeholder out."
            )
        if image is None and self.family.needs_image:
            raise MissingImageError(
                f"no image was given, and models of family {self.family.name!r} are"
                " asked about an image always. Pass one."
            )
        if image is not None and n == 0:
            raise PlaceholderError(
                "an image was given and the text holds no image placeholder"
                f" {self.placeholder!r}, so the image would be lost. Put it in once."
            )
        if n > 1:
            raise PlaceholderError(
                f"the text holds {n} image placeholders {self.placeholder!r} for one"
                " image; each image needs exactly one."
            )

    def _layout(
        self,
        tensors: Mapping[str, Tensor],
        text: str,
        image: Image.Image | None,
        spans: Mapping[str, Span],
        *,
        special: bool,
    ) -> Layout:
        ids = tensors["input_ids"][0].tolist()
        token = self.family.image_token(self.config)
        at = [i for i, each in enumerate(ids) if each == token]
        grids = self._grids(at, image)
        spelling = spell(text, self.frame, len(at))
        offsets = self._offsets(spelling.text, ids, special=special)
        bos = self.processor.tokenizer.bos_token_id
        groups: dict[str, list[int]] = {}
        for i, (each, span) in enumerate(zip(ids, offsets, strict=True)):
            if each == token:
                name = "image"
            elif each == bos and (i == 0 or not spelling.is_own(span)):
                name = "bos"
            else:
                name = spelling.group(span, spans)
            groups.setdefault(name, []).append(i)
        named = {name: Positions.of(found) for name, found in groups.items()}
        return Layout(len(ids), named, grids)

    def _grids(
        self, at: Sequence[int], image: Image.Image | None
    ) -> tuple[ImageGrid, ...]:
        if image is None:
            return ()
        rows, cols = self.family.grid_shape(self.config)
        if len(at) != rows * cols:
            raise LayoutError.patch_count(len(at), rows, cols)
        if at[-1] - at[0] != len(at) - 1:
            raise LayoutError("the image tokens do not stand in one unbroken row.")
        seen = self.family.seen(self.processor.image_processor, image.size)
        return (ImageGrid(at[0], rows, cols, image.width, image.height, seen),)

    def _offsets(self, text: str, ids: Sequence[int], *, special: bool) -> list[Span]:
        """Characters of `text` that each token stands for."""
        tokenizer = self.processor.tokenizer
        if not tokenizer.is_fast:
            raise PromptError(
                f"{type(tokenizer).__name__} cannot tell which characters a token"
                " stands for. Load the checkpoint with its fast tokenizer."
            )
        encoded = tokenizer(
            text, add_special_tokens=special, return_offsets_mapping=True
        )
        if list(encoded["input_ids"]) != list(ids):
            raise LayoutError(
                "the processor's token ids are not those of the text with its image"
                " placeholder expanded, so positions cannot be told. Does the processor"
                " add tokens around the image?"
            )
        return [(int(a), int(b)) for a, b in encoded["offset_mapping"]]


_UNREADABLE = (
    *(OSError, UnidentifiedImageError, SyntaxError, EOFError, ValueError),
    Image.DecompressionBombError,
)


def opened(image: ImageLike) -> Image.Image:
    """The picture in RGB.

    Raises:
        UnreadableImageError: The file is no picture, or one of more than 8 bits.
        ImageError: It is neither a picture nor a path.
    """
    if not isinstance(image, str | Path | Image.Image):
        raise ImageError(
            f"wanted a PIL image or the path of one, got {type(image).__name__}."
            " Arrays: use PIL.Image.fromarray."
        )
    try:
        if isinstance(image, Image.Image):
            return _in_color(image)
        with Image.open(image) as file:
            # A file may say that it lies on its side; every viewer turns it up.
            return _in_color(ImageOps.exif_transpose(file))
    except _UNREADABLE as cause:
        raise UnreadableImageError(
            f"cannot read {image} as an image: {cause}. Wanted the path of a"
            " picture (PNG, JPEG, ...) or a PIL image."
        ) from cause


def _in_color(image: Image.Image) -> Image.Image:
    """The picture in RGB, where nothing but transparency is lost on the way."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise UnreadableImageError(
            f"the picture has mode {image.mode!r}, and Pillow would cut every value"
            " above 255. Scale it to 8 bits first, such as with"
            " PIL.Image.fromarray((array / array.max() * 255).astype('uint8'))."
        )
    if 0 in image.size:
        raise UnreadableImageError(f"the picture of size {image.size} has no pixels.")
    return image.convert("RGB")
