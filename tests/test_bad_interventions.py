"""An intervention that means nothing is refused before anything runs.

After every test here the fixture `untouched` compares hooks, layers, attention
implementation and every weight with what they were.
"""

import pytest
import torch

from mechvlm import errors
from mechvlm.interventions import NOTHING, Ablate, Add, Knockout, Patch, PathPatch
from mechvlm.layout import Positions
from mechvlm.record import record
from mechvlm.reference import intervene
from mechvlm.sites import Site

pytestmark = pytest.mark.usefixtures("untouched")

STREAM = Site("resid_pre", 1)
LAST = Positions.of(22)
IMAGE = Positions.of(range(3, 19))


def raises(error, message):
    """A context that wants this error, with this message."""
    return pytest.raises(error, match=message)


ALL = Positions.of(range(23))
HEAD = Site("z", 1)


class Lacking:
    """A run that kept one site only."""

    def __getitem__(self, site):
        if site == STREAM:
            return torch.zeros(23, 64)
        raise errors.RunError(f"this run has no {site.hook_name}")


BAD = {
    "blind rows": (
        Knockout(range(2), LAST, ALL),
        errors.BlindRowError,
        "positions 22 nothing to read in layer 0, head 0: .* undefined",
    ),
    "blind in one head": (
        Knockout(range(3, 4), LAST, ALL, heads=(2,)),
        errors.BlindRowError,
        "positions 22 nothing to read in layer 3, head 2",
    ),
    "blind by two cuts": (
        (Knockout(range(2), LAST, ALL - IMAGE), Knockout(range(1, 3), LAST, IMAGE)),
        errors.BlindRowError,
        "positions 22 nothing to read in layer 1",
    ),
    "blind at BOS": (
        Knockout(range(1), Positions.of(0), Positions.of(0, 5)),
        errors.BlindRowError,
        "positions 0 nothing to read",
    ),
    "layer": (Ablate(Site("z", 4), LAST), errors.LayerError, r"has 4 layers, 0\.\.3"),
    "head": (Ablate(Site("z", 0, 4), LAST), errors.LayerError, r"has 4 heads, 0\.\.3"),
    "shared head": (
        Ablate(Site("k", 0, 2), LAST),
        errors.LayerError,
        "2 key-value heads",
    ),
    "cut layer": (
        Knockout(range(2, 5), LAST, IMAGE),
        errors.LayerError,
        "has 4 layers",
    ),
    "cut head": (
        Knockout(range(2), LAST, IMAGE, heads=(0, 7)),
        errors.LayerError,
        r"heads \[7\] do not exist; this model has 4",
    ),
    "negative head": (
        Knockout(range(2), LAST, IMAGE, heads=(-1,)),
        errors.LayerError,
        r"heads \[-1\] do not exist",
    ),
    "position": (
        Ablate(STREAM, Positions.of(22, 23, 24)),
        errors.InterventionError,
        r"Ablate names positions 23\.\.24, outside this sequence of 23 positions",
    ),
    "target": (
        Knockout(range(2), Positions.of(23), IMAGE),
        errors.InterventionError,
        r"Knockout.target names positions 23",
    ),
    "source": (
        Knockout(range(2), LAST, Positions.of(40)),
        errors.InterventionError,
        r"Knockout.source names positions 40",
    ),
    "run": (
        Patch(STREAM, LAST, "corrupted"),
        errors.RunError,
        r"^the run 'corrupted' is not given: runs= has \['clean'\]",
    ),
    "site of the run": (
        Patch(HEAD, LAST, "clean"),
        errors.RunError,
        "run has no blocks",
    ),
    "position of the run": (
        Patch(STREAM, LAST, "clean", from_=Positions.of(30)),
        errors.InterventionError,
        "patch from run 'clean' names positions 30",
    ),
    "vector": (
        Add(STREAM, LAST, "direction"),
        errors.InterventionError,
        r"names the vector 'direction', and vectors= has \['long', 'nan', 'wide'\]",
    ),
    "wide vector": (
        Add(STREAM, LAST, "wide"),
        errors.InterventionError,
        r"has shape \(65,\); wanted \(64,\) for every position alike, or \(1, 64\)",
    ),
    "long vector": (
        Ablate(STREAM, Positions.of(1, 2), "long"),
        errors.InterventionError,
        r"has shape \(3, 64\); wanted \(64,\) .* or \(2, 64\), one row per position",
    ),
    "vector of a head": (
        Ablate(HEAD, LAST, "wide"),
        errors.InterventionError,
        r"wanted \(4, 16\) for every position alike, or \(1, 4, 16\)",
    ),
    "broken vector": (Add(STREAM, LAST, "nan"), errors.InterventionError, "NaN or inf"),
    "path": (
        PathPatch((Site("z", 9),), (Site("resid_post", 9),), "clean"),
        errors.LayerError,
        "has 4 layers",
    ),
    "path's run": (
        PathPatch((HEAD,), (Site("q", 3),), "other"),
        errors.RunError,
        "the run 'other' is not given",
    ),
    "path's position": (
        PathPatch((HEAD,), (Site("q", 3),), "clean", to=Positions.of(99)),
        errors.InterventionError,
        "PathPatch names positions 99",
    ),
}
NAN = torch.full((64,), float("nan"))
GIVEN = {
    "runs": {"clean": Lacking()},
    "vectors": {"wide": torch.ones(65), "long": torch.ones(3, 64), "nan": NAN},
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", ["alone", "after others"])
@pytest.mark.usefixtures("no_forward")
def test_an_intervention_that_means_nothing(tiny_vlm, tiny_prompt, name, place):
    what, error, message = BAD[name]
    todo = (
        [what] if place == "alone" else [NOTHING, Ablate(STREAM, LAST), (NOTHING, what)]
    )
    with raises(error, message):
        intervene(tiny_vlm, tiny_prompt, todo, **GIVEN)


@pytest.mark.parametrize(
    "name", [n for n in BAD if "path" not in n and "position" not in n]
)
@pytest.mark.usefixtures("no_forward")
def test_generation_refuses_the_same(tiny_vlm, tiny_prompt, name):
    what, error, message = BAD[name]
    with raises(error, message if name not in ("target", "source") else None):
        tiny_vlm.generate(tiny_prompt, max_new_tokens=1, interventions=what, **GIVEN)


@pytest.mark.usefixtures("no_forward")
def test_nothing_to_do(tiny_vlm, tiny_prompt):
    with raises(
        errors.InterventionError, r"list of interventions is empty; .*\[NOTHING\]"
    ):
        intervene(tiny_vlm, tiny_prompt, [])
    with raises(errors.InterventionError, "max_new_tokens=0: wanted at least 1"):
        tiny_vlm.generate(tiny_prompt, max_new_tokens=0)


def test_a_cut_of_what_is_cut_already_warns(tiny_vlm, tiny_prompt):
    idle = Knockout(range(2), Positions.of(3), LAST)
    with pytest.warns(
        errors.MechVLMWarning, match=r"Are target .* and source .* swapped"
    ):
        done, clean = intervene(tiny_vlm, tiny_prompt, [idle, NOTHING])
    torch.testing.assert_close(done, clean)


def test_a_site_that_does_not_exist(tiny_vlm, tiny_prompt):
    with raises(errors.SiteError, "no component is called 'residual'; known are embed"):
        record(tiny_vlm, tiny_prompt, ["residual"])
    with raises(errors.SiteError, r"'blocks.0.hook_resid' is no site"):
        record(tiny_vlm, tiny_prompt, ["blocks.0.hook_resid"])
    with raises(errors.LayerError, r"has 4 layers, 0\.\.3"):
        record(tiny_vlm, tiny_prompt, [Site("z", 4)])


def test_a_run_says_what_it_lacks(tiny_vlm, tiny_prompt):
    run = record(tiny_vlm, tiny_prompt, ["resid_pre", Site("z", 1)])
    with raises(errors.RunError, r"^this run has no blocks.2.attn.hook_z: it recorded"):
        run[Site("z", 2)]
    with raises(KeyError, "it recorded resid_pre, z of some or all layers"):
        intervene(
            tiny_vlm, tiny_prompt, Patch(Site("v", 1), LAST, "r"), runs={"r": run}
        )


class Foreign:
    """A run of a model whose stream is one number wide: torch would broadcast it."""

    def __getitem__(self, site):
        return torch.zeros(23, 1)


def test_a_run_of_another_model_is_refused(tiny_vlm, tiny_prompt):
    patch = Patch(STREAM, LAST, "theirs")
    with raises(errors.RunError, r"shape \(1,\) per position; this model has \(64,\)"):
        intervene(tiny_vlm, tiny_prompt, [patch], runs={"theirs": Foreign()})
