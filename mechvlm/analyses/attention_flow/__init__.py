"""Attention read as it is: patterns, fractions by group, maps, places, rollout."""

from __future__ import annotations

from mechvlm.analyses.attention_flow.fractions import (
    attention_fraction,
    pool_fractions,
)
from mechvlm.analyses.attention_flow.localization import localization
from mechvlm.analyses.attention_flow.maps import attention_map
from mechvlm.analyses.attention_flow.naming import localization_accuracy
from mechvlm.analyses.attention_flow.patterns import attention_patterns
from mechvlm.analyses.attention_flow.rollout import attention_rollout
from mechvlm.analyses.attention_flow.rows import word_rows

__all__ = [
    "attention_fraction",
    "attention_map",
    "attention_patterns",
    "attention_rollout",
    "localization",
    "localization_accuracy",
    "pool_fractions",
    "word_rows",
]
