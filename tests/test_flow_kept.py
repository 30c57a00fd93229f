"""Which cuts of a flow graph are edges: made-up numbers, by hand."""

import numpy as np
import pytest

from mechvlm.analyses.flow_graph.sweep import Found
from mechvlm.analyses.flow_graph.table import Table


def synthetic(effects, draws, least=1.0):
    """One cut of made-up changes in percent, as a table of one cell."""
    log = lambda percent: np.log1p(np.array(percent) / 100)  # noqa: E731
    found = [
        Found(
            0.9,
            True,
            1,
            np.array([[["measured"]]]),
            np.array([[["any"]]]),
            log([[[effect]]]),
            log([[[own]]]).reshape(1, 1, 1, -1),
        )
        for effect, own in zip(effects, draws, strict=True)
    ]
    names = [str(i) for i in range(len(found))]
    coords = {"item": names, "target": ["t"], "source": ["s"], "band": ["b"]}
    return {
        name: values.values.item()
        for name, values in Table(found, coords, least).arrays().items()
        if values.size == 1
    }


NAN = float("nan")
SIX = [-50, -52, -48, -51, -49, -50]
FLAT, NONE = [0] * 20, [NAN] * 20


@pytest.mark.parametrize(
    ("effects", "draws", "kept"),
    [
        (SIX, [FLAT] * 6, True),
        (SIX, [[-50] * 20] * 6, False),  # any positions would do
        (SIX, [[-80, -10] * 10] * 6, False),  # half of all draws cost more
        (SIX, [[-80] + [0] * 19] * 6, False),  # 1 in 20 costs more
        (SIX, [[-80] + [0] * 39] * 6, True),  # 1 in 40
        (SIX, [[-47.5] + [0] * 19] * 6, True),  # the dearest costs less on average
        (SIX, [[-80] + [0] * 19] + [FLAT] * 5, True),  # in one prompt of six
        ([-50, 30] * 3, [FLAT] * 6, False),  # -10 on average, but not surely
        ([0.0] * 6, [[50] * 20] * 6, False),  # the draws gain, the cut loses nothing
        ([-0.5] * 6, [FLAT] * 6, False),  # sure, and next to nothing
        (SIX, [NONE] * 6, False),  # no control
        (SIX[:2], [[0] * 19 + [-1]] * 2, True),
        (SIX[:2], [FLAT[:18] + NONE[:2]] * 2, False),  # too few draws
        (SIX[:2], [[0] * 19 + [-60]] * 2, False),
        ([-50, -50], [[0] * 19 + [-50]] * 2, False),  # no less is as much
        ([-50, 50], [[0] * 19 + [60]] * 2, False),
        (SIX[:1], [[*FLAT[:19], NAN]], True),
        (SIX[:1], [FLAT[:18] + NONE[:2]], False),
    ],
)
def test_trap_19_an_edge_needs_a_loss_of_its_own_beyond_chance(effects, draws, kept):
    """With intervals, beside random sets of its size; by hand in percent."""
    cell = synthetic(effects, draws)
    assert cell["kept"] is kept
    assert cell["n"] == len(effects)
    assert cell["effect"] == pytest.approx(np.mean(effects))
    if np.isfinite(draws).sum(axis=1).min() < 19:
        assert cell["n_control"] == 0
        assert cell["uncontrolled"]
        assert np.isnan(cell["excess"])
        return
    assert cell["n_control"] == len(effects)
    assert not cell["uncontrolled"]
    excess = np.mean(np.subtract(effects, np.nanmean(draws, axis=1)))
    assert cell["excess"] == pytest.approx(excess)


def test_beyond_is_the_effect_over_the_lower_quantile_of_its_own_draws():
    """Of 19 draws the least; of 39 the second; of 20 a twentieth of the way there."""
    assert synthetic([-50], [list(range(-19, 0))])["beyond"] == pytest.approx(-31)
    assert synthetic([-50], [list(range(-39, 0))])["beyond"] == pytest.approx(-12)
    assert synthetic([-50], [list(range(-20, 0))])["beyond"] == pytest.approx(-30.05)
    cell = synthetic(SIX, [FLAT, *[[-20] * 20] * 5])
    assert cell["beyond"] == pytest.approx(-50 + 100 / 6)
    assert cell["beyond_low"] <= cell["beyond"] <= cell["beyond_high"] < 0


@pytest.mark.parametrize("n", [3, 6, 12])
def test_trap_19_a_group_like_its_draws_is_seldom_kept(n):
    """What each set costs is the same in every prompt; the group is any one of them."""
    rng, kept = np.random.default_rng(0), 0
    for _ in range(60):
        costs = -rng.uniform(0, 40, size=400)
        draws = [rng.choice(costs[1:], 20, replace=False) for _ in range(n)]
        noisy = [own + rng.normal(0, 2, 20) for own in draws]
        kept += synthetic(list(costs[0] + rng.normal(0, 2, n)), noisy)["kept"]
    assert kept <= 4


def test_the_least_loss_is_the_callers():
    half = ([-0.5] * 6, [FLAT] * 6)
    assert synthetic(*half, least=0.4)["kept"]
    assert not synthetic(*half, least=0.6)["kept"]


def test_items_without_a_control_still_count_for_the_effect():
    """Excess is of six, effect of seven: they do not subtract."""
    cell = synthetic([*SIX, -99], [*[FLAT] * 6, NONE])
    assert (cell["n"], cell["n_control"], cell["kept"]) == (7, 6, True)
    assert cell["effect"] == pytest.approx(-399 / 7)
    assert cell["excess"] == pytest.approx(-50)


def test_an_edge_rests_on_no_single_prompt():
    """Seven prompts lose alike, and one of them has draws: too few to tell."""
    cell = synthetic([*SIX, -50], [FLAT, *[NONE] * 6])
    assert (cell["n"], cell["n_control"]) == (7, 1)
    assert (cell["kept"], cell["uncontrolled"]) == (False, True)
    # By itself the one prompt would do.
    assert synthetic([-50], [FLAT])["kept"]


def test_the_effect_that_counts_is_that_of_prompts_with_draws():
    """Those without lose all, the others nothing that is sure: neither kept nor not."""
    cell = synthetic([*[-0.2] * 6, *[-99] * 20], [*[FLAT] * 6, *[NONE] * 20])
    assert cell["effect_high"] < -1
    assert cell["beyond_high"] < 0
    assert (cell["kept"], cell["uncontrolled"]) == (False, False)
