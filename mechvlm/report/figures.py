"""The figures that draw a result, and a sentence on each, from its numbers."""

from __future__ import annotations

from dataclasses import replace

import xarray as xr
from PIL import Image

from mechvlm.errors import ArgumentError, ResultError
from mechvlm.graph.circuit import Circuit
from mechvlm.papers import PAPERS, cite
from mechvlm.report.rules import RULES, plain, wired
from mechvlm.report.shown import Result, Shown
from mechvlm.viz.labels import title

__all__ = ["analysis_of", "figures_of", "heading_of"]


def figures_of(result: Result, image: Image.Image | None = None) -> tuple[Shown, ...]:
    """Draw a result as its analysis is best looked at, and say what it shows.

    The result is known by what its analysis calls its values, dimensions and
    attributes, so that a saved one is known again. An array of another origin is drawn
    by its dimensions.

    Args:
        result: What an analysis returned, or a labelled array of one or two dimensions.
        image: The picture that the prompt was asked about; with it, what is known of
            image positions is laid over the picture.

    Returns:
        The figures, the telling one first, each with a sentence and a citation.

    Raises:
        ArgumentError: It is no result.
        ResultError: It is a dataset that no analysis made, holds no numbers, or has
            dimensions of which no figure can be drawn.

    Example:
        >>> drop = xr.DataArray([[0.0, 40.0]], {"cut": ["image->last"]},
        ...                     ("cut", "layer"), attrs={"units": "%"})
        >>> (shown,) = figures_of(drop)
        >>> shown.figure.kind, shown.sentence
        ('lines', 'From 0 to 40 %; farthest from 0 is image→last, layer 1 with 40.')
    """
    if isinstance(result, Circuit):
        paper = str(result.about.get("paper", ""))
        return tuple(replace(s, citation=cited(paper)) for s in wired(result))
    if not isinstance(result, xr.DataArray | xr.Dataset):
        raise ArgumentError(
            f"{type(result).__name__} is no result: wanted what an analysis returns, an"
            " xarray DataArray or Dataset or a Circuit."
        )
    keys = result.attrs.get("papers") or [result.attrs.get("paper", "")]
    rule = next((rule for rule in RULES if rule.knows(result)), None)
    if rule is not None:
        drawn = rule.show(result, image)  # type: ignore[arg-type]
    elif isinstance(result, xr.DataArray):
        drawn = plain(result, image)
    else:
        names = ", ".join(f"{name!r}" for name in list(result.data_vars)[:12])
        raise ResultError(
            "no analysis of this package makes a dataset of these variables:"
            f" {names or 'none'}. Usual cause: variables were dropped or averaged over."
            " Give the arrays that you want to see: found['rate']."
        )
    return tuple(replace(shown, citation=cited(*map(str, keys))) for shown in drawn)


def analysis_of(result: Result) -> str:
    """Public name of the analysis that a result is known to come from, or "".

    Example:
        >>> analysis_of(xr.DataArray([1.0], dims="layer"))
        ''
    """
    if isinstance(result, Circuit):
        return "discover"
    return next((rule.analysis for rule in RULES if rule.knows(result)), "")


def heading_of(result: Result) -> str:
    """What a page calls a result: its analysis, else its own name.

    Example:
        >>> heading_of(xr.DataArray([1.0], dims="layer", name="share"))
        'Share'
    """
    if isinstance(result, Circuit):
        return "Circuit"
    rule = next((rule for rule in RULES if rule.knows(result)), None)
    if rule is None:
        named = title(result)
        return "Result" if named == "Value" else named
    return rule.heading or rule.analysis.split(",")[0].replace("_", " ").capitalize()


def cited(*keys: str) -> str:
    """Papers in full where they are known here, else their keys."""
    texts = [cite(key) if key in PAPERS else key.strip("-") for key in keys]
    return "; ".join(filter(None, texts))
