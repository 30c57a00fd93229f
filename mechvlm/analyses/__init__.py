"""Analyses: one method a file; each plans, intervenes, measures and labels."""
