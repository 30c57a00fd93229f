"""Results and words on one self-contained page that asks nothing of the network."""

from mechvlm.report.figures import analysis_of, figures_of
from mechvlm.report.page import Section, page, write
from mechvlm.report.shown import Shown
from mechvlm.report.whole import report

__all__ = [
    "Section",
    "Shown",
    "analysis_of",
    "figures_of",
    "page",
    "report",
    "write",
]
