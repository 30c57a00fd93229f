"""What is read off a caption knockout afterwards: other scores, and lost objects."""

from __future__ import annotations

import json
from collections.abc import Sequence

import xarray as xr

from mechvlm.analyses.caption_knockout.scoring import check_truth, judged, with_scores
from mechvlm.errors import ResultError
from mechvlm.judges.verdict import Judge, check_judge
from mechvlm.wanted import one

__all__ = ["lost_objects", "rejudge"]


def rejudge(
    result: xr.Dataset, judge: Judge, *, truth: Sequence[Sequence[str]] | None = None
) -> xr.Dataset:
    """Score the descriptions of a caption knockout again, by another judge.

    Nothing is described again, so a run that was scored by a list of objects can be
    scored by a language model later, on another machine.

    Args:
        result: What `caption_knockout` returned, or a file of it opened again.
        judge: The other judge.
        truth: Objects that each picture really shows, as a second reference.

    Returns:
        The dataset as `caption_knockout` would have returned it with this judge.

    Raises:
        ResultError: The result is not a caption knockout's.
        JudgeError: The judge is none, or the class of one.
        MetricError: No description names an object that the judge knows, or the truth
            does not fit the prompts.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, knockout of attention.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> prompt = vlm.prompt("describe the image .", scene.image)
        >>> shapes = mv.judges.ObjectListJudge(mv.scenes.SHAPES)
        >>> both = mv.judges.ObjectListJudge([*mv.scenes.SHAPES, *mv.scenes.COLORS])
        >>> found = mv.caption_knockout(
        ...     vlm, [prompt], judge=shapes, start_layers=[0], max_new_tokens=20)
        >>> again = mv.rejudge(found, both)
        >>> again["text"].identical(found["text"]), again.attrs["judge"]
        (True, 'list of 14 objects')
    """
    kept = ("reference", "text", "n_tokens", "identical")
    check_judge(judge)
    _check_result(result, kept)
    texts, references = result["text"].values, result["reference"].values
    check_truth(judge, len(references), truth)
    heard = [
        judged(
            judge,
            str(reference),
            [str(text) for text in of_prompt.flat],
            None if truth is None else truth[i],
            i,
        )
        for i, (reference, of_prompt) in enumerate(zip(references, texts, strict=True))
    ]
    return with_scores(result[list(kept)], heard, judge)


def lost_objects(
    result: xr.Dataset, *, flow: str, cut: str
) -> tuple[tuple[str, ...], ...]:
    """Objects that the model's own descriptions name and those of one arm do not.

    Args:
        result: What `caption_knockout` returned.
        flow: Which flow was cut.
        cut: In which layers, by its label in the result.

    Returns:
        One tuple of names for each prompt, as the judge has them.

    Raises:
        ResultError: The result is not a caption knockout's, or has no such arm.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, localisation (figure 6).

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> prompt = vlm.prompt("describe the image .", scene.image)
        >>> judge = mv.judges.ObjectListJudge(mv.scenes.SHAPES)
        >>> found = mv.caption_knockout(
        ...     vlm, [prompt], judge=judge, start_layers=[0], max_new_tokens=20)
        >>> mv.lost_objects(found, flow="image->generated", cut="nothing")
        ((),)
    """
    _check_result(result, ("lost",))
    flows, cuts = result["flow"].values.tolist(), result["cut"].values.tolist()
    if flow not in flows or cut not in cuts:
        raise ResultError(
            f"there is no arm {flow!r}, {cut!r}: flows are {flows}, cuts are {cuts}."
        )
    arm = result["lost"].sel(flow=flow, cut=cut)
    return tuple(tuple(json.loads(str(names))) for names in arm.values)


def _check_result(result: xr.Dataset, names: Sequence[str]) -> None:
    one(result, xr.Dataset, "result", "what caption_knockout returns")
    if missing := [name for name in names if name not in result]:
        raise ResultError(
            f"this result has no {', '.join(missing)}: wanted what caption_knockout"
            " returns."
        )
