"""Compressed context: how much of an image must be kept to answer questions about it?

`asking.py` answers one question in many ways; `accuracy.py` makes the table of them.
"""

from __future__ import annotations

from mechvlm.analyses.compressed_context.accuracy import KEEPS, context_accuracy
from mechvlm.analyses.compressed_context.asking import context_answerer

__all__ = ["KEEPS", "context_accuracy", "context_answerer"]
