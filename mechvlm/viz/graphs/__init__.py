"""Graphs drawn in rows: circuits, and flows between token groups."""
