"""`mechvlm info`: what is installed here, and what a checkpoint is."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from mechvlm.cli.told import Told

__all__ = ["installed", "looked_at"]


def installed() -> Told:
    """What is installed, where models would run, and where the demo is."""
    from mechvlm.models.demo import PATH

    facts = {"python": f"{platform.python_version()} on {platform.system()}"}
    for package in ("mechvlm", "torch", "transformers", "transformer-lens"):
        facts[package] = _version(package)
    facts["device"] = _device()
    facts["torchvision"] = _torchvision()
    there = (PATH / "config.json").exists()
    facts["demo"] = str(PATH) if there else f"missing from {PATH}"
    return Told("info", _columns(facts), facts)


def looked_at(name: str) -> Told:
    """What a checkpoint is, from its config alone; its code is 1 if it is refused."""
    from mechvlm.models.checkpoint import checkpoint

    found = checkpoint(name)
    told = {key: fact for key, fact in found.facts.items() if fact is not None}
    size = told.pop("bytes_on_disk", None)
    shown = {key.replace("_", " "): str(fact) for key, fact in told.items()}
    if size is not None:
        shown["weights"] = _size(int(size)) if size else "none in this folder"
    shown["supported"] = "no" if found.refused else "yes"
    lines = _columns({"model": name, **shown})
    if found.refused:
        lines += ["", found.refused, "", _ADVICE]
    facts = {
        "model": name,
        "supported": not found.refused,
        "why_not": found.refused or None,
        **found.facts,
    }
    return Told("info", lines, facts, code=1 if found.refused else 0)


_ADVICE = (
    "What can be done: take a checkpoint of an architecture that is known, bring"
    " transformers up to date if it is newer than yours, or describe the architecture"
    " as a Family (see mechvlm/models/families), which is a value and needs no new"
    " class."
)


def _columns(facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts))
    return [f"{name:<{width}}  {fact}" for name, fact in facts.items()]


def _size(n_bytes: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if n_bytes >= 10**power:
            return f"{n_bytes / 10**power:.1f} {unit}"
    return f"{n_bytes} bytes"


def _version(package: str) -> str:
    """Version of an installed package, by its name on PyPI."""
    if package == "mechvlm":
        from mechvlm import __version__

        return __version__
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    """The best device that is there, with what tells it from others."""
    import torch

    if torch.cuda.is_available():
        _, total_bytes = torch.cuda.mem_get_info()
        return f"cuda ({torch.cuda.get_device_name()}, {total_bytes / 2**30:.0f} GiB)"
    if torch.backends.mps.is_available():
        return "mps"
    return f"cpu ({torch.get_num_threads()} threads)"


def _torchvision() -> str:
    """Whether a torchvision is there, and whether it lets LLaVA be imported.

    Transformers imports any torchvision that it finds, so one built for another torch
    (the one on PyPI beside a CPU torch) breaks every model that reads images.
    """
    found = _version("torchvision")
    if found == "not installed":
        return f"{found} (not needed)"
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as broken:
        return (
            f"{found} cannot be imported beside torch {_version('torch')}"
            f" ({broken}); no image model can be loaded."
            " Fix: pip uninstall torchvision (mechvlm does not need it)"
        )
    return f"{found} (works, not needed)"
