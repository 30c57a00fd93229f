"""Knockouts by name: an object's cuts, windows of layers, and accuracy over items."""

from __future__ import annotations

from mechvlm.analyses.knockout_table.accuracy import knockout_accuracy
from mechvlm.analyses.knockout_table.cuts import flow_cuts, named_windows, object_cuts

__all__ = ["flow_cuts", "knockout_accuracy", "named_windows", "object_cuts"]
