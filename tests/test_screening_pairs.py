"""Over several pairs: the loss of all gaps together, and which pairs cannot be.

Oracles: whole passes with one patch each, whose raw metrics are added up by hand.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny

import mechvlm as mv
from mechvlm.errors import MetricError, PairError
from mechvlm.screening import bound
from mechvlm.screening.bound import check_order, metrics_of, paired_up, weighed


@pytest.fixture(scope="module")
def pairs(tiny_vlm):
    """Six pairs, in whose first picture one word is likelier than in the second."""
    prompts = [tiny_vlm.prompt("what color", tiny.picture(seed)) for seed in range(7)]
    groups, words = mv.groups_of(prompts[0]), ("red", "blue")
    found = []
    for number, other in enumerate(prompts[1:]):
        metric = mv.logit_difference(tiny_vlm, *words)
        ends = prompts[0], other
        clean, corrupted = (value_of(tiny_vlm, metric, each) for each in ends)
        ends = ends if clean > corrupted else ends[::-1]
        found.append(mv.Pair(*ends, metric, groups, f"p{number}"))
    return found


def value_of(vlm, metric, prompt):
    return metric(vlm(prompt)[:, -1])[0].item()


def screened(vlm, pairs, **call):
    return mv.screen_then_verify(vlm, pairs, of="heads", progress=False, **call)


def losses(vlm, pair, heads):
    """Oracle: what the metric loses by each head, and its gap, in nats."""
    clean, corrupted = (
        value_of(vlm, pair.metric, each) for each in (pair.clean, pair.corrupted)
    )
    run = mv.record(vlm, pair.corrupted, ["z"])
    every = mv.Positions.of(range(pair.clean.layout.n))
    patches = [mv.Patch(mv.Site("z", *head), every, "other") for head in heads]
    found = mv.reference.intervene(
        vlm, pair.clean, patches, runs={"other": run}, metric=pair.metric
    )
    return clean - found.numpy(), clean - corrupted


def test_effects_are_losses_over_gaps(tiny_vlm, pairs, tmp_path):
    found = screened(tiny_vlm, pairs, top=3, audit=2, seed=5)
    heads = [mv.Node.parse(str(label)) for label in found.candidate.values]
    places = [(head.layer, head.head) for head in heads]
    lost, gaps = zip(*(losses(tiny_vlm, pair, places) for pair in pairs), strict=True)
    np.testing.assert_allclose(found.gap, gaps, rtol=1e-3)
    assert max(gaps) > 1.5 * min(gaps)
    wanted = np.sum(lost, axis=0) / np.sum(gaps)
    np.testing.assert_allclose(found.effect, wanted, rtol=1e-3, atol=1e-5)
    each = np.array(lost) / np.array(gaps)[:, None]
    np.testing.assert_allclose(found.effect_each, each, rtol=1e-2, atol=1e-4)
    assert not np.allclose(found.effect, found.effect_each.mean("pair"), rtol=0.02)
    scores = (found.score_each * found.gap).sum("pair") / found.gap.sum()
    np.testing.assert_allclose(found.score, scores)
    sizes = np.abs(found.score.values)
    assert sizes[:3].tolist() == sorted(sizes[:3], reverse=True)
    assert sizes[:3].min() >= sizes[3:].max()
    assert found.role.values.tolist() == ["top"] * 3 + ["audit"] * 2
    assert found.pair.values.tolist() == [f"p{number}" for number in range(6)]
    assert found.gap.attrs["units"] == "nats"
    kept = mv.open_result(mv.save_result(found, tmp_path / "s.nc"))
    assert kept.identical(found)
    assert mv.cite(found).startswith("Syed")


def test_intervals_have_their_means_within(tiny_vlm, pairs):
    found = screened(tiny_vlm, pairs, top=2, audit=1)
    assert (found.effect_low < found.effect).all()
    assert (found.effect < found.effect_high).all()
    few = screened(tiny_vlm, pairs[:5], top=2, audit=1)
    assert np.isnan(few.effect_low).all() and np.isnan(few.effect_high).all()


def weak(vlm, pair):
    """The same two prompts, asked for what hardly differs between them."""
    columns = [vlm.to_single_token(word) for word in ("red", "blue", "cat", "dog")]
    second = mv.logit_difference(vlm, "cat", "dog")
    ours, theirs = (
        value_of(vlm, each, pair.clean) - value_of(vlm, each, pair.corrupted)
        for each in (pair.metric, second)
    )
    share = 0.995 * ours / theirs

    def measure(x):
        first, other = x[:, 0] - x[:, 1], x[:, 2] - x[:, 3]
        return (first - share * other) / (1 + abs(share))

    metric = mv.Metric("hardly anything", "nats", measure, tuple(columns))
    return replace(pair, metric=metric, id="weak")


def test_a_pair_of_almost_no_gap_takes_over_no_mean(tiny_vlm, pairs):
    call = {"top": 16, "audit": 0}
    alone = screened(tiny_vlm, pairs[:5], **call).sortby("candidate")
    both = screened(tiny_vlm, [*pairs[:5], weak(tiny_vlm, pairs[5])], **call)
    sizes = np.abs(both.score.values).tolist()
    assert sizes == sorted(sizes, reverse=True), "ranked by what all gaps lose"
    both = both.sortby("candidate")
    assert float(both.gap[-1]) < 0.02 * float(both.gap[:-1].mean())
    assert float(abs(both.effect_each[-1]).max()) > 5
    for name in ("effect", "score"):
        plain = both[f"{name}_each"].mean("pair")
        moved = float(abs(both[name] - alone[name]).max())
        assert moved < 0.5, name
        assert float(abs(plain - alone[name]).max()) > 10 * moved, name
    assert both.attrs["metrics"] == ["hardly anything", "logit difference red - blue"]
    assert "metric" not in both.attrs
    assert alone.attrs["metric"] == "logit difference red - blue"


def test_a_pair_that_the_model_gets_wrong_is_refused(tiny_vlm, pairs):
    wrong = mv.Pair(
        pairs[1].corrupted, pairs[1].clean, pairs[1].metric, pairs[1].groups, "back"
    )
    told = r"pair back: logit difference red - blue is [-\d.e]+ in the clean and [-\d."
    for given in ([pairs[0], wrong], [wrong]):
        with pytest.raises(MetricError, match=told + "e]+ .* which is the higher one"):
            screened(tiny_vlm, given)
    assert bound(tiny_vlm, wrong).gap < 0, "by itself its shares are what they are"


def test_a_gap_is_above_nothing(tiny_vlm):
    metric = mv.logit_difference(tiny_vlm, "red", "blue")
    assert check_order("a", metric, clean=3.0, corrupted=-1.0) == 4
    with pytest.raises(MetricError, match=r"pair a: .* is -1 in the clean and 3 in"):
        check_order("a", metric, clean=-1.0, corrupted=3.0)
    with pytest.raises(MetricError, match="there is no gap"):
        check_order("a", metric, clean=1.0, corrupted=1.0)


def test_weights_by_hand():
    """Half of 8 and nine times 0.1 is 4.9 of 8.1."""
    found = weighed(np.array([[0.5, 1.0], [9.0, 0.0]]), np.array([8.0, 0.1]))
    assert found.mean(axis=0) == pytest.approx([4.9 / 8.1, 8 / 8.1])
    assert weighed(np.array([0.3]), np.array([7.0])).tolist() == [0.3]


def test_pairs_that_do_not_go_together_are_refused(tiny_vlm, pairs):
    with pytest.raises(PairError, match="no pair is given"):
        paired_up([])
    one = pairs[0]
    parted = {"image": one.clean.layout["image"]}
    parted["rest"] = mv.Positions.of(range(23)) - parted["image"]
    with pytest.raises(PairError, match=r"and another \['image', 'rest'\]"):
        paired_up([one, replace(one, groups=parted)])
    swapped = {**one.groups, "last": one.groups["bos"], "bos": one.groups["last"]}
    with pytest.raises(PairError, match=r"with the last position.*alike in all pairs"):
        paired_up([one, replace(one, groups=swapped)])
    other = replace(one, metric=mv.probability(tiny_vlm, "red"))
    with pytest.raises(PairError, match="metrics are in nats and in probability"):
        paired_up([one, other])
    same = replace(one, metric=mv.log_probability(tiny_vlm, "red"))
    assert paired_up([one, same]) == [one, same]
    assert metrics_of([one, same, one]) == {
        "metrics": ["log-probability of red", "logit difference red - blue"],
        "metric_units": "nats",
    }
