"""How the results of each analysis are known, and what is drawn and said of them."""

from mechvlm.report.rules.circuits import wired
from mechvlm.report.rules.plain import plain
from mechvlm.report.rules.table import RULES

__all__ = ["RULES", "plain", "wired"]
