"""Random sets beside a chosen one: never the set itself, never another item's draw."""

from functools import cache
from importlib import import_module

import numpy as np
import pytest

import mechvlm as mv
from mechvlm import Positions, readings, selecting
from mechvlm.models import planted
from mechvlm.models.planted import ANSWERS
from mechvlm.selecting import Selector

OBJECT = selecting.object_tokens()
TWO = Selector("two", lambda v, p, item: Positions.of(list(OBJECT(v, p, item))[:2]))


@cache
def hooked():
    return mv.HookedVLM(*planted.build("direct"))


def digit(content, **more):
    """A planted picture, what is asked of it and where its object is."""
    image = planted.scene(content)
    area = np.array(image)[:, :, 0] > 0
    given = {"answer": ANSWERS[content], "objects": {ANSWERS[content]: area}}
    given |= {"target": ANSWERS[content], "id": ANSWERS[content], **more}
    return mv.Item(image, planted.QUESTION, **given)


DIGITS = [digit(content) for content in range(4)]


# --- no control that is the treatment -------------------------------------------------


@pytest.mark.parametrize("pool", [None, OBJECT], ids=["image", "object"])
def test_a_set_that_is_the_whole_pool_has_no_control(pool, monkeypatch):
    """Random sets of all tokens are the set itself: no excess of 0, no p of 1."""
    chosen = selecting.image_tokens() if pool is None else pool
    sets, arms = {"all": chosen, "two": TWO}, []
    many = mv.HookedVLM.generate_many

    def counted(self, prompt, interventions, **more):
        arms.append(len(interventions))
        return many(self, prompt, interventions, **more)

    monkeypatch.setattr(mv.HookedVLM, "generate_many", counted)
    call = {"metric": readings.vqa(), "value": "resample", "n_random": 3}
    lost = mv.token_ablation(hooked(), DIGITS, sets, pool=pool, **call)
    assert set(arms) == {1, 1 + 1 + 4}, "the twins of the whole pool were run"
    assert lost.decrease.values.tolist() == [[1, 1]]
    assert lost.n_control.values.tolist() == [[0, 4]]
    for name in ("control", "excess", "excess_low", "p", "log_p_control"):
        assert np.isnan(float(lost[name].sel(set="all")[0])), name
    assert np.isnan(lost.item_control_right.sel(set="all")).all()
    assert not np.isnan(lost.item_control_right.sel(set="two")).any()


def test_a_control_counts_where_there_is_one():
    """One item's set is the whole pool: the others still have their comparison."""
    pool = Selector(
        "pool",
        lambda v, p, item: (
            OBJECT(v, p, item)
            if item.id == "one"
            else p.layout["image"] - OBJECT(v, p, item)
        ),
    )
    lost = mv.token_ablation(
        hooked(),
        DIGITS,
        {"object": OBJECT},
        metric=readings.vqa(),
        value="resample",
        pool=pool,
    )
    names = ("n", "n_control", "control", "excess")
    assert [float(lost[name][0, 0]) for name in names] == [4, 3, 0, 1]


def test_flows_have_no_control_of_other_tokens():
    """All of the image has no twin, and the question's tokens none among the image's.

    The random set of the whole image was the image itself: 0 between cut and control.
    """
    flows = mv.knockout_accuracy(hooked(), DIGITS[:1], cuts=mv.flow_cuts)
    told = flows["n_control"].sel(window="all")
    counts = zip(told["cut"].values.tolist(), told.values.tolist(), strict=True)
    assert dict(counts) == {
        "image->question": 0,
        "image->last": 0,
        "question->last": 0,
        "last->last": 0,
        "object->question": 1,
        "other patches->question": 0,
    }
    for name in ("control", "control_change", "difference", "difference_p"):
        assert np.isnan(flows[name].sel(cut="image->last")).all(), name
    assert flows["change"].sel(cut="image->last", window="all") < -1


# --- seeds ----------------------------------------------------------------------------


def drawn(monkeypatch, where, call):
    """The seeds and sets that an analysis draws, in their order."""
    found, draw = [], mv.statistics.random_sets

    def spy(pool, size, *, n=1, seed=0):
        sets = draw(pool, size, n=n, seed=seed)
        found.append((seed, *sets))
        return sets

    monkeypatch.setattr(import_module(where), "random_sets", spy)
    call()
    return found


LENS = "mechvlm.analyses.logit_lens.hits"
TABLE = "mechvlm.analyses.knockout_table.accuracy"


@pytest.mark.parametrize(
    ("where", "analysis", "more"),
    [
        (LENS, mv.object_lens, {}),
        (TABLE, mv.knockout_accuracy, {"windows": {"first": range(1)}}),
    ],
    ids=["lens", "knockout"],
)
def test_no_two_items_and_no_two_seeds_share_a_draw(monkeypatch, where, analysis, more):
    """With seed + item, item 1 of seed 0 was drawn as item 0 of seed 1 was."""
    same = [digit(0, id=str(i)) for i in range(4)]
    zero, one, again = (
        drawn(
            monkeypatch,
            where,
            lambda seed=seed: analysis(hooked(), same, seed=seed, **more),
        )
        for seed in (0, 1, 0)
    )
    assert zero == again
    seeds = [str(seed) for seed, *_ in zero + one]
    assert len(set(seeds)) == len(seeds) > 7
    n = len(zero) // 4
    assert [sets for _, *sets in zero[n:]] != [sets for _, *sets in one[:-n]]
