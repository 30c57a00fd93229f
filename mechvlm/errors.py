"""Every deliberate error of the package.

Each error says what came, what was wanted, the usual cause and the fix, so that the
message alone is enough to go on.

    MechVLMError
    |-- ArgumentError          an argument of another kind than is wanted
    |-- CheckpointError        a checkpoint folder that cannot be loaded
    |-- CircuitError           a node, edge or circuit that no model can have
    |-- DatasetError           files that are not the data set they should be
    |-- EngineError            a model or base run that row-wise passes cannot serve
    |-- FamilyError            an architecture or config key that is not understood
    |-- HookError              a hook that cannot fire, or did not
    |-- ImageError             an image that is one too many
    |   |-- MissingImageError      a prompt that needs an image and got none
    |   `-- UnreadableImageError   a file or object that is no picture
    |-- InteropError           another library's model that cannot be made
    |-- InterventionError      an intervention that means nothing on this prompt
    |   `-- BlindRowError          a knockout that leaves a row nothing to read
    |-- JudgeError             a judge that cannot be made, asked or understood
    |-- LayoutError            positions that cannot be what was asked
    |   `-- RegionError            a box or mask that lies outside the picture
    |-- MetricError            a number that the logits cannot give
    |-- ModelCheckError        a loaded model that fails its load-time checks
    |-- PromptError            a prompt that cannot be built
    |   |-- PairError              two prompts that cannot be matched by position
    |   `-- PlaceholderError       more or fewer image placeholders than images
    |-- ResultError            a result that cannot be labelled, saved or opened
    |   `-- OutputError            an output folder that cannot be trusted
    |-- RunError               a recorded run that lacks what is asked of it
    |-- SceneError             a synthetic scene that cannot be drawn
    |-- SiteError              a place in the network that does not exist
    |   `-- LayerError             a layer, head or window out of range
    `-- TokenError             a word that is not exactly one token

Each is also the builtin kind that fits it (ValueError, KeyError, ...), so that code
which knows nothing of this package still catches it.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BlindRowError",
    "CheckpointError",
    "CircuitError",
    "DatasetError",
    "EngineError",
    "FamilyError",
    "HookError",
    "ImageError",
    "InteropError",
    "InterventionError",
    "JudgeError",
    "LayerError",
    "LayoutError",
    "MechVLMError",
    "MechVLMWarning",
    "MetricError",
    "MissingImageError",
    "ModelCheckError",
    "OutputError",
    "PairError",
    "PlaceholderError",
    "PromptError",
    "RegionError",
    "ResultError",
    "RunError",
    "SceneError",
    "SiteError",
    "TokenError",
    "UnreadableImageError",
]


class MechVLMError(Exception):
    """Anything that this package refuses on purpose."""


class MechVLMWarning(UserWarning):
    """Something that is allowed but probably not what was meant."""


class ArgumentError(MechVLMError, TypeError):
    """An argument of another kind than is wanted."""


class CheckpointError(MechVLMError, OSError):
    """A checkpoint folder that cannot be loaded."""


class CircuitError(MechVLMError, ValueError):
    """A node, an edge or a circuit that no model, or not this one, can have."""


class DatasetError(MechVLMError, ValueError):
    """Files that are not the data set that they should be."""


class EngineError(MechVLMError, RuntimeError):
    """Row-wise passes cannot be made of this model, or from this base run."""


class FamilyError(MechVLMError, ValueError):
    """An architecture or a config key that this package does not understand."""


class HookError(MechVLMError, ValueError):
    """A hook that cannot fire, or that was added and never did."""


class ImageError(MechVLMError, ValueError):
    """An image that does not fit its prompt."""


class MissingImageError(ImageError):
    """A prompt that needs an image and got none."""


class UnreadableImageError(ImageError):
    """A file or object that is no picture."""


class InteropError(MechVLMError, RuntimeError):
    """Another library's model that cannot be made here."""

    @classmethod
    def version(
        cls, makes: str, package: str, installed: str, install: str
    ) -> InteropError:
        """The `installed` version of a package does not have the class `makes`."""
        return cls(
            f"{makes} needs {install}, and {package} {installed} is installed."
            f' Get it, in an environment of its own, with\n    pip install "{install}"'
        )


class InterventionError(MechVLMError, ValueError):
    """An intervention that means nothing on this prompt."""


class BlindRowError(InterventionError):
    """A knockout that leaves a row nothing to read: its attention is undefined."""


class JudgeError(MechVLMError, RuntimeError):
    """A judge of descriptions that cannot be made, asked or understood."""


class LayoutError(MechVLMError, ValueError):
    """The prompt's positions cannot be what was asked."""

    @classmethod
    def patch_count(cls, got: int, rows: int, cols: int) -> LayoutError:
        """`got` image positions do not fill whole `rows` x `cols` images."""
        text = f"{got} image positions do not fill whole images of {rows} x {cols}."
        if got == rows * cols + 1:
            text += (
                "\nOne too many is usually the vision tower's CLS token. Load the model"
                ' with vision_feature_select_strategy="default", which drops it.'
            )
        return cls(text)


class RegionError(LayoutError):
    """A box or mask that has no cell of the image grid."""


class MetricError(MechVLMError, ValueError):
    """A number that these logits cannot give."""

    @classmethod
    def flat(cls, metric: str) -> MetricError:
        """A gradient was asked of a metric that has none."""
        return cls(
            f"{metric!r} has no gradient: it counts or compares. Take a continuous one,"
            " such as logit_difference or log_probability."
        )


class ModelCheckError(MechVLMError, RuntimeError):
    """A loaded model that fails one of its load-time checks."""


class PromptError(MechVLMError, ValueError):
    """A prompt that cannot be built."""


class PairError(PromptError):
    """Two prompts whose positions cannot be matched one to one."""


class PlaceholderError(PromptError):
    """More or fewer image placeholders than images."""


class ResultError(MechVLMError, ValueError):
    """A result that cannot be labelled, saved or opened."""


class OutputError(ResultError, OSError):
    """An output file or folder that cannot be trusted or written."""


class RunError(MechVLMError, KeyError):
    """A recorded run that lacks what is asked of it."""

    def __str__(self) -> str:
        """Show the message as written; KeyError alone would show its repr."""
        return str(self.args[0]) if self.args else ""


class SceneError(MechVLMError, ValueError):
    """A synthetic scene that cannot be drawn or asked about."""


class SiteError(MechVLMError, ValueError):
    """A place in the network that does not exist."""


class LayerError(SiteError, IndexError):
    """A layer, a head or a window of layers out of range."""


class TokenError(MechVLMError, ValueError):
    """A word that is not exactly one token of this tokenizer."""
