"""The three papers' whole sets of analyses, as `mechvlm reproduce` runs them."""

from mechvlm.reproduce.job import STUDIES, run

__all__ = ["STUDIES", "run"]
