"""Results in, figures out; never a model."""

from mechvlm.viz.figure import Figure
from mechvlm.viz.graphs.circuit import circuit
from mechvlm.viz.graphs.flow import flow
from mechvlm.viz.lenses.lens import lens
from mechvlm.viz.palette import DARK, LIGHT
from mechvlm.viz.plots.bars import bars
from mechvlm.viz.plots.compare import compare
from mechvlm.viz.plots.heatmap import heatmap
from mechvlm.viz.plots.lines import lines
from mechvlm.viz.plots.overlay import overlay
from mechvlm.viz.widgets.attention import attention
from mechvlm.viz.widgets.collapse import collapse
from mechvlm.viz.widgets.last_token import attention_from_last, attention_into
from mechvlm.viz.widgets.tokens import tokens
from mechvlm.viz.widgets.top_tokens import top_tokens

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
