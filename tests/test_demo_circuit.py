"""What both trained models show: the answer moves from object to last position."""

import numpy as np
import pytest

import mechvlm as mv

N_PAIRS = 48
N_BOOTSTRAP = 2000


@pytest.fixture(scope="module", params=["demo", "demo-control"])
def recoveries(request):
    """Recovery (pair, layer, set) on pairs of scenes that differ in one colour."""
    vlm = mv.load(request.param)
    rng = np.random.default_rng(20_001)
    found = []
    while len(found) < N_PAIRS:
        scene = mv.scenes.sample_scene(rng)
        asked = mv.scenes.questions(scene, "color")
        if not asked or len(scene.things) > 3:
            continue
        twin = mv.scenes.twin(scene, asked[0].about, rng=rng)
        found.append(recovery(vlm, scene, twin, asked[0], rng))
    return np.stack(found)


def recovery(vlm, scene, twin, asked, rng):
    clean = vlm.prompt(asked.text, scene.image)
    corrupted = vlm.prompt(asked.text, twin.image)
    layout = clean.layout
    seen = layout.region(scene.mask(asked.about))
    # Cells of the object as the vision tower sees it, and as many that it is not in.
    far = list(layout["image"] - layout.region(scene.mask(asked.about), buffer=1))
    background = rng.choice(far, size=min(len(seen), len(far)), replace=False)
    sets = {
        "object": seen,
        "last": layout["last"],
        "background": mv.Positions.of(background.tolist()),
    }
    metric = mv.logit_difference(vlm, asked.answer, twin.things[asked.about].color)
    heat = mv.activation_patching(vlm, clean, corrupted, metric=metric, at=sets)
    return heat.values


def interval(values):
    """Mean over pairs with a bootstrap interval of 95 %: (low, mean, high)."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(N_BOOTSTRAP, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    return low, values.mean(axis=0), high


def test_the_object_carries_the_answer_first(recoveries):
    low, mean, high = interval(recoveries[:, :, 0])
    assert low[0] > 0.9, (low, mean)
    assert (high[-2:] < 0.1).all(), (mean, high)


def test_the_last_position_carries_it_in_the_end(recoveries):
    low, mean, high = interval(recoveries[:, :, 1])
    assert high[0] < 0.1, (mean, high)
    assert (low[-2:] > 0.9).all(), (low, mean)


def test_background_of_the_same_size_never_does(recoveries):
    low, mean, high = interval(recoveries[:, :, 2])
    assert (high < 0.05).all(), (mean, high)
    assert (low > -0.05).all(), (low, mean)
