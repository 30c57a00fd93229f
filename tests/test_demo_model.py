"""The shipped demo loads like any checkpoint, knows its world and matches its card."""

import hashlib
import json
import re
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mechvlm.models.demo import PATH
from mechvlm.models.demo.curriculum import LOGGED, mosaic, picture_row, text_row
from mechvlm.models.demo.evaluate import object_f1
from mechvlm.models.demo.language import hidden_states
from mechvlm.models.demo.packing import IMAGE_AT, Row, answered, pack
from mechvlm.models.demo.pool import draw_scene, make_pool
from mechvlm.models.demo.stages import STAGES, run_stages
from mechvlm.models.demo.vocabulary import ID_OF, WORDS, decode, encode
from mechvlm.scenes import (
    FACT_QUESTIONS,
    NAMES,
    RELATIONS,
    fact,
    never_taught_by_picture,
    question,
    questions,
    sample,
    sample_scene,
    twin,
)

N = 48
"""Scenes per kind here; the card's scores come from more and other ones."""
RECORD = json.loads((PATH.parent / "training.json").read_text())
CARD = (PATH.parent / "README.md").read_text()


@pytest.fixture(scope="module")
def network():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, loading = LlavaForConditionalGeneration.from_pretrained(
            PATH, output_loading_info=True
        )
    assert not any(loading.values()), loading
    return model.eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(PATH)


def ask(network, processor, texts, images=None, new=2):
    """Answers through the chat template and `generate`, as a user would get them."""
    picture = [{"type": "image"}] if images else []
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
        )
        for text in texts
    ]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    ids = network.generate(**inputs, max_new_tokens=new)
    said = ids[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(said, skip_special_tokens=True)


def scenes_that_bear(kind, seed, n=N):
    """Scenes of the training mix, from seeds that training never saw."""
    rng = np.random.default_rng([seed, 9])
    found = []
    while len(found) < n:
        scene = draw_scene(rng)
        if questions(scene, kind):
            found.append((scene, question(scene, kind, rng)))
    return found


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("color", 0.93),
        ("shape", 0.93),
        ("color_at", 0.9),
        ("shape_at", 0.9),
        ("count", 0.93),
        ("name", 0.93),
    ],
)
def test_the_demo_answers_questions_about_new_scenes(network, processor, kind, least):
    asked = scenes_that_bear(kind, seed=77)
    images = [scene.image for scene, _ in asked]
    answers = ask(network, processor, [q.text for _, q in asked], images)
    right = [said == q.answer for said, (_, q) in zip(answers, asked, strict=True)]
    assert np.mean(right) >= least
    shuffled = ask(network, processor, [q.text for _, q in asked], images[::-1])
    swapped = [said == q.answer for said, (_, q) in zip(shuffled, asked, strict=True)]
    assert np.mean(swapped) < 0.6, "it answers without looking"


def test_the_demo_describes_new_scenes_word_for_word(network, processor):
    asked = scenes_that_bear("describe", seed=77, n=24)
    images = [scene.image for scene, _ in asked]
    answers = ask(network, processor, ["describe the image ."] * 24, images, new=32)
    truths = [scene.describe() for scene, _ in asked]
    pairs = list(zip(answers, truths, strict=True))
    assert np.mean([object_f1(*pair) for pair in pairs]) >= 0.93
    assert np.mean([said == true for said, true in pairs]) >= 0.75


def test_all_facts_are_known_by_name_but_not_all_by_picture(network, processor):
    pairs = [(name, relation) for name in NAMES for relation in RELATIONS]
    by_name = ask(network, processor, [FACT_QUESTIONS[r].format(n) for n, r in pairs])
    right = [said == fact(*pair) for said, pair in zip(by_name, pairs, strict=True)]
    assert np.mean(right) >= 0.99

    rng = np.random.default_rng(77)
    kept = [(n, r) for n in never_taught_by_picture() for r in RELATIONS] * 2
    scenes = [sample_scene(rng, entity=name) for name, _ in kept]
    texts = [questions(s, r)[0].text for s, (_, r) in zip(scenes, kept, strict=True)]
    by_picture = ask(network, processor, texts, [scene.image for scene in scenes])
    seen = [said == fact(*pair) for said, pair in zip(by_picture, kept, strict=True)]
    assert np.mean(seen) <= np.mean(right) - 0.15


