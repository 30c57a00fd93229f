"""Results in, figures out; never a model."""

from mechvlm.viz.attention import attention
from mechvlm.viz.bars import bars
from mechvlm.viz.circuit import circuit
from mechvlm.viz.collapse import collapse
from mechvlm.viz.compare import compare
from mechvlm.viz.figure import Figure
from mechvlm.viz.flow import flow
from mechvlm.viz.heatmap import heatmap
from mechvlm.viz.last_token import attention_from_last, attention_into
from mechvlm.viz.lens import lens
from mechvlm.viz.lines import lines
from mechvlm.viz.overlay import overlay
from mechvlm.viz.palette import DARK, LIGHT
from mechvlm.viz.tokens import tokens
from mechvlm.viz.top_tokens import top_tokens

__all__ = [
    "DARK",
    "LIGHT",
    "Figure",
    "attention",
    "attention_from_last",
    "attention_into",
    "bars",
    "circuit",
    "collapse",
    "compare",
    "flow",
    "heatmap",
    "lens",
    "lines",
    "overlay",
    "tokens",
    "top_tokens",
]
