"""Nodes and edges scored by gradients, and their exact effects beside them.

Scores and effects are in one unit: the share of the clean-corrupted gap that is lost
when the clean run gets the corrupted value; 0 is nothing and 1 all of it.
"""

from mechvlm.screening.bound import Bound, bound
from mechvlm.screening.edges import edge_scores
from mechvlm.screening.exact import edge_effects, node_effects
from mechvlm.screening.nodes import node_scores, site_slopes
from mechvlm.screening.scored import EdgeScores, NodeScores

__all__ = [
    "Bound",
    "EdgeScores",
    "NodeScores",
    "bound",
    "edge_effects",
    "edge_scores",
    "node_effects",
    "node_scores",
    "site_slopes",
]
