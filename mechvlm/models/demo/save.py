"""Write the checkpoint in the form that every recent transformers reads."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from mechvlm.models.demo.processor import build_processor

_NOW, _EVER = "vision_tower.", "vision_tower.vision_model."


def save_checkpoint(network: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write weights, configuration and processor.

    transformers 5 writes names that transformers 4 drops without an error; the
    published LLaVA checkpoints' names are read by both, so those are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    _rename_tower(folder / "model.safetensors")
    _name_tokenizer(folder / "tokenizer_config.json")
    _write_preprocessor(folder)


def _rename_tower(path: Path) -> None:
    weights = {
        name.replace(_NOW, _EVER, 1) if _EVER not in name else name: weight
        for name, weight in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner alone; a package is for all


def _name_tokenizer(path: Path) -> None:
    config = json.loads(path.read_text())
    config.pop("backend", None)
    config.pop("extra_special_tokens", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = ["<image>"]
    path.write_text(json.dumps(config, indent=2) + "\n")


def _write_preprocessor(folder: Path) -> None:
    """Transformers 4 looks for the image processor in a file of its own."""
    config = json.loads((folder / "processor_config.json").read_text())
    pictures = config["image_processor"] | {"processor_class": "LlavaProcessor"}
    text = json.dumps(pictures, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text)
