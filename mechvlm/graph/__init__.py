"""Nodes, edges and circuits of a model, as values that print, compare and are saved."""

from mechvlm.graph.circuit import Circuit
from mechvlm.graph.nodes import LOGITS, Edge, Kind, Node, Shape

__all__ = ["LOGITS", "Circuit", "Edge", "Kind", "Node", "Shape"]
