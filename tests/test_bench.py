"""`mechvlm bench`: no speed without the right answer, ratios by hand."""

import json
from dataclasses import replace
from itertools import count

import pytest
import torch

import mechvlm as mv
from mechvlm import bench
from mechvlm.bench import SWEEPS, Effort, Race, race
from mechvlm.cli import asked, main
from mechvlm.errors import ArgumentError

TINY = Effort(budget=3, checked=3, repeats=2)


@pytest.fixture(scope="module")
def twins(demo):
    scene = mv.scenes.sample(seed=3, n=1)
    ask = f"what color is the {scene.things[0].shape} ?"
    return [
        demo.prompt(ask, scene.recolored(0, color).image) for color in ("red", "blue")
    ]


class Clock:
    """Each look at it is one step later; a step is as long as is said."""

    def __init__(self, *steps):
        self.steps, self.looks, self.now = steps, count(), 0.0

    def __call__(self):
        at = next(self.looks)
        if at % 2:  # the end of something that was timed
            self.now += self.steps[at // 2 % len(self.steps)]
        return self.now


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_answers_as_whole_passes_do(sweep, demo, twins):
    found = race(demo, *twins, sweep, effort=TINY)
    assert found.agrees
    assert found.off < 1e-5
    assert found.checked == 3 <= found.n <= found.n_possible
    assert len(found.ratios) == 2
    assert f"{found.n} runs of" in found.claim


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_does_something(sweep, demo, twins):
    """A sweep of interventions that change nothing would agree with anything."""
    _, made = SWEEPS[sweep]
    todo = made(demo, twins[0])[::7]
    runs = {"corrupted": mv.record(demo, twins[1], ["resid_pre", "z"])}
    clean, *done = mv.intervene(demo, twins[0], [mv.NOTHING, *todo], runs=runs)
    assert sum(not torch.equal(clean, each) for each in done) > len(done) / 2


def test_the_ratio_is_of_as_many_whole_passes(demo, twins):
    """Turn 1 times the passes first, then the sweep; turn 2 the other way round."""
    clock = Clock(3.0, 1.0, 2.0, 12.0)
    found = race(demo, *twins, "ablate", effort=TINY, clock=clock)
    share = found.n / found.checked
    assert found.sweep_s == (1.0, 2.0)
    assert found.passes_s == pytest.approx((3.0 * share, 12.0 * share))
    assert found.ratios == pytest.approx((3.0 * share, 6.0 * share))
    assert found.ratio == pytest.approx(4.5 * share)
    assert found.holds


def test_a_wrong_answer_has_no_speed(demo, twins, monkeypatch):
    real = bench.intervene

    def wrong(*given, **how):
        answers = real(*given, **how).clone()
        answers[-1, 0] += 1
        return answers

    monkeypatch.setattr(bench, "intervene", wrong)
    found = race(demo, *twins, "ablate", effort=TINY)
    assert (found.agrees, found.holds, found.ratio) == (False, False, None)
    assert found.ratios == ()


def test_a_sweep_is_thinned_to_its_budget(demo, twins):
    few, many = (
        race(demo, *twins, "patch", effort=replace(TINY, budget=budget, repeats=1))
        for budget in (1, 6)
    )
    assert few.n < many.n <= few.n_possible == 8 * twins[0].layout.n


def test_bad_arguments_are_refused(demo, twins):
    with pytest.raises(ArgumentError, match="no sweep is called 'swim'; there are pa"):
        race(demo, *twins, "swim")
    with pytest.raises(ArgumentError, match="checked is 0; wanted 1 or more"):
        race(demo, *twins, "patch", effort=replace(TINY, checked=0))


# --- the command ----------------------------------------------------------------------

GOOD = Race(
    *("ablate", "3 runs of it take less time", 3, 9, 2),
    *(1e-7, 1e-4, (1.0, 1.0, 1.0), (4.0, 2.0, 3.0)),
)
WRONG = replace(GOOD, off=0.5, sweep_s=(), passes_s=())
SLOW = replace(GOOD, passes_s=(0.5, 0.5, 0.5))


@pytest.fixture
def run(capsys, monkeypatch, demo):
    monkeypatch.setattr(asked, "load", lambda *_, **__: demo)

    def run(outcomes, *words):
        from mechvlm.cli import racing

        left = iter(outcomes)
        monkeypatch.setattr(racing, "race", lambda *_, **__: next(left))
        with pytest.raises(SystemExit) as done:
            main(["bench", *words])
        return capsys.readouterr().out, done.value.code

    return run


def test_the_claim_the_check_and_the_ratio_with_its_range_are_told(run):
    shown, code = run([GOOD], "--sweeps", "ablate")
    claim, checked, ratio = shown.splitlines()
    assert code == 0
    assert claim == "ablate: 3 runs of it take less time."
    assert "checked  2 of 3 (of 9) against whole passes" in checked
    assert "differ by 1.0e-07 of the largest (allowed 0.0001)" in checked
    assert ratio.startswith("  true     3.0 x (2.0 to 4.0), cpu")


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (WRONG, "FALSE    the answers differ, so nothing was timed"),
        (SLOW, "FALSE    0.5 x (0.5 to 0.5)"),
    ],
)
def test_a_false_claim_is_told_and_the_code_is_1(run, outcome, told):
    shown, code = run([outcome, GOOD], "--sweeps", "ablate,heads")
    assert told in shown
    assert "true     3.0 x" in shown
    assert code == 1


def test_json_is_one_line_for_each_sweep(run):
    shown, code = run([GOOD, WRONG], "--sweeps", "ablate,heads", "--json")
    good, wrong = map(json.loads, shown.splitlines())
    assert code == 1
    assert (good["holds"], good["ratio"]) == (True, 3.0)
    assert (good["ratio_low"], good["ratio_high"]) == (2.0, 4.0)
    assert (good["n"], good["checked"], good["command"]) == (3, 2, "bench")
    assert (wrong["agrees"], wrong["ratio"], wrong["sweep_s"]) == (False, None, [])
