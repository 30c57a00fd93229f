"""Flow graphs: groups of tokens by bands of layers, and what costs the answer."""

from __future__ import annotations

from mechvlm.analyses.flow_graph.flow import flow_graph
from mechvlm.analyses.flow_graph.graph import FlowEdge, flow_edges, flow_networkx
from mechvlm.analyses.flow_graph.groups import Grouped

__all__ = ["FlowEdge", "Grouped", "flow_edges", "flow_graph", "flow_networkx"]
