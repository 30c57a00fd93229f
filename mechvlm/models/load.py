"""Loading a checkpoint: the shipped demo, a folder, or a name on the model hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar

from mechvlm.errors import CheckpointError, FamilyError, MechVLMError
from mechvlm.models import demo, families
from mechvlm.models.checks import check_model
from mechvlm.models.hooked import HookedVLM

__all__ = ["SHIPPED", "load", "without_bars"]

SHIPPED = {"demo": demo.PATH, "demo-control": demo.CONTROL_PATH}
"""Names of the checkpoints that come with the package, and their folders."""

_HUB = ("cache_dir", "local_files_only", "subfolder", "token")
"""Arguments that say where a checkpoint is; config and processor need them too."""

_OLD_BUFFERS = ("position_ids", "rotary_emb.inv_freq")
"""Ends of keys that older versions saved and newer ones make themselves."""


def load(
    name_or_path: str | Path = "demo",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    device_map: Any = None,
    check: bool = True,
    **hf_kwargs: Any,
) -> HookedVLM:
    """Load a vision-language model, hooked.

    Args:
        name_or_path: "demo" or "demo-control" for the tiny trained models that come
            with the package, a folder in Hugging Face format, or a name on the hub.
        device: Where to put it; None takes a CUDA device where there is one, else the
            CPU, unless `device_map` says otherwise.
        dtype: Precision of the weights; None takes the checkpoint's own.
        revision: Branch, tag or commit on the hub.
        device_map: Spread over devices, as in transformers ("auto", ...).
        check: Compare hooked and plain forward, image on and off, and attention rows
            once after loading.
        **hf_kwargs: Handed on to `from_pretrained`.

    Raises:
        CheckpointError: There is no such checkpoint, or it is incomplete or corrupted.
        FamilyError: Its architecture is not known here.
        ModelCheckError: It fails a load-time check.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> vlm.cfg.n_layers, vlm.cfg.family
        (8, 'llava')
    """
    place = SHIPPED.get(str(name_or_path), name_or_path)
    _check_folder(place)
    model, report, processor = _pretrained(
        place, revision, dtype=dtype or "auto", device_map=device_map, **hf_kwargs
    )
    _check_weights(place, report)
    if device is None and device_map is None and torch.cuda.is_available():
        device = "cuda"
    if device is not None:
        model = model.to(device)
    vlm = HookedVLM(model.eval(), processor)
    if str(name_or_path) in SHIPPED:
        vlm.cfg = replace(vlm.cfg, model_name=str(name_or_path))
    if check:
        check_model(vlm)
    return vlm


def without_bars() -> None:
    """Show no progress bars of transformers from now on, as its reading of weights."""
    disable_progress_bar()


def _check_folder(place: str | Path) -> None:
    """Refuse what looks like a folder and is not a whole checkpoint."""
    path = Path(place)
    if not path.exists():
        if path.is_absolute() or str(place).startswith((".", "~")):
            raise CheckpointError(f"there is no checkpoint folder {place}.")
        return
    needed = ("config.json",)
    missing = [name for name in needed if not (path / name).is_file()]
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        missing.append("*.safetensors")
    if missing:
        raise CheckpointError(
            f"{place} is no whole checkpoint: {', '.join(missing)} missing. Was its"
            " copying or saving interrupted? Wanted what save_pretrained of model and"
            " processor writes."
        )


def _pretrained(
    place: str | Path, revision: str | None, **kwargs: Any
) -> tuple[Any, dict[str, Any], Any]:
    hub = {key: kwargs[key] for key in _HUB if key in kwargs} | {"revision": revision}
    try:
        families.find(_config(place, hub))
        processor = AutoProcessor.from_pretrained(place, **hub)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            place, revision=revision, output_loading_info=True, **kwargs
        )
    except MechVLMError:
        raise
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as cause:
        raise CheckpointError(
            f"cannot load {place}: {cause}\nA folder must hold what save_pretrained of"
            " model and processor writes; a hub name needs the network once, or a"
            " filled cache with HF_HUB_OFFLINE=1."
        ) from cause
    model, report = loaded
    return model, report, processor


def _config(place: str | Path, hub: dict[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(place, **hub)
    except ValueError as cause:  # it read the file and knows no such model type
        raise FamilyError(
            f"the config of {place} is not known here: {cause}"
        ) from cause


def _check_weights(place: str | Path, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would fill in at random or leave out."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = sorted(str(key) for key in report.get(kind) or ())
        found = [key for key in found if not key.endswith(_OLD_BUFFERS)]
        if found:
            raise CheckpointError(
                f"{place} has {len(found)} {kind.replace('_', ' ')}, such as"
                f" {found[0]}: part of the model would be random or ignored. The"
                " checkpoint is incomplete or was saved by an incompatible version of"
                " transformers."
            )
