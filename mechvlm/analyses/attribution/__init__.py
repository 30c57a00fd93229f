"""Attribution by gradients: of tokens, of patches, and of edges with exact checks."""

from __future__ import annotations

from mechvlm.analyses.attribution.patching import attribution_patching
from mechvlm.analyses.attribution.screened import screen_then_verify
from mechvlm.analyses.attribution.tokens import gradient_x_input, integrated_gradients

__all__ = [
    "attribution_patching",
    "gradient_x_input",
    "integrated_gradients",
    "screen_then_verify",
]
