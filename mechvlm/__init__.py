"""Where in a vision-language model does an answer come from?

Everything public is reachable from here (`import mechvlm as mv`) and nothing is loaded
before it is asked for: neither torch nor TransformerLens costs `mechvlm --help` a
second. `MECHVLM_TYPECHECK=1` in the environment checks every call's types and shapes
while the package runs.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechvlm import axes as axes
    from mechvlm import datasets as datasets
    from mechvlm import engine as engine
    from mechvlm import judges as judges
    from mechvlm import matching as matching
    from mechvlm import readings as readings
    from mechvlm import reference as reference
    from mechvlm import scenes as scenes
    from mechvlm import screening as screening
    from mechvlm import selecting as selecting
    from mechvlm import statistics as statistics
    from mechvlm import viz as viz
    from mechvlm.ablating import Values as Values
    from mechvlm.ablating import mean_run as mean_run
    from mechvlm.analyses.activation_patching import (
        activation_patching as activation_patching,
    )
    from mechvlm.analyses.attention_flow import attention_fraction as attention_fraction
    from mechvlm.analyses.attention_flow import attention_map as attention_map
    from mechvlm.analyses.attention_flow import attention_patterns as attention_patterns
    from mechvlm.analyses.attention_flow import attention_rollout as attention_rollout
    from mechvlm.analyses.attention_flow import localization as localization
    from mechvlm.analyses.attention_flow import (
        localization_accuracy as localization_accuracy,
    )
    from mechvlm.analyses.attention_flow import pool_fractions as pool_fractions
    from mechvlm.analyses.attention_flow import word_rows as word_rows
    from mechvlm.analyses.attribution import (
        attribution_patching as attribution_patching,
    )
    from mechvlm.analyses.attribution import gradient_x_input as gradient_x_input
    from mechvlm.analyses.attribution import (
        integrated_gradients as integrated_gradients,
    )
    from mechvlm.analyses.attribution import screen_then_verify as screen_then_verify
    from mechvlm.analyses.caption_knockout import caption_knockout as caption_knockout
    from mechvlm.analyses.caption_knockout import lost_objects as lost_objects
    from mechvlm.analyses.caption_knockout import rejudge as rejudge
    from mechvlm.analyses.circuit_overlap import circuit_overlap as circuit_overlap
    from mechvlm.analyses.circuits import completeness as completeness
    from mechvlm.analyses.circuits import discover as discover
    from mechvlm.analyses.circuits import discover_heads as discover_heads
    from mechvlm.analyses.circuits import faithfulness as faithfulness
    from mechvlm.analyses.circuits import minimality as minimality
    from mechvlm.analyses.circuits import random_baseline as random_baseline
    from mechvlm.analyses.compressed_context import context_accuracy as context_accuracy
    from mechvlm.analyses.compressed_context import context_answerer as context_answerer
    from mechvlm.analyses.cross_patching import Swap as Swap
    from mechvlm.analyses.cross_patching import cross_patch as cross_patch
    from mechvlm.analyses.cumulative_knockout import (
        cumulative_knockout as cumulative_knockout,
    )
    from mechvlm.analyses.flow_graph import FlowEdge as FlowEdge
    from mechvlm.analyses.flow_graph import Grouped as Grouped
    from mechvlm.analyses.flow_graph import flow_edges as flow_edges
    from mechvlm.analyses.flow_graph import flow_graph as flow_graph
    from mechvlm.analyses.flow_graph import flow_networkx as flow_networkx
    from mechvlm.analyses.holding import back_patch as back_patch
    from mechvlm.analyses.holding import freeze as freeze
    from mechvlm.analyses.knockout import knockout_windows as knockout_windows
    from mechvlm.analyses.knockout_table import flow_cuts as flow_cuts
    from mechvlm.analyses.knockout_table import knockout_accuracy as knockout_accuracy
    from mechvlm.analyses.knockout_table import named_windows as named_windows
    from mechvlm.analyses.knockout_table import object_cuts as object_cuts
    from mechvlm.analyses.logit_lens import answer_track as answer_track
    from mechvlm.analyses.logit_lens import logit_lens as logit_lens
    from mechvlm.analyses.logit_lens import object_hit_rate as object_hit_rate
    from mechvlm.analyses.logit_lens import object_lens as object_lens
    from mechvlm.analyses.mme import mme as mme
    from mechvlm.analyses.modality_gap import modality_gap as modality_gap
    from mechvlm.analyses.path_patching import path_patching as path_patching
    from mechvlm.analyses.token_ablation import grounded_items as grounded_items
    from mechvlm.analyses.token_ablation import mean_token as mean_token
    from mechvlm.analyses.token_ablation import (
        mean_token_per_position as mean_token_per_position,
    )
    from mechvlm.analyses.token_ablation import token_ablation as token_ablation
    from mechvlm.axes import labelled as labelled
    from mechvlm.axes import open_result as open_result
    from mechvlm.axes import save_result as save_result
    from mechvlm.engine import intervene as intervene
    from mechvlm.errors import ArgumentError as ArgumentError
    from mechvlm.errors import BlindRowError as BlindRowError
    from mechvlm.errors import CheckpointError as CheckpointError
    from mechvlm.errors import CircuitError as CircuitError
    from mechvlm.errors import DatasetError as DatasetError
    from mechvlm.errors import EngineError as EngineError
    from mechvlm.errors import FamilyError as FamilyError
    from mechvlm.errors import HookError as HookError
    from mechvlm.errors import ImageError as ImageError
    from mechvlm.errors import InteropError as InteropError
    from mechvlm.errors import InterventionError as InterventionError
    from mechvlm.errors import JudgeError as JudgeError
    from mechvlm.errors import LayerError as LayerError
    from mechvlm.errors import LayoutError as LayoutError
    from mechvlm.errors import MechVLMError as MechVLMError
    from mechvlm.errors import MechVLMWarning as MechVLMWarning
    from mechvlm.errors import MetricError as MetricError
    from mechvlm.errors import MissingImageError as MissingImageError
    from mechvlm.errors import ModelCheckError as ModelCheckError
    from mechvlm.errors import OutputError as OutputError
    from mechvlm.errors import PairError as PairError
    from mechvlm.errors import PlaceholderError as PlaceholderError
    from mechvlm.errors import PromptError as PromptError
    from mechvlm.errors import RegionError as RegionError
    from mechvlm.errors import ResultError as ResultError
    from mechvlm.errors import RunError as RunError
    from mechvlm.errors import SceneError as SceneError
    from mechvlm.errors import SiteError as SiteError
    from mechvlm.errors import TokenError as TokenError
    from mechvlm.errors import UnreadableImageError as UnreadableImageError
    from mechvlm.graph.circuit import Circuit as Circuit
    from mechvlm.graph.nodes import Edge as Edge
    from mechvlm.graph.nodes import Node as Node
    from mechvlm.graph.nodes import Shape as Shape
    from mechvlm.interventions import NOTHING as NOTHING
    from mechvlm.interventions import Ablate as Ablate
    from mechvlm.interventions import Add as Add
    from mechvlm.interventions import Knockout as Knockout
    from mechvlm.interventions import Patch as Patch
    from mechvlm.interventions import PathPatch as PathPatch
    from mechvlm.items import Entity as Entity
    from mechvlm.items import Fact as Fact
    from mechvlm.items import Item as Item
    from mechvlm.items import PicturePair as PicturePair
    from mechvlm.layout import ImageGrid as ImageGrid
    from mechvlm.layout import Layout as Layout
    from mechvlm.layout import Positions as Positions
    from mechvlm.metrics import Metric as Metric
    from mechvlm.metrics import kl_divergence as kl_divergence
    from mechvlm.metrics import log_probability as log_probability
    from mechvlm.metrics import logit_difference as logit_difference
    from mechvlm.metrics import probability as probability
    from mechvlm.metrics import probability_change as probability_change
    from mechvlm.metrics import rank as rank
    from mechvlm.metrics import recovery as recovery
    from mechvlm.models.asking import ask as ask
    from mechvlm.models.compressing import Count as Count
    from mechvlm.models.compressing import compressed_context as compressed_context
    from mechvlm.models.context import Context as Context
    from mechvlm.models.generation import Generation as Generation
    from mechvlm.models.hooked import HookedVLM as HookedVLM
    from mechvlm.models.load import load as load
    from mechvlm.models.pieces import first_pieces as first_pieces
    from mechvlm.pairs import Pair as Pair
    from mechvlm.pairs import bind as bind
    from mechvlm.pairs import groups_of as groups_of
    from mechvlm.papers import cite as cite
    from mechvlm.plan import Plan as Plan
    from mechvlm.plan import plan as plan
    from mechvlm.posing import Posed as Posed
    from mechvlm.prompts import Prompt as Prompt
    from mechvlm.readings import Ask as Ask
    from mechvlm.readings import Reading as Reading
    from mechvlm.record import Run as Run
    from mechvlm.record import base_run as base_run
    from mechvlm.record import record as record
    from mechvlm.report import report as report
    from mechvlm.sites import Site as Site

__version__ = "0.1.0"

# Where each public name is kept: "module" is that module, "module:name" a name in it.
_KEPT = MappingProxyType(
    {
        "Ablate": "mechvlm.interventions:Ablate",
        "Add": "mechvlm.interventions:Add",
        "ArgumentError": "mechvlm.errors:ArgumentError",
        "Ask": "mechvlm.readings:Ask",
        "BlindRowError": "mechvlm.errors:BlindRowError",
        "CheckpointError": "mechvlm.errors:CheckpointError",
        "Circuit": "mechvlm.graph.circuit:Circuit",
        "CircuitError": "mechvlm.errors:CircuitError",
        "Context": "mechvlm.models.context:Context",
        "Count": "mechvlm.models.compressing:Count",
        "DatasetError": "mechvlm.errors:DatasetError",
        "Edge": "mechvlm.graph.nodes:Edge",
        "EngineError": "mechvlm.errors:EngineError",
        "Entity": "mechvlm.items:Entity",
        "Fact": "mechvlm.items:Fact",
        "FamilyError": "mechvlm.errors:FamilyError",
        "FlowEdge": "mechvlm.analyses.flow_graph:FlowEdge",
        "Generation": "mechvlm.models.generation:Generation",
        "Grouped": "mechvlm.analyses.flow_graph:Grouped",
        "HookError": "mechvlm.errors:HookError",
        "HookedVLM": "mechvlm.models.hooked:HookedVLM",
        "ImageError": "mechvlm.errors:ImageError",
        "ImageGrid": "mechvlm.layout:ImageGrid",
        "InteropError": "mechvlm.errors:InteropError",
        "InterventionError": "mechvlm.errors:InterventionError",
        "Item": "mechvlm.items:Item",
        "JudgeError": "mechvlm.errors:JudgeError",
        "Knockout": "mechvlm.interventions:Knockout",
        "LayerError": "mechvlm.errors:LayerError",
        "Layout": "mechvlm.layout:Layout",
        "LayoutError": "mechvlm.errors:LayoutError",
        "MechVLMError": "mechvlm.errors:MechVLMError",
        "MechVLMWarning": "mechvlm.errors:MechVLMWarning",
        "Metric": "mechvlm.metrics:Metric",
        "MetricError": "mechvlm.errors:MetricError",
        "MissingImageError": "mechvlm.errors:MissingImageError",
        "ModelCheckError": "mechvlm.errors:ModelCheckError",
        "NOTHING": "mechvlm.interventions:NOTHING",
        "Node": "mechvlm.graph.nodes:Node",
        "OutputError": "mechvlm.errors:OutputError",
        "Pair": "mechvlm.pairs:Pair",
        "PairError": "mechvlm.errors:PairError",
        "Patch": "mechvlm.interventions:Patch",
        "PathPatch": "mechvlm.interventions:PathPatch",
        "PicturePair": "mechvlm.items:PicturePair",
        "PlaceholderError": "mechvlm.errors:PlaceholderError",
        "Plan": "mechvlm.plan:Plan",
        "Posed": "mechvlm.posing:Posed",
        "Positions": "mechvlm.layout:Positions",
        "Prompt": "mechvlm.prompts:Prompt",
        "PromptError": "mechvlm.errors:PromptError",
        "Reading": "mechvlm.readings:Reading",
        "RegionError": "mechvlm.errors:RegionError",
        "ResultError": "mechvlm.errors:ResultError",
        "Run": "mechvlm.record:Run",
        "RunError": "mechvlm.errors:RunError",
        "SceneError": "mechvlm.errors:SceneError",
        "Site": "mechvlm.sites:Site",
        "SiteError": "mechvlm.errors:SiteError",
        "Swap": "mechvlm.analyses.cross_patching:Swap",
        "TokenError": "mechvlm.errors:TokenError",
        "UnreadableImageError": "mechvlm.errors:UnreadableImageError",
        "attention_fraction": "mechvlm.analyses.attention_flow:attention_fraction",
        "attention_map": "mechvlm.analyses.attention_flow:attention_map",
        "attention_patterns": "mechvlm.analyses.attention_flow:attention_patterns",
        "attention_rollout": "mechvlm.analyses.attention_flow:attention_rollout",
        "activation_patching": (
            "mechvlm.analyses.activation_patching:activation_patching"
        ),
        "Values": "mechvlm.ablating:Values",
        "answer_track": "mechvlm.analyses.logit_lens:answer_track",
        "ask": "mechvlm.models.asking:ask",
        "attribution_patching": "mechvlm.analyses.attribution:attribution_patching",
        "axes": "mechvlm.axes",
        "back_patch": "mechvlm.analyses.holding:back_patch",
        "base_run": "mechvlm.record:base_run",
        "bind": "mechvlm.pairs:bind",
        "caption_knockout": "mechvlm.analyses.caption_knockout:caption_knockout",
        "circuit_overlap": "mechvlm.analyses.circuit_overlap:circuit_overlap",
        "cite": "mechvlm.papers:cite",
        "compressed_context": "mechvlm.models.compressing:compressed_context",
        "context_accuracy": "mechvlm.analyses.compressed_context:context_accuracy",
        "context_answerer": "mechvlm.analyses.compressed_context:context_answerer",
        "cross_patch": "mechvlm.analyses.cross_patching:cross_patch",
        "cumulative_knockout": (
            "mechvlm.analyses.cumulative_knockout:cumulative_knockout"
        ),
        "datasets": "mechvlm.datasets",
        "engine": "mechvlm.engine",
        "first_pieces": "mechvlm.models.pieces:first_pieces",
        "flow_cuts": "mechvlm.analyses.knockout_table:flow_cuts",
        "flow_edges": "mechvlm.analyses.flow_graph:flow_edges",
        "flow_graph": "mechvlm.analyses.flow_graph:flow_graph",
        "flow_networkx": "mechvlm.analyses.flow_graph:flow_networkx",
        "gradient_x_input": "mechvlm.analyses.attribution:gradient_x_input",
        "grounded_items": "mechvlm.analyses.token_ablation:grounded_items",
        "groups_of": "mechvlm.pairs:groups_of",
        "integrated_gradients": "mechvlm.analyses.attribution:integrated_gradients",
        "freeze": "mechvlm.analyses.holding:freeze",
        "intervene": "mechvlm.engine:intervene",
        "judges": "mechvlm.judges",
        "kl_divergence": "mechvlm.metrics:kl_divergence",
        "knockout_accuracy": "mechvlm.analyses.knockout_table:knockout_accuracy",
        "knockout_windows": "mechvlm.analyses.knockout:knockout_windows",
        "completeness": "mechvlm.analyses.circuits:completeness",
        "discover_heads": "mechvlm.analyses.circuits:discover_heads",
        "discover": "mechvlm.analyses.circuits:discover",
        "faithfulness": "mechvlm.analyses.circuits:faithfulness",
        "minimality": "mechvlm.analyses.circuits:minimality",
        "random_baseline": "mechvlm.analyses.circuits:random_baseline",
        "mean_run": "mechvlm.ablating:mean_run",
        "Shape": "mechvlm.graph.nodes:Shape",
        "labelled": "mechvlm.axes:labelled",
        "load": "mechvlm.models.load:load",
        "log_probability": "mechvlm.metrics:log_probability",
        "localization": "mechvlm.analyses.attention_flow:localization",
        "localization_accuracy": (
            "mechvlm.analyses.attention_flow:localization_accuracy"
        ),
        "logit_difference": "mechvlm.metrics:logit_difference",
        "logit_lens": "mechvlm.analyses.logit_lens:logit_lens",
        "lost_objects": "mechvlm.analyses.caption_knockout:lost_objects",
        "matching": "mechvlm.matching",
        "mean_token": "mechvlm.analyses.token_ablation:mean_token",
        "mean_token_per_position": (
            "mechvlm.analyses.token_ablation:mean_token_per_position"
        ),
        "mme": "mechvlm.analyses.mme:mme",
        "modality_gap": "mechvlm.analyses.modality_gap:modality_gap",
        "named_windows": "mechvlm.analyses.knockout_table:named_windows",
        "object_cuts": "mechvlm.analyses.knockout_table:object_cuts",
        "object_hit_rate": "mechvlm.analyses.logit_lens:object_hit_rate",
        "object_lens": "mechvlm.analyses.logit_lens:object_lens",
        "open_result": "mechvlm.axes:open_result",
        "path_patching": "mechvlm.analyses.path_patching:path_patching",
        "plan": "mechvlm.plan:plan",
        "pool_fractions": "mechvlm.analyses.attention_flow:pool_fractions",
        "probability": "mechvlm.metrics:probability",
        "probability_change": "mechvlm.metrics:probability_change",
        "rank": "mechvlm.metrics:rank",
        "readings": "mechvlm.readings",
        "record": "mechvlm.record:record",
        "recovery": "mechvlm.metrics:recovery",
        "reference": "mechvlm.reference",
        "rejudge": "mechvlm.analyses.caption_knockout:rejudge",
        "report": "mechvlm.report:report",
        "save_result": "mechvlm.axes:save_result",
        "scenes": "mechvlm.scenes",
        "screen_then_verify": "mechvlm.analyses.attribution:screen_then_verify",
        "screening": "mechvlm.screening",
        "selecting": "mechvlm.selecting",
        "statistics": "mechvlm.statistics",
        "token_ablation": "mechvlm.analyses.token_ablation:token_ablation",
        "viz": "mechvlm.viz",
        "word_rows": "mechvlm.analyses.attention_flow:word_rows",
    }
)

__all__ = ["__version__", *_KEPT]

if not TYPE_CHECKING:  # a type checker would believe any misspelt name after this

    def __getattr__(name: str) -> object:
        """Load the module that keeps `name` and remember what it holds."""
        if name not in _KEPT:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, inner = _KEPT[name].partition(":")
        found = import_module(module)
        globals()[name] = vars(found)[inner] if inner else found
        return globals()[name]


def __dir__() -> list[str]:
    """Every public name, loaded or not."""
    return sorted({*globals(), *__all__})


class _FrontDoor(ModuleType):
    """This module, where a submodule never hides the function of the same name.

    Importing `mechvlm.record` makes Python bind that module to `mechvlm.record`, where
    users expect the function `record` that it keeps.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Bind `name`, and the public function in place of its own submodule."""
        if isinstance(value, ModuleType) and name in _KEPT:
            _, _, inner = _KEPT[name].partition(":")
            value = vars(value)[inner] if inner else value
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontDoor

if os.environ.get("MECHVLM_TYPECHECK") == "1":
    from jaxtyping import install_import_hook

    install_import_hook(__name__, "beartype.beartype")
