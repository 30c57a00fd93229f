"""Circuits: found edge by edge, and judged by what is left when all else is ablated."""

from mechvlm.analyses.circuits.discovery import discover
from mechvlm.analyses.circuits.heads import discover_heads
from mechvlm.analyses.circuits.judging import faithfulness, random_baseline
from mechvlm.analyses.circuits.parting import completeness, minimality

__all__ = [
    "completeness",
    "discover",
    "discover_heads",
    "faithfulness",
    "minimality",
    "random_baseline",
]
