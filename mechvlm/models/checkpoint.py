"""What can be told of a checkpoint from its config alone, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from mechvlm.errors import CheckpointError, FamilyError
from mechvlm.models import families
from mechvlm.models.load import SHIPPED

__all__ = ["Checkpoint", "checkpoint"]

Fact = str | int | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, told from its config.

    Attributes:
        name: As it was asked for.
        facts: What is known of it, by name; None where its config does not say.
        refused: Why it cannot be loaded here; "" where it can.
    """

    name: str
    facts: Mapping[str, Fact]
    refused: str = ""


def checkpoint(name: str) -> Checkpoint:
    """Look at a checkpoint's config.

    Args:
        name: "demo", "demo-control", a folder, or a name on the hub, whose config alone
            is fetched.

    Returns:
        Its facts; where its architecture or a config key is not understood, with the
        reason.

    Raises:
        CheckpointError: There is no such checkpoint, or its config cannot be read.

    Example:
        >>> found = checkpoint("demo")
        >>> found.facts["family"], found.facts["layers"], found.refused
        ('llava', 8, '')
    """
    place = SHIPPED.get(name, name)
    _check_there(Path(place), name)
    try:
        config: Any = AutoConfig.from_pretrained(place)
    except OSError as cause:
        raise CheckpointError(
            f"{name!r} cannot be looked at: it is no folder here, and its config could"
            f" not be fetched from the hub. Check the spelling; without a network, only"
            " what is in the cache can be found (HF_HUB_OFFLINE=1 says so at once)."
            f" {_first_line(cause)}"
        ) from cause
    except (ValueError, KeyError) as cause:
        return Checkpoint(name, _on_disk(Path(place)), _first_line(cause))
    facts = _facts(config) | _on_disk(Path(place))
    try:
        return Checkpoint(name, facts | _read_by(config))
    except FamilyError as cause:
        return Checkpoint(name, facts, str(cause))


def _check_there(place: Path, name: str) -> None:
    """Refuse what looks like a folder and is no checkpoint."""
    if not name.strip():
        raise CheckpointError(
            "the name of the checkpoint is empty; wanted 'demo', a folder, or a name on"
            " the hub."
        )
    if place.is_dir() and not (place / "config.json").is_file():
        raise CheckpointError(
            f"{name} is a folder without a config.json, so it is no checkpoint. Wanted"
            " what save_pretrained of model and processor writes."
        )
    if place.is_file():
        raise CheckpointError(
            f"{name} is a file; wanted the folder that holds config.json."
        )
    if not place.exists() and name.startswith(("/", ".", "~")):
        raise CheckpointError(f"there is no checkpoint folder {name}.")


def _facts(config: Any) -> dict[str, Fact]:
    """What configs of most architectures say, under the names that we use."""
    whole = config.to_dict()
    text = whole.get("text_config") or whole
    vision = whole.get("vision_config") or {}
    named = config.architectures or [type(config).__name__]
    dtype = whole.get("dtype") or text.get("dtype")
    return {
        "architecture": " / ".join(named),
        "backbone": text.get("model_type"),
        "tower": vision.get("model_type"),
        "layers": text.get("num_hidden_layers"),
        "heads": text.get("num_attention_heads"),
        "key_value_heads": text.get("num_key_value_heads"),
        "d_model": text.get("hidden_size"),
        "d_vocab": text.get("vocab_size"),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }


def _read_by(config: Any) -> dict[str, Fact]:
    """What the family knows, which refuses what it does not understand.

    Raises:
        FamilyError: The architecture, a part of it or a config key is unknown.
    """
    family = families.find(config)
    rows, cols = family.grid_shape(config)
    grid: dict[str, Fact] = {"image_rows": rows, "image_cols": cols}
    return {"family": family.name, "image_tokens": rows * cols, **grid}


def _on_disk(place: Path) -> dict[str, Fact]:
    """Bytes of the weights where they lie in a folder."""
    if not place.is_dir():
        return {"bytes_on_disk": None}
    files = [*place.glob("*.safetensors"), *place.glob("*.bin")]
    return {"bytes_on_disk": sum(file.stat().st_size for file in files)}


def _first_line(cause: Exception) -> str:
    return str(cause).strip().splitlines()[0] if str(cause).strip() else repr(cause)
