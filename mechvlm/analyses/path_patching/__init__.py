"""Path patching: which nodes another node hears, and what the answer owes to that."""

from __future__ import annotations

from mechvlm.analyses.path_patching.sweep import path_patching

__all__ = ["path_patching"]