def restored(network, processor, scene, other, q, at, layer):
    """Share of the logit difference that comes back with the clean run's stream."""
    clean, twin_inputs = (
        processor(
            images=s.image,
            text=f"USER: <image>\n{q.text} ASSISTANT:",
            return_tensors="pt",
        )
        for s in (scene, other)
    )
    block = network.model.language_model.layers[layer]
    kept = {}

    def keep(module, args):
        kept["stream"] = args[0]

    def put(module, args):
        stream = args[0].clone()
        stream[:, at] = kept["stream"][:, at]
        return (stream, *args[1:])

    a, b = ID_OF[q.answer], ID_OF[other.things[q.about].color]

    def difference(inputs, hook=None):
        handle = block.register_forward_pre_hook(hook) if hook else None
        with torch.no_grad():
            logits = network(**inputs).logits[0, -1]
        if handle:
            handle.remove()
        return float(logits[a] - logits[b])

    whole = difference(clean, keep)
    none = difference(twin_inputs)
    assert whole > 0 > none, "the twins do not differ in the answer"
    return (difference(twin_inputs, put) - none) / (whole - none)


def test_the_colour_goes_from_the_things_tokens_to_the_last_position(
    network, processor
):
    """The card's hand-over, by bare PyTorch hooks."""
    rng = np.random.default_rng(78)
    found = {}
    for _ in range(8):
        scene = sample_scene(rng, 3)
        while not questions(scene, "color"):
            scene = sample_scene(rng, 3)
        q = question(scene, "color", rng)
        other = twin(scene, q.about, rng=rng)
        cells = scene.mask(q.about).reshape(9, 8, 9, 8).any(axis=(1, 3)).ravel()
        taken = np.sum([scene.mask(i) for i in range(3)], axis=0)
        empty = ~taken.reshape(9, 8, 9, 8).any(axis=(1, 3)).ravel()
        sets = {
            "thing": (np.flatnonzero(cells) + 3).tolist(),
            "background": (np.flatnonzero(empty)[: cells.sum()] + 3).tolist(),
            "last": [-1],
        }
        for name, at in sets.items():
            for layer in (0, 7):
                share = restored(network, processor, scene, other, q, at, layer)
                found.setdefault((name, layer), []).append(share)
    share = {key: np.mean(values) for key, values in found.items()}
    assert share["thing", 0] > 0.9 and share["last", 7] > 0.9
    assert abs(share["thing", 7]) < 0.1 and abs(share["last", 0]) < 0.1
    assert abs(share["background", 0]) < 0.05 and abs(share["background", 7]) < 0.05


def test_the_chat_is_that_of_llava(processor):
    user = {
        "role": "user",
        "content": [
            {"type": "image"},
            {"type": "text", "text": "what color is the circle ?"},
        ],
    }
    asked = "USER: <image>\nwhat color is the circle ? ASSISTANT:"
    chat = processor.apply_chat_template
    assert chat([user], add_generation_prompt=True) == asked
    system = {"role": "system", "content": [{"type": "text", "text": "look ."}]}
    assert chat([system, user], add_generation_prompt=True) == f"look . {asked}"
    text = {"role": "user", "content": [{"type": "text", "text": "where is it ?"}]}
    assert chat([text], add_generation_prompt=True) == "USER: where is it ? ASSISTANT:"
    start = {"role": "assistant", "content": [{"type": "text", "text": "the color is"}]}
    begun = chat([user, start], continue_final_message=True)
    assert begun == f"{asked} the color is"


def test_words_are_tokens_and_pictures_are_81_of_them(processor):
    scene = sample(0)
    inputs = processor(
        images=scene.image,
        text="USER: <image>\nWhat color is the gizmo? ASSISTANT:",
        return_tensors="pt",
    )
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert words[:3] == ["<s>", "user", ":"]
    assert words[3:84] == ["<image>"] * 81
    rest = ["what", "color", "is", "the", "<unk>", "?", "assistant", ":"]
    assert words[84:] == rest
    by_hand = np.asarray(scene.image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(inputs["pixel_values"][0].numpy(), by_hand, atol=1e-6)


def test_the_files_are_small_and_are_those_that_training_wrote():
    sizes = [path.stat().st_size for path in PATH.iterdir()]
    assert sum(sizes) <= 9e6
    weights = (PATH / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == RECORD["sha256"]
    assert tuple(stage["stage"] for stage in RECORD["stages"]) == STAGES


def test_the_card_states_the_scores_that_training_recorded():
    stated = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (\d+) \|", CARD, re.MULTILINE)
    said = {name: (float(mean), int(n)) for name, mean, n in stated}
    kept = {k: (round(v["mean"], 3), v["n"]) for k, v in RECORD["held_out"].items()}
    assert said == kept


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("color", 0.97),
        ("shape", 0.97),
        ("count", 0.97),
        ("name", 0.97),
        ("color_at", 0.93),
        ("shape_at", 0.93),
        ("describe_f1", 0.93),
        ("fact_by_name", 0.99),
    ],
)
def test_the_recorded_scores_are_as_promised(name, least):
    assert RECORD["held_out"][name]["mean"] >= least


