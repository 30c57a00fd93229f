"""The families that are known, and how a config finds its own."""

from __future__ import annotations

from typing import Any

from mechvlm.errors import FamilyError
from mechvlm.models.families.gemma3 import GEMMA_3
from mechvlm.models.families.llava import LLAVA
from mechvlm.models.families.paligemma import PALIGEMMA
from mechvlm.models.family import Family

__all__ = ["FAMILIES", "find"]

FAMILIES = (LLAVA, GEMMA_3, PALIGEMMA)


def find(config: Any) -> Family:
    """The family of a Hugging Face config.

    Raises:
        FamilyError: The architecture, a part of it or a config key is unknown.
    """
    named = tuple(config.architectures or ()) or (type(config).__name__,)
    for family in FAMILIES:
        prefix = family.architecture.removesuffix("ForConditionalGeneration")
        if family.architecture in named or f"{prefix}Config" in named:
            family.check_config(config)
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise FamilyError(
        f"architecture {' / '.join(named)} is not known here; known are {known}."
    )
