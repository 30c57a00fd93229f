"""A plan tells what a sweep will cost before it runs, and the sweep keeps to it."""

import io
import re
import sys

import pytest
import sweeping
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeping import KINDS, every_intervention, scene_of

import mechvlm as mv
from mechvlm import Ablate, Knockout, Patch, PathPatch, Positions, Site
from mechvlm.interventions import parts
from mechvlm.models.rowwise import rows

GROUPED = KINDS[1]
N, LAST = 27, 26  # positions of its prompt
INTO = 64 * (4 + 2 + 2) * 16  # queries of 4 heads, keys and values of 2
MLP = 3 * 64 * 96
BEHIND = 64 * 64 + MLP
OUT = 64 * 64  # the unembedding of 64 words


@pytest.fixture(scope="module")
def scene():
    made = scene_of(GROUPED)
    assert (made.prompt.layout.n, made.vlm.cfg.d_vocab) == (N, 64)
    return made


def plan_of(scene, todo, **more):
    return sweeping._quietly(mv.plan, scene.vlm, scene.prompt, todo, **more)


# --- work, by hand --------------------------------------------------------------------


def attention(*readable):
    """Scores and sums of rows that read so many positions, in all heads."""
    return 2 * 64 * sum(readable)


WHOLE = 4 * (N * (INTO + BEHIND) + attention(*range(1, N + 1))) + OUT
LAST_ROW = INTO + BEHIND + attention(N)
BY_HAND = {
    "nothing": (mv.NOTHING, 0, 0),
    "the last MLP": (Ablate(Site("mlp_out", 3), Positions.of(LAST)), 2, BEHIND + OUT),
    "the end": (Ablate(Site("resid_post", 3), Positions.of(LAST)), 1, OUT),
    "a cut of the last row": (
        Knockout((2,), Positions.of(LAST), Positions.of(5)),
        3,
        2 * LAST_ROW + OUT,
    ),
    "a value that the last row reads": (  # its keys in a call of their own
        Ablate(Site("v", 3), Positions.of(LAST - 3)),
        5,
        4 * INTO + LAST_ROW + OUT,
    ),
    "the whole stream": (
        Patch(Site("embed"), Positions.of(range(N)), "other"),
        4 * N + 1,
        # In the last layer all rows have keys, and the last alone is read.
        3 * (WHOLE - OUT) // 4 + N * INTO + LAST_ROW + OUT,
    ),
    "nowhere": (Ablate(Site("z", 3), Positions.of(3)), 0, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_work_and_rows_by_hand(scene, name):
    what, n_rows, work = BY_HAND[name]
    found = plan_of(scene, [what])
    assert (found.rows, found.work, found.whole) == (n_rows, work, WHOLE)
    assert found.share == work / WHOLE
    assert len(found.passes) == (n_rows > 0)


def test_the_least_work_by_hand(scene):
    """Rows between those that count are computed, but need not be."""
    ends = Positions.of(LAST - 10, LAST)
    found = plan_of(scene, [Ablate(Site("mlp_out", 3), ends)])
    assert found.least == MLP + OUT
    value = plan_of(scene, [Ablate(Site("v", 3), Positions.of(LAST - 3))])
    assert value.least == 2 * 64 * 2 * 16 + LAST_ROW + OUT


# --- work, in general -----------------------------------------------------------------


@settings(max_examples=25)
@given(recipes=sweeping.recipes, batch=st.sampled_from([1, 7, 64, 500]), data=st.data())
def test_what_holds_of_every_plan(recipes, batch, data):
    scene = scene_of(data.draw(st.sampled_from(KINDS)))
    todo = [sweeping.made(scene, recipe) for recipe in recipes]
    found = plan_of(scene, todo, batch_tokens=batch)
    members = sorted(i for each in found.passes for i in each.members)
    assert members == [i for i, item in enumerate(found.items) if item.steps]
    stages = sorted(i for each in found.stage_passes for i in each.members)
    paths = [x for what in todo for x in parts(what) if isinstance(x, PathPatch)]
    assert stages == list(range(len(found.stages)))
    # One whose receivers do not matter needs none, and none goes past the last of them.
    assert len(stages) <= sum(len(path.receivers) for path in paths)
    for each in found.passes:
        most = max(len(s.rows) for i in each.members for s in found.items[i].steps)
        assert each.rows <= batch or len(each.members) == 1
        assert most <= each.rows
    assert 0 <= found.least <= found.work
    assert found.whole == len(todo) * plan_of(scene, [mv.NOTHING]).whole
    assert found.peak_bytes > 0
    if not paths:
        assert found.work <= found.whole


def test_a_sweep_keeps_to_its_plan(scene, monkeypatch):
    """No pass gives a layer more rows than were announced, and none is left out."""
    todo = every_intervention(scene)[::3]
    most, made = [], []
    honest = rows.RowPass.__init__

    def counted(self, vlm, base, items, sources):
        made.append(len(items))
        most.append(0)
        honest(self, vlm, base, items, sources)

    def entered(_, given):
        most[-1] = max(most[-1], given.shape[1])

    base = mv.base_run(scene.vlm, scene.prompt)
    monkeypatch.setattr(rows.RowPass, "__init__", counted)
    layers = [block.layer.whole for block in scene.vlm.blocks]
    with monkeypatch.context() as patch:
        sweeping.watch(patch, layers, entered)
        mv.intervene(scene.vlm, base, todo, **scene.given, batch_tokens=60)
    planned = mv.plan(scene.vlm, base, todo, batch_tokens=60)
    passes = [*planned.stage_passes, *planned.passes]
    assert made == [len(each.members) for each in passes]
    assert all(n <= each.rows for n, each in zip(most, passes, strict=True))
    assert all(each.rows <= 60 or len(each.members) == 1 for each in passes)
    assert sum(len(each.members) > 1 for each in passes) > 5
    assert max(most) > 30 and len(passes) > 10


def test_a_plan_runs_no_layer(scene, monkeypatch):
    ran = []
    watched = [block.layer.whole for block in scene.vlm.blocks]
    watched += [scene.vlm.hf_model.get_submodule(scene.vlm.family.vision_tower)]
    sweeping.watch(monkeypatch, watched, lambda *_: ran.append(1))
    base = mv.base_run(scene.vlm, scene.prompt)
    assert len(ran) == 5
    todo = every_intervention(scene)[::7]
    ours, theirs = plan_of(scene, todo), mv.plan(scene.vlm, base, todo)
    assert len(ran) == 5
    assert str(ours) == str(theirs)


# --- in words -------------------------------------------------------------------------


def test_a_plan_prints_its_cost(scene):
    one = Knockout((2,), Positions.of(LAST), Positions.of(5))
    nowhere = Ablate(Site("z", 3), Positions.of(3))
    path = PathPatch((Site("z", 1),), (Site("q", 3),), "other", to=Positions.of(LAST))
    lines = str(plan_of(scene, [one] * 1200)).splitlines()
    words = [re.sub(r"\s+", " ", line) for line in lines]
    work = 1200 * (2 * LAST_ROW + OUT) / (1200 * WHOLE)
    assert words[:4] == [
        "interventions 1,200",
        "passes 1",
        "rows 3,600 summed over layers",
        f"work {work:.2%} of whole passes",
    ]
    assert re.fullmatch(r"peak memory [\d.]+ [kMG]?B beside the model", words[4])
    assert len(words) == 5
    text = str(plan_of(scene, [one, nowhere, path], batch_tokens=1))
    assert re.search(r"without effect +1 +reach nothing that the answer", text)
    assert re.search(r"passes +3$", text, re.MULTILINE), "one of them is the path's"


def test_smaller_batches_are_more_passes_of_the_same_work(scene):
    todo = every_intervention(scene)
    small, large = (plan_of(scene, todo, batch_tokens=n) for n in (30, 3000))
    assert (small.work, small.rows, small.least) == (
        large.work,
        large.rows,
        large.least,
    )
    assert len(small.passes) > 10 * len(large.passes)
    assert all(each.rows <= 30 or len(each.members) == 1 for each in small.passes)
    assert small.peak_bytes < large.peak_bytes


def peak_of(run):
    """Most bytes that torch held at once beyond those before, as its profiler sees."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as seen:
        run()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_the_peak_that_is_announced_is_about_the_real_one(demo):
    prompt = demo.prompt("how many objects are there ?", mv.scenes.sample(seed=0).image)
    at = prompt.layout
    sites = [Site("resid_pre", layer) for layer in range(8)]
    todo = [Ablate(site, Positions.of(p)) for site in sites for p in at["query"]] * 8
    announced = mv.plan(demo, prompt, todo).peak_bytes
    real = peak_of(lambda: mv.intervene(demo, prompt, todo))
    assert real / 2.5 < announced < real * 2.5, f"{announced:,} for {real:,}"


# --- the progress bar -----------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(scene, monkeypatch, terminal, seconds, **more):
    """What a sweep of several passes writes when each look at the clock takes long."""
    clock = iter(range(10**6))
    monkeypatch.setattr("tqdm.std.time", lambda: seconds * next(clock))
    monkeypatch.setattr(sys, "stderr", terminal)
    todo = [mv.NOTHING, *every_intervention(scene)[:20]]
    mv.intervene(scene.vlm, scene.prompt, todo, **scene.given, batch_tokens=40, **more)
    monkeypatch.undo()
    return terminal.getvalue()


def test_a_bar_is_shown_for_long_work_in_a_terminal(scene, monkeypatch):
    text = shown(scene, monkeypatch, Terminal(), 2.0)
    assert "21/21" in text and "run" in text
    assert "sweep: 100%" in shown(scene, monkeypatch, Terminal(), 2.0, progress="sweep")


def test_no_bar_is_shown_otherwise(scene, monkeypatch):
    assert shown(scene, monkeypatch, Terminal(), 1e-6) == ""
    assert shown(scene, monkeypatch, Terminal(), 2.0, progress=False) == ""
    assert shown(scene, monkeypatch, io.StringIO(), 2.0) == ""
    assert shown(scene, monkeypatch, io.StringIO(), 2.0, progress="sweep") == ""
