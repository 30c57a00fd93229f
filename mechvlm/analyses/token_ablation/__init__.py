"""Token ablation: which image tokens does an answer need?"""

from __future__ import annotations

from mechvlm.analyses.token_ablation.grounding import grounded_items
from mechvlm.analyses.token_ablation.means import mean_token, mean_token_per_position
from mechvlm.analyses.token_ablation.sweep import token_ablation

__all__ = ["grounded_items", "mean_token", "mean_token_per_position", "token_ablation"]