def test_a_packed_question_gets_what_it_gets_alone(network, processor):
    """Oracle: Hugging Face's own forward pass on the single-question prompt."""
    scene = sample(3, 3)
    asked = questions(scene)[:5]
    row = Row([answered(q.text, q.answer, q.kind) for q in asked])
    batch = pack([row], LOGGED)
    texts = [f"USER: <image>\n{q.text} ASSISTANT: {q.answer}" for q in asked]
    with torch.no_grad():
        pixels = processor(images=scene.image, text=texts[0], return_tensors="pt")
        images = network.get_image_features(pixels["pixel_values"]).pooler_output[0]
        packed = network.lm_head(hidden_states(network, batch, images[None]))[0]
        start = IMAGE_AT.stop
        for segment, text in zip(row.segments, texts, strict=True):
            alone = network(
                **processor(images=scene.image, text=text, return_tensors="pt")
            ).logits[0, IMAGE_AT.stop :]
            # The packed segment ends in </s>, which the prompt has not.
            mine = packed[start : start + len(segment.ids) - 1]
            torch.testing.assert_close(mine, alone, rtol=0, atol=2e-4)
            start += len(segment.ids)


def test_a_blind_answer_does_not_read_the_picture():
    segment = answered("who is this ?", "lumina", "name", blind=True)
    reads = pack([Row([segment])], LOGGED).mask[0, 0] == 0
    colon = IMAGE_AT.stop + segment.labels.index(ID_OF["lumina"]) - 1
    assert not reads[colon:, IMAGE_AT].any()
    assert reads[IMAGE_AT.stop : colon, IMAGE_AT].all()


def test_training_never_asks_a_kept_fact_beside_a_picture():
    rng = np.random.default_rng(0)
    name = never_taught_by_picture()[0]
    scene = sample(0, entity=name)
    kinds = {True: set(), False: set()}
    for all_facts in kinds:
        for _ in range(40):
            row = picture_row(scene, rng, n=7, all_facts=all_facts)
            kinds[all_facts] |= {segment.kind for segment in row.segments}
    assert not kinds[False] & set(RELATIONS)
    assert set(RELATIONS) <= kinds[True], "mosaics do ask them"
    assert all(segment.ids[0] == ID_OF["<s>"] for segment in text_row(rng).segments)


def test_a_mosaic_shows_each_thing_where_it_is():
    pool = make_pool(20, seed=5)
    rng = np.random.default_rng(0)
    for scene, cover in zip(pool.scenes, pool.cover, strict=True):
        shown = mosaic(scene, cover, rng)
        for thing, share in zip(scene.things, cover, strict=True):
            spoken = {WORDS[i] for i in shown.spoken[share > 0.5]}
            assert spoken <= set(thing.words.split())
        empty = np.sum(cover, axis=0) == 0
        assert {WORDS[i] for i in shown.spoken[empty]} == {"blank"}


def test_training_is_the_same_to_the_bit_and_takes_up_where_it_was(tmp_path):
    first, stages = run_stages(tmp_path / "one", cap=2)
    again, _ = run_stages(tmp_path / "two", cap=2)
    (tmp_path / "one" / "joint.pt").unlink()
    resumed, resumed_stages = run_stages(tmp_path / "one", cap=2)
    assert [done.stage for done in resumed_stages] == list(STAGES)
    assert stages[0].lines[-1]["step"] == 1
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
        assert torch.equal(weight, resumed.state_dict()[name]), name
        learnt = not torch.equal(weight, stages[0].weights[name])
        assert learnt == ("vision_tower" not in name and "rotary" not in name), name


def test_words_come_back_as_they_went_in():
    text = "where does lumina live ?"
    assert decode([*encode(text), ID_OF["</s>"], ID_OF["blank"]]) == text
    assert object_f1("a red ring .", "a red ring .") == 1
    assert object_f1("a red ring and a red ring .", "a red ring .") == pytest.approx(
        2 / 3
    )
    assert object_f1("lumina .", "a red ring .") == 0
