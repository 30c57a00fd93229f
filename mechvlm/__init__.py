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
    from mechvlm import engine as engine
    from mechvlm import matching as matching
    from mechvlm import readings as readings
    from mechvlm import reference as reference
    from mechvlm import report as report
    from mechvlm import scenes as scenes
    from mechvlm import statistics as statistics
    from mechvlm import viz as viz
    from mechvlm.analyses.activation_patching import (
        activation_patching as activation_patching,
    )
    from mechvlm.analyses.attention_flow import attention_patterns as attention_patterns
    from mechvlm.analyses.knockout import knockout_windows as knockout_windows
    from mechvlm.axes import labelled as labelled
    from mechvlm.axes import open_result as open_result
    from mechvlm.axes import save_result as save_result
    from mechvlm.engine import intervene as intervene
    from mechvlm.errors import BlindRowError as BlindRowError
    from mechvlm.errors import CheckpointError as CheckpointError
    from mechvlm.errors import EngineError as EngineError
    from mechvlm.errors import FamilyError as FamilyError
    from mechvlm.errors import HookError as HookError
    from mechvlm.errors import ImageError as ImageError
    from mechvlm.errors import InteropError as InteropError
    from mechvlm.errors import InterventionError as InterventionError
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
    from mechvlm.interventions import NOTHING as NOTHING
    from mechvlm.interventions import Ablate as Ablate
    from mechvlm.interventions import Add as Add
    from mechvlm.interventions import Knockout as Knockout
    from mechvlm.interventions import Patch as Patch
    from mechvlm.interventions import PathPatch as PathPatch
    from mechvlm.items import Entity as Entity
    from mechvlm.items import Fact as Fact
    from mechvlm.items import Item as Item
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
    from mechvlm.models.generation import Generation as Generation
    from mechvlm.models.hooked import HookedVLM as HookedVLM
    from mechvlm.models.load import load as load
    from mechvlm.papers import cite as cite
    from mechvlm.plan import Plan as Plan
    from mechvlm.plan import plan as plan
    from mechvlm.prompts import Prompt as Prompt
    from mechvlm.readings import Ask as Ask
    from mechvlm.readings import Reading as Reading
    from mechvlm.record import Run as Run
    from mechvlm.record import base_run as base_run
    from mechvlm.record import record as record
    from mechvlm.sites import Site as Site

__version__ = "0.1.0"

# Where each public name is kept: "module" is that module, "module:name" a name in it.
_KEPT = MappingProxyType(
    {
        "Ablate": "mechvlm.interventions:Ablate",
        "Add": "mechvlm.interventions:Add",
        "Ask": "mechvlm.readings:Ask",
        "BlindRowError": "mechvlm.errors:BlindRowError",
        "CheckpointError": "mechvlm.errors:CheckpointError",
        "EngineError": "mechvlm.errors:EngineError",
        "Entity": "mechvlm.items:Entity",
        "Fact": "mechvlm.items:Fact",
        "FamilyError": "mechvlm.errors:FamilyError",
        "Generation": "mechvlm.models.generation:Generation",
        "HookError": "mechvlm.errors:HookError",
        "HookedVLM": "mechvlm.models.hooked:HookedVLM",
        "ImageError": "mechvlm.errors:ImageError",
        "ImageGrid": "mechvlm.layout:ImageGrid",
        "InteropError": "mechvlm.errors:InteropError",
        "InterventionError": "mechvlm.errors:InterventionError",
        "Item": "mechvlm.items:Item",
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
        "OutputError": "mechvlm.errors:OutputError",
        "PairError": "mechvlm.errors:PairError",
        "Patch": "mechvlm.interventions:Patch",
        "PathPatch": "mechvlm.interventions:PathPatch",
        "PlaceholderError": "mechvlm.errors:PlaceholderError",
        "Plan": "mechvlm.plan:Plan",
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
        "TokenError": "mechvlm.errors:TokenError",
        "UnreadableImageError": "mechvlm.errors:UnreadableImageError",
        "attention_patterns": "mechvlm.analyses.attention_flow:attention_patterns",
        "activation_patching": (
            "mechvlm.analyses.activation_patching:activation_patching"
        ),
        "axes": "mechvlm.axes",
        "base_run": "mechvlm.record:base_run",
        "cite": "mechvlm.papers:cite",
        "engine": "mechvlm.engine",
        "intervene": "mechvlm.engine:intervene",
        "kl_divergence": "mechvlm.metrics:kl_divergence",
        "knockout_windows": "mechvlm.analyses.knockout:knockout_windows",
        "labelled": "mechvlm.axes:labelled",
        "load": "mechvlm.models.load:load",
        "log_probability": "mechvlm.metrics:log_probability",
        "logit_difference": "mechvlm.metrics:logit_difference",
        "matching": "mechvlm.matching",
        "open_result": "mechvlm.axes:open_result",
        "plan": "mechvlm.plan:plan",
        "probability": "mechvlm.metrics:probability",
        "probability_change": "mechvlm.metrics:probability_change",
        "rank": "mechvlm.metrics:rank",
        "readings": "mechvlm.readings",
        "record": "mechvlm.record:record",
        "recovery": "mechvlm.metrics:recovery",
        "reference": "mechvlm.reference",
        "report": "mechvlm.report",
        "save_result": "mechvlm.axes:save_result",
        "scenes": "mechvlm.scenes",
        "statistics": "mechvlm.statistics",
        "viz": "mechvlm.viz",
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
