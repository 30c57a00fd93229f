"""Random cuts like a given one: as many pairs, target by target and layer by layer."""

from itertools import product

import pytest
import torch

from mechvlm import Knockout, Positions
from mechvlm.cone import Reads
from mechvlm.cutting import draws_of, moved, reach_of


def masks(kind, n=9):
    """Who may read whom: causal; the first five both ways; a window of three."""
    mask = torch.ones(n, n).tril().bool()
    if kind == "image":
        mask[1:6, 1:6] = True
    if kind == "window":
        mask = mask & ~torch.ones(n, n).tril(-3).bool()
    if kind == "padded":
        mask[:, :2] = False
    return mask


def lost(part, mask):
    """Pairs that a cut takes away, target by target."""
    cut = torch.zeros_like(mask)
    for each in part:
        for target, source in product(each.target, each.source):
            cut[target, source] = True
    return (cut & mask).sum(dim=1).tolist()


CUTS = [
    (Positions.of(8), Positions.of(1, 2)),
    (Positions.of(6, 7, 8), Positions.of(2)),
    (Positions.of(4, 5), Positions.of(1, 2, 3)),  # may read none other
    (Positions.of(2, 3, 5), Positions.of(1, 4)),
    (Positions.of(7, 8), Positions.of(7, 8)),
]


@pytest.mark.parametrize("kind", ["causal", "image", "window", "padded"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_draws_cut_as_many_pairs_of_every_target(kind, cut):
    """Counted on the mask itself; none of them in the pool's gaps."""
    layers, mask = (masks("causal"), masks(kind)), masks(kind)
    reads = Reads(layers)
    target, source = cut
    pool = Positions.of(range(9)) - target - source - Positions.of(0)
    for layer, here in enumerate(layers):
        made = Knockout((layer,), target, source)
        draws = draws_of(reads, made, pool, n=6, seed=[3])
        taken = [int(here[t, list(source)].sum()) for t in target]
        free = [int(here[t, list(pool)].sum()) for t in target]
        enough = all(left >= own for left, own in zip(free, taken, strict=True))
        assert bool(draws) == (enough and any(taken))
        for each in draws:
            assert lost(each, here) == lost([made], here)
            assert {part.layers for part in each} == {(layer,)}
            for part in each:
                assert not part.source - pool
                assert here[list(part.target)][:, list(part.source)].all()
        assert len(set(draws)) == len(draws) <= 6
    both = draws_of(reads, Knockout(range(2), target, source), pool, n=6, seed=[3])
    for each in both:  # layer for layer, where the masks differ
        for layer, here in enumerate(layers):
            there = [part for part in each if layer in part.layers]
            made = Knockout((layer,), target, source)
            assert lost(there, here) == lost([made], here)
    assert mask.any()


def test_draws_are_drawn_evenly_and_all_found_where_they_are_few():
    reads = Reads((masks("causal", 12),))
    cut = Knockout((0,), Positions.of(11), Positions.of(1, 2))
    pool = Positions.of(3, 4, 5, 6)
    every = draws_of(reads, cut, pool, n=20, seed=[0])
    assert len(every) == 6  # 4 choose 2
    assert len(draws_of(reads, cut, pool, n=6, seed=[0])) == 6
    first = [draws_of(reads, cut, pool, n=1, seed=[i])[0][0].source for i in range(600)]
    for position in pool:
        assert sum(position in each for each in first) == pytest.approx(300, abs=50)


def test_what_no_target_reads_does_not_stir_the_draws():
    """Three positions of padding in front: the same draws, three further on."""
    target, source, pool = Positions.of(8), Positions.of(3), Positions.of(2, 4, 5, 6)
    more = lambda at: Positions.of(p + 3 for p in at)  # noqa: E731
    bare = Reads((masks("causal"),))
    mask = torch.ones(12, 12).tril().bool()
    mask[:, :3] = False
    padded = Reads((mask,))
    one = draws_of(bare, Knockout((0,), target, source), pool, n=3, seed=[1])
    behind = more(pool) | Positions.of(range(3))
    cut = Knockout((0,), more(target), more(source))
    two = draws_of(padded, cut, behind, n=3, seed=[1])
    assert [more(each[0].source) for each in one] == [each[0].source for each in two]


def test_trap_02_a_blind_row_is_told_from_a_cut_that_reaches_nothing():
    reads = Reads((masks("causal"), masks("window"), masks("causal")))
    at = lambda layers, t, s: reach_of(  # noqa: E731
        reads, Knockout(layers, Positions.of(*t), Positions.of(*s)), 8
    )
    assert at((0,), [4], [2]) == "cuts"
    assert at((0,), [0, 4], [0]) == "blind row"
    assert at((0,), [2], [4, 5]) == "never reads"
    assert at((0,), [8], [6, 7, 8]) == "cuts"
    assert at((0, 1), [8], [6, 7, 8]) == "blind row"  # a window of three
    assert at((1,), [8], [1]) == "never reads"
    assert at((0, 1), [8], [1]) == "cuts"


def test_a_cut_that_no_later_layer_reads_is_told():
    """The answer is at 8; behind layer 0 a window of three reads 6, 7 and 8."""
    reads = Reads((masks("causal"), masks("window")))
    for target in range(1, 9):
        cut = Knockout((0,), Positions.of(target), Positions.of(0))
        told = "cuts" if target >= 6 else "cannot reach the answer"
        assert reach_of(reads, cut, 8) == told
    both = Knockout((0, 1), Positions.of(5, 7), Positions.of(5))
    assert reach_of(reads, both, 8) == "cuts"
    late = Knockout((1,), Positions.of(5, 7), Positions.of(5))
    assert reach_of(reads, late, 8) == "cannot reach the answer"
    assert reach_of(reads, Knockout((1,), Positions.of(0), Positions.of(0)), 8) == (
        "blind row"
    )


@pytest.mark.parametrize("kind", ["causal", "image", "window"])
def test_moved_draws_are_those_of_the_other_layers(kind):
    """Drawn there by the same seed, they would be the same."""
    reads = Reads((masks("causal"), masks(kind)) * 3)
    target, source = Positions.of(7, 8), Positions.of(6)
    pool = Positions.of(1, 2, 3, 4, 5, 7, 8)
    here, there = (
        draws_of(reads, Knockout(layers, target, source), pool, n=5, seed=[1])
        for layers in (range(2), range(2, 6))
    )
    assert len(here) >= 1
    assert moved(reads, here, range(2, 6)) == there
