"""Planes and lines of numbers: maps, overlays, lines, bars, and two side by side."""
