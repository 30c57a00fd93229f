"""Estimates: small samples, what is not known, and random sets, by hand and by law."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechvlm import Positions
from mechvlm.errors import MetricError
from mechvlm.statistics import LEAST, mean_of, paired, random_sets, share_of

NAN = float("nan")


@pytest.mark.parametrize("n", range(1, LEAST))
def test_few_items_have_a_mean_and_no_interval(n):
    """All of them positive, as in 1 of 2**n draws around 0: a bootstrap excludes 0."""
    values = [0.1 * (i + 1) for i in range(n)]
    found = mean_of(values)
    assert found.mean == pytest.approx(0.1 * (n + 1) / 2)
    assert np.isnan([found.low, found.high]).all() and found.n == n
    pair = paired(values, [0.0] * n)
    assert pair.mean == found.mean and np.isnan([pair.low, pair.high]).all()
    assert pair.p == pytest.approx(2 / 2**n)  # signed ranks, one of 2**n on either side


def test_an_interval_begins_where_one_sign_is_no_coincidence():
    """The sign test's two-sided p of n items on one side of 0."""
    assert 2 / 2**LEAST <= 0.05 < 2 / 2 ** (LEAST - 1)
    found = mean_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert 0.1 < found.low < 0.35 < found.high < 0.6


def test_the_interval_is_the_bootstraps_percentiles():
    """Half zeros and half ones: a resampled mean is binomial, known exactly."""
    n = 20
    found = mean_of([0.0, 1.0] * (n // 2))
    law = np.cumsum([comb(n, k) / 2**n for k in range(n + 1)])
    low, high = (np.searchsorted(law, end) / n for end in (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1 / n + 1e-9)
    assert mean_of([0.0, 1.0] * 10, seed=1).mean == found.mean


def test_items_that_are_alike_have_an_interval_without_width():
    assert mean_of([2.0] * LEAST) == (2, 2, 2, LEAST)
    assert paired([1] * 8, [0] * 8) == (1, 1, 1, 8, pytest.approx(2 / 2**8))
    assert paired([1.5] * 8, [1.5] * 8) == (0, 0, 0, 8, 1)


def test_nothing_has_no_mean():
    for found in (mean_of([]), share_of([]), paired([], [])):
        assert np.isnan(found.mean) and found.n == 0


@given(st.integers(1, 40), st.data())
def test_wilsons_interval_solves_its_equation(n, data):
    """Its ends are where the share lies 1.96 standard errors of the end away."""
    hits = data.draw(st.integers(0, n))
    found = share_of([True] * hits + [False] * (n - hits))
    assert found.mean == hits / n and found.low < found.high
    for end in (found.low, found.high):
        away = (found.mean - end) ** 2
        assert away == pytest.approx(1.959964**2 * end * (1 - end) / n, abs=1e-6)


@pytest.mark.parametrize("kind", [list, np.array])
def test_what_is_not_known_is_refused(kind):
    """Nan is true as a bool, and would count as a hit."""
    values = kind([1.0, NAN, 0.0])
    with pytest.raises(MetricError, match=r"1 of 3 hits are nan \(\[1\]\)"):
        share_of(values)
    with pytest.raises(MetricError, match="1 of 3 values are nan"):
        mean_of(values)
    with pytest.raises(MetricError, match="1 of 3 ours are nan"):
        paired(values, kind([0.0, 0.0, 0.0]))
    with pytest.raises(MetricError, match="1 of 3 theirs are nan"):
        paired(kind([0.0, 0.0, 0.0]), values)


def test_a_share_is_of_what_is_true_or_false():
    with pytest.raises(MetricError, match=r"hits hold 0\.3; .* true or false"):
        share_of([1.0, 0.3])
    assert share_of([1.0, 0.0, 1.0, 1.0])[:1] == (0.75,)
    assert share_of(np.array([1, 0])).mean == share_of([True, False]).mean == 0.5


def test_pairs_are_of_the_same_items():
    with pytest.raises(MetricError, match="2 items against 1"):
        paired([1.0, 2.0], [1.0])


def test_seeds_of_several_numbers_never_meet_another_items():
    """With seed + item, item 1 of seed 0 has the controls of item 0 of seed 1."""
    pool = Positions.of(range(500))
    seeds = [(seed, item, k) for seed in (0, 1) for item in range(5) for k in range(4)]
    drawn = {seed: tuple(random_sets(pool, 20, seed=seed)) for seed in seeds}
    assert len(set(drawn.values())) == len(seeds)
    for seed, sets in drawn.items():
        assert tuple(random_sets(pool, 20, seed=list(seed))) == sets


def test_random_sets_are_of_one_size_within_their_pool():
    pool = Positions.of(3, 5, 8, 13)
    sets = random_sets(pool, 3, n=50, seed=2)
    assert all(len(each) == 3 and set(each) <= set(pool) for each in sets)
    assert len(set(sets)) == 4, "every one of the four sets comes up"
    with pytest.raises(MetricError, match="5 positions cannot be drawn from 4"):
        random_sets(pool, 5)
