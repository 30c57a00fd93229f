"""Each metric against hand arithmetic, in numpy and double precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mechvlm.errors import MetricError, TokenError
from mechvlm.metrics import (
    Metric,
    kl_divergence,
    log_probability,
    logit_difference,
    probability,
    probability_change,
    rank,
    recovery,
)

N_WORDS = 5
finite = st.floats(-20, 20, width=32)
tables = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.just(N_WORDS)), elements=finite
)
rows = hnp.arrays(np.float32, N_WORDS, elements=finite)


class Words:
    """A model as far as a metric knows it."""

    def to_single_token(self, word):
        return {"red": 0, "blue": 1, "crimson": 0}[word]


def softmax(logits):
    """By its definition, row by row."""
    table = np.atleast_2d(logits).astype(np.float64)
    return np.array(
        [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in table]
    )


def check_close(metric, logits, wanted, **tolerance):
    found = metric(torch.tensor(logits))
    assert found.shape == (len(logits),)
    np.testing.assert_allclose(found.numpy(), wanted, **({"rtol": 1e-4} | tolerance))


@given(logits=tables)
def test_logit_difference(logits):
    wanted = logits[:, 0] - logits[:, 1]
    check_close(logit_difference(Words(), "red", "blue"), logits, wanted)
    check_close(logit_difference(Words(), 1, "red"), logits, -wanted)
    assert logit_difference(Words(), 1, "red").tokens == (1, 0)


@given(logits=tables, answer=st.integers(0, N_WORDS - 1))
def test_probability(logits, answer):
    wanted = softmax(logits)[:, answer]
    check_close(probability(Words(), answer), logits, wanted)
    check_close(log_probability(Words(), answer), logits, np.log(wanted), atol=1e-5)


@given(logits=tables, clean=rows)
def test_probability_change(logits, clean):
    before, after = softmax(clean)[0, 1], softmax(logits)[:, 1]
    change = probability_change(Words(), "blue", torch.tensor(clean))
    check_close(change, logits, 100 * (after - before) / before, rtol=1e-3, atol=1e-3)


def test_probability_change_by_hand():
    """From one half to one quarter, and to nothing."""
    clean = torch.tensor([0.0, 0.0])
    change = probability_change(Words(), "blue", clean)
    runs = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, -math.inf]])
    torch.testing.assert_close(change(runs), torch.tensor([0.0, -50.0, -100.0]))


@given(logits=tables, answer=st.integers(0, N_WORDS - 1))
def test_rank(logits, answer):
    wanted = [sorted(row, reverse=True).index(row[answer]) for row in logits.tolist()]
    check_close(rank(Words(), answer), logits, wanted)


@given(logits=tables, clean=rows)
def test_kl_divergence(logits, clean):
    p, q = softmax(clean), softmax(logits)
    check_close(
        kl_divergence(torch.tensor(clean)),
        logits,
        (p * np.log(p / q)).sum(1),
        atol=1e-4,
    )
    same = kl_divergence(torch.tensor(clean))(torch.tensor(clean[None]))
    assert abs(float(same[0])) < 1e-6


@given(logits=tables, clean=finite, corrupted=finite)
def test_recovery_is_the_straight_line_through_both(logits, clean, corrupted):
    inner = logit_difference(Words(), "red", "blue")
    if abs(clean - corrupted) < 1e-3:
        return
    outer = recovery(inner, clean=clean, corrupted=corrupted)
    share = outer(torch.tensor(logits)).double().numpy()
    back = corrupted + share * (clean - corrupted)
    np.testing.assert_allclose(back, logits[:, 0] - logits[:, 1], atol=1e-3)
    assert outer.tokens == inner.tokens == (0, 1)


def test_recovery_is_1_at_the_clean_and_0_at_the_corrupted_value():
    first = Metric("first logit", "nats", lambda logits: logits[:, 0])
    logits = torch.tensor([[3.0], [-1.0], [1.0], [7.0]])
    share = recovery(first, clean=3.0, corrupted=-1.0)
    assert share(logits).tolist() == [1.0, 0.0, 0.5, 2.0]


def test_half_precision_is_widened_first():
    """In 16 bits, 300.5 - 300 would be 0."""
    logits = torch.tensor([[9.0, 8.9]], dtype=torch.bfloat16)
    difference = logit_difference(Words(), "red", "blue")(logits)
    assert difference.dtype == torch.float32
    assert float(difference) == float(logits[0, 0]) - float(logits[0, 1])


def test_metrics_say_what_they_measure():
    clean = torch.zeros(2)
    vlm = Words()
    inner = logit_difference(vlm, "red", "blue")
    said = {
        (m.name, m.units)
        for m in (
            inner,
            probability(vlm, "red"),
            log_probability(vlm, "red"),
            probability_change(vlm, "red", clean),
            rank(vlm, "red"),
            kl_divergence(clean),
            recovery(inner, clean=1.0, corrupted=0.0),
        )
    }
    assert said == {
        ("logit difference red - blue", "nats"),
        ("probability of red", "probability"),
        ("log-probability of red", "nats"),
        ("change of probability of red", "% of clean probability"),
        ("rank of red", "rank"),
        ("KL to the clean run", "nats"),
        (
            "recovery of logit difference red - blue",
            "fraction of the clean-corrupted gap",
        ),
    }


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize("foil", ["red", "crimson", 0])
def test_an_answer_that_is_its_own_foil_is_refused(foil):
    with pytest.raises(
        MetricError, match=f"foil {foil!r} are the same token 0, so their"
    ):
        logit_difference(Words(), "red", foil)


def test_an_answer_without_probability_is_refused():
    clean = torch.tensor([200.0, 0.0])
    with pytest.raises(
        MetricError, match=r"'blue' \(token 1\) has probability 0 in the"
    ):
        probability_change(Words(), "blue", clean)


@pytest.mark.parametrize("clean", [1.5, 1.5 + 1e-8, 1.5 - 2e-6])
def test_no_gap_is_nothing_to_recover(clean):
    inner = logit_difference(Words(), "red", "blue")
    with pytest.raises(
        MetricError, match=r"is 1.5 in the clean and 1.5 .* no gap to rec"
    ):
        recovery(inner, clean=clean, corrupted=1.5)


@pytest.mark.parametrize(
    ("clean", "corrupted"), [(math.nan, 0.0), (0.0, -math.inf), (math.inf, math.inf)]
)
def test_a_gap_that_is_no_number_is_refused(clean, corrupted):
    inner = log_probability(Words(), "red")
    with pytest.raises(MetricError, match="a share of that gap is no number"):
        recovery(inner, clean=clean, corrupted=corrupted)


def test_a_word_that_is_no_token_is_refused(tiny_vlm):
    for make in (probability, log_probability, rank):
        with pytest.raises(TokenError, match="'red blue' is 2 tokens"):
            make(tiny_vlm, "red blue")
    with pytest.raises(TokenError, match="'red blue' is 2 tokens"):
        logit_difference(tiny_vlm, "red", "red blue")


def test_a_negative_token_id_is_refused():
    """It would count from the vocabulary's end."""
    with pytest.raises(TokenError, match="token id -1 is negative"):
        probability(Words(), -1)
