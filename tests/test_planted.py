"""Planted models hold every cell of their table, as plain Hugging Face runs show.

The oracle shares no code with mechvlm: eager passes from a picture and a chat, with
pre-hooks on decoder layers that write rows of the stream and of the attention mask.
"""

import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mechvlm.errors import FamilyError, SceneError
from mechvlm.models import planted
from mechvlm.models.planted import ANSWERS, CIRCUITS, EXPECTED, TOLERANCE, build, scene

# Positions, counted by hand: <s>, look, 16 x <image>, what, digit, answer.
IMAGE = list(range(2, 18))
OBJECT = [7, 8, 11]
BACKGROUND = [at for at in IMAGE if at not in OBJECT]
QUERY = [18, 19]
LAST = 20
LENGTH = 21
GROUPS = {"bos": [0], "system": [1], "image": IMAGE, "query": QUERY, "last": [LAST]}
SOURCES = GROUPS | {"object": OBJECT, "background": BACKGROUND}
TARGETS = GROUPS | {"query+last": [*QUERY, LAST]}

every_circuit = pytest.mark.parametrize("circuit", CIRCUITS)


def check_close(found, wanted):
    """Compare within the stated tolerance, at once if both are sequences."""
    assert found == pytest.approx(wanted, rel=0, abs=TOLERANCE)


# --- the oracle -----------------------------------------------------------------------


@cache
def planted_model(circuit, sink=True):
    model, processor = build(circuit, sink=sink)
    model.set_attn_implementation("eager")
    return model, processor


def see(processor, picture):
    """Every tensor that the processor makes of the picture and the chat."""
    text = processor.apply_chat_template(planted.messages(), add_generation_prompt=True)
    return processor(text=text, images=picture, return_tensors="pt")


def mask_without(cut):
    """A causal mask, 0 where reading is allowed, for one layer."""
    mask = torch.full((1, 1, LENGTH, LENGTH), -math.inf).triu(diagonal=1)
    for targets, sources in cut:
        for target in targets:
            mask[0, 0, target, sources] = -math.inf
    return mask


def run(model, inputs, *, cut=None, put=None):
    """One forward pass; `cut[layer]` lists (targets, sources), `put[layer]` {at: row}.

    What comes back: h[0] to h[3], the last position's logits, and each layer's
    attention, averaged over heads, [target, source].
    """
    cut, put = cut or {}, put or {}
    decoder = model.model.language_model
    streams = []

    def before_layer(layer):
        def hook(module, args, kwargs):
            stream = args[0].clone()
            for at, row in put.get(layer, {}).items():
                stream[0, at] = row
            streams.append(stream[0])
            masked = {"attention_mask": mask_without(cut.get(layer, []))}
            return (stream, *args[1:]), kwargs | masked

        return hook

    hooks = [
        layer.register_forward_pre_hook(before_layer(at), with_kwargs=True)
        for at, layer in enumerate(decoder.layers)
    ]
    hooks.append(
        decoder.norm.register_forward_pre_hook(
            lambda _, args: streams.append(args[0][0])
        )
    )
    try:
        made = model(**inputs, output_attentions=True, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    attention = [layer[0].mean(dim=0) for layer in made.attentions]
    return SimpleNamespace(h=streams, logits=made.logits[0, -1], attention=attention)


def probabilities(logits, processor):
    """P of the four answers among the whole vocabulary."""
    ids = processor.tokenizer.convert_tokens_to_ids(list(ANSWERS))
    return logits.softmax(dim=-1)[ids].tolist()


def rows(stream, at):
    return {position: stream[position] for position in at}


class World:
    """One circuit with its clean and corrupted runs."""

    def __init__(self, circuit):
        self.truth = EXPECTED[circuit]
        self.model, self.processor = planted_model(circuit)
        with torch.no_grad():
            self.inputs = see(self.processor, scene(0))
            self.corrupted_inputs = see(self.processor, scene(1))
            self.clean = run(self.model, self.inputs)
            self.corrupted = run(self.model, self.corrupted_inputs)
        self.mean = planted.background_vector(self.model, self.processor)

    @torch.no_grad()
    def p(self, answer=0, **interventions):
        made = run(self.model, self.inputs, **interventions)
        return probabilities(made.logits, self.processor)[answer]

    def ablate(self, at):
        return self.p(put={0: dict.fromkeys(at, self.mean)})


@pytest.fixture(scope="module", params=CIRCUITS)
def world(request):
    return World(request.param)


# --- the table ------------------------------------------------------------------------


def test_clean_and_corrupted(world):
    check_close(world.p(), world.truth.base)
    corrupted = probabilities(world.corrupted.logits, world.processor)
    check_close(corrupted[0], world.truth.corrupted)


def test_no_other_word_has_probability(world):
    check_close(sum(probabilities(world.clean.logits, world.processor)), 1)


def test_ablation(world):
    sets = {"object": OBJECT, "background": BACKGROUND, "two of three": OBJECT[:2]}
    check_close(
        {name: world.ablate(at) for name, at in sets.items()}, world.truth.ablated
    )


def test_zeros_ablate_as_the_background_does(world):
    zeros = dict.fromkeys(OBJECT, torch.zeros(world.mean.shape))
    check_close(world.p(put={0: zeros}), world.truth.ablated["object"])


def test_knockout_per_layer(world):
    for name, wanted in world.truth.knockout.items():
        source, target = name.split("->")
        cut = [(TARGETS[target], SOURCES[source])]
        found = tuple(world.p(cut={layer: cut}) for layer in range(3))
        assert found == pytest.approx(wanted, rel=0, abs=TOLERANCE), name


def test_knockout_from_a_layer_on(world):
    cut = [(TARGETS["query+last"], IMAGE)]
    found = tuple(world.p(cut=dict.fromkeys(range(at, 3), cut)) for at in range(4))
    check_close(found, world.truth.knockout_from)


@pytest.mark.parametrize("answer", [0, 1])
def test_cross_patch(world, answer):
    wanted = (world.truth.original, world.truth.injected)[answer]
    found = tuple(
        world.p(answer, put={layer: rows(world.corrupted.h[layer], IMAGE)})
        for layer in range(3)
    )
    check_close(found, wanted)


@torch.no_grad()
def test_denoising_recovers(world):
    def difference(made):
        zero, one = probabilities(made.logits, world.processor)[:2]
        return math.log(zero / one)

    clean, corrupted = difference(world.clean), difference(world.corrupted)
    if world.truth.recovery is None:
        check_close(clean, corrupted)
        return
    found = []
    for layer in range(3):
        put = {layer: rows(world.clean.h[layer], OBJECT)}
        made = run(world.model, world.corrupted_inputs, put=put)
        found.append((difference(made) - corrupted) / (clean - corrupted))
    check_close(tuple(found), world.truth.recovery)


def test_freezing(world):
    found = {}
    for source in world.truth.frozen:
        held = rows(world.clean.h[source], IMAGE)
        found[source] = world.p(put=dict.fromkeys(range(source + 1, 3), held))
    check_close(found, world.truth.frozen)


def test_back_patching(world):
    found = {
        (source, target): world.p(put={target: rows(world.clean.h[source], IMAGE)})
        for source, target in world.truth.back_patched
    }
    check_close(found, world.truth.back_patched)


@torch.no_grad()
def test_the_lens_reads_the_object(world):
    norm, head = world.model.model.language_model.norm, world.model.lm_head
    zero = world.processor.tokenizer.convert_tokens_to_ids(ANSWERS[0])
    words = [head(norm(stream[OBJECT])).argmax(dim=-1) for stream in world.clean.h]
    found = tuple((top == zero).float().mean().item() for top in words)
    assert found == world.truth.lens


def test_attention_fractions_of_the_last_position(world):
    for layer, reads in enumerate(world.truth.reads):
        row = world.clean.attention[layer][LAST]
        found = {group: row[at].sum().item() for group, at in GROUPS.items()}
        check_close(found, {group: float(group == reads) for group in GROUPS})


def test_attention_lies_on_the_object(world):
    reader, layer = world.truth.locates
    row = world.clean.attention[layer][TARGETS[reader][0]]
    assert row[IMAGE].argmax() + IMAGE[0] in OBJECT
    check_close((row[OBJECT].sum() / row[IMAGE].sum()).item(), 1)
    check_close(row[OBJECT].tolist(), [1 / 3] * 3)


def test_integrated_gradients_are_complete(world):
    steps = 300
    clean = world.clean.h[0]
    baseline = clean.clone()
    baseline[IMAGE] = world.mean
    answer = world.processor.tokenizer.convert_tokens_to_ids(ANSWERS[0])

    def logit(embeds):
        made = world.model(inputs_embeds=embeds, use_cache=False)
        return made.logits[:, -1, answer]

    share = ((torch.arange(steps) + 0.5) / steps)[:, None, None]
    path = (baseline + share * (clean - baseline)).requires_grad_()
    (gradient,) = torch.autograd.grad(logit(path).sum(), path)
    given = (gradient.mean(dim=0) * (clean - baseline)).sum(dim=-1)
    with torch.no_grad():
        whole = (logit(clean[None]) - logit(baseline[None])).item()
    # The integral is a sum of 300 here; both it and the logits are in units of 4.
    assert given.sum().item() == pytest.approx(whole, abs=4 * TOLERANCE)
    assert whole == pytest.approx(world.truth.attribution, abs=4 * TOLERANCE)
    if whole > 1:
        assert sorted(given.topk(3).indices.tolist()) == OBJECT


def test_the_table_is_the_one_that_was_published():
    """The numbers of methods.md, section 6, typed off rather than worked out."""

    def rounded(values):
        return tuple(round(value, 3) for value in values)

    relay, direct, enrich, too_late = (EXPECTED[circuit] for circuit in CIRCUITS)
    idle = (0.948, 0.948, 0.948)
    for truth in (relay, direct):
        assert rounded((truth.base, truth.corrupted)) == (0.948, 0.017)
        assert rounded(truth.ablated.values()) == (0.25, 0.948, 0.948)
        assert rounded(truth.frozen.values()) == (0.948, 0.948)
        assert rounded(truth.knockout["background->query+last"]) == idle
        assert truth.attribution == 4
    for cut, in_relay, in_direct in (
        ("image->query", (0.25, 0.948, 0.948), idle),
        ("image->last", idle, (0.948, 0.25, 0.948)),
        ("query->last", (0.948, 0.948, 0.25), idle),
    ):
        assert rounded(relay.knockout[cut]) == in_relay
        assert rounded(direct.knockout[cut]) == in_direct
    assert rounded(relay.knockout_from) == (0.25, 0.948, 0.948, 0.948)
    assert rounded(direct.knockout_from) == (0.25, 0.25, 0.948, 0.948)
    assert rounded(relay.original) == (0.017, 0.948, 0.948)
    assert rounded(relay.injected) == (0.948, 0.017, 0.017)
    assert rounded(direct.original) == rounded(enrich.original) == (0.017, 0.017, 0.948)
    assert rounded(direct.injected) == (0.948, 0.948, 0.017)
    assert (relay.recovery, direct.recovery) == ((1, 0, 0), (1, 1, 0))
    assert (relay.reads[2], direct.reads[1]) == ("query", "image")
    assert (relay.locates, direct.locates) == (("query", 0), ("last", 1))
    assert rounded(enrich.frozen.values()) == (0.25, 0.948)
    assert enrich.lens == (0, 1, 1, 1)
    late = (too_late.base, *too_late.back_patched.values())
    assert rounded(late) == (0.25, 0.948, 0.25)
    assert rounded(planted.RENORMALISED) == (0.138, 0.138, 0.138, 0.586)


# --- what is beyond the table ---------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("sink", "wanted"), [(False, planted.RENORMALISED), (True, [planted.CHANCE] * 4)]
)
def test_without_a_sink_a_knockout_invents_an_answer(sink, wanted):
    model, processor = planted_model("direct", sink)
    inputs = see(processor, scene(0))
    check_close(probabilities(run(model, inputs).logits, processor)[0], planted.SURE)
    cut = {layer: [([LAST], OBJECT)] for layer in range(3)}
    made = run(model, inputs, cut=cut)
    check_close(probabilities(made.logits, processor), list(wanted))
    if not sink:
        left = [at for at in range(LENGTH) if at not in OBJECT]
        check_close(made.attention[1][LAST, left].tolist(), [1 / 18] * 18)


@torch.no_grad()
@pytest.mark.parametrize("circuit", ["relay", "direct", "enrich"])
@pytest.mark.parametrize("content", range(4))
@pytest.mark.parametrize("background", range(4))
def test_every_class_before_every_background(circuit, content, background):
    """Elsewhere in the picture, too."""
    model, processor = planted_model(circuit)
    picture = scene(content, background=background, cells=[0, 15])
    made = run(model, see(processor, picture))
    wanted = [planted.WRONG] * 4
    wanted[content] = planted.SURE
    check_close(probabilities(made.logits, processor), wanted)


@torch.no_grad()
@every_circuit
def test_the_tower_sees_exactly_what_was_drawn(circuit):
    """Image tokens differ from one another by the object's flag and by the class."""
    model, processor = planted_model(circuit)
    pixels = see(processor, scene(1, background=2))["pixel_values"]
    (features,) = model.get_image_features(pixel_values=pixels).pooler_output
    seen = features[:, (features[5] != features[0]).nonzero().flatten()]
    # In the stream's order: the object's flag, class 1, class 2.
    background, whole = torch.tensor([0, 0, 0.5]), torch.tensor([1, 1, 0.0])
    for cell, row in enumerate(seen):
        wanted = whole if cell in planted.OBJECT_CELLS else background
        torch.testing.assert_close(row, wanted, rtol=0, atol=TOLERANCE)


def test_every_circuit_has_the_same_shape():
    shapes = [planted_model(circuit)[0].config.to_dict() for circuit in CIRCUITS]
    assert all(shape == shapes[0] for shape in shapes)


def test_the_prompt_is_21_tokens():
    _, processor = planted_model("relay")
    ids = see(processor, scene(0))["input_ids"][0]
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    image = ["<image>"] * 16
    assert words == ["<s>", "look", *image, "what", "digit", "answer"]


def test_positions_are_where_the_tokens_are():
    counted = {name: tuple(at) for name, at in GROUPS.items()}
    assert counted | {"object": tuple(OBJECT)} == planted.POSITIONS


@torch.no_grad()
def test_only_head_0_has_influence():
    """Both heads look at the object; silencing the second changes nothing."""
    model, processor = planted_model("direct")
    inputs = see(processor, scene(0))
    made = model(**inputs, output_attentions=True)
    first, second = made.attentions[1][0]
    torch.testing.assert_close(first, second, rtol=0, atol=0)

    def silenced(start):
        def hook(module, args):
            heads = args[0].clone()
            heads[..., start : start + 16] = 0
            return (heads,)

        layer = model.model.language_model.layers[1].self_attn.o_proj
        handle = layer.register_forward_pre_hook(hook)
        logits = model(**inputs).logits[0, -1]
        handle.remove()
        return probabilities(logits, processor)[0]

    check_close((silenced(0), silenced(16)), (planted.CHANCE, planted.SURE))


@torch.no_grad()
def test_it_generates_the_answer_and_stops():
    model, processor = planted_model("enrich")
    inputs = see(processor, scene(2))
    made = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert processor.decode(made[0, LENGTH:]) == "two </s>"


@torch.no_grad()
@every_circuit
def test_eager_and_sdpa_agree(circuit):
    eager, processor = planted_model(circuit)
    inputs = see(processor, scene(0))
    other, _ = build(circuit)
    other.set_attn_implementation("sdpa")
    torch.testing.assert_close(other(**inputs).logits, eager(**inputs).logits)


@torch.no_grad()
@every_circuit
def test_it_survives_saving(circuit, tmp_path):
    model, processor = planted_model(circuit)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 300_000
    again, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    reader = AutoProcessor.from_pretrained(tmp_path)
    inputs, reread = see(processor, scene(0)), see(reader, scene(0))
    assert {**inputs}.keys() == {**reread}.keys()
    for name, value in inputs.items():
        torch.testing.assert_close(reread[name], value, rtol=0, atol=0)
    found, wanted = again(**reread).logits, model(**inputs).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_building_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    build("relay")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_circuit_is_refused():
    with pytest.raises(FamilyError, match="no planted circuit is called 'detour'"):
        build("detour")


def test_a_class_or_a_cell_that_does_not_exist_is_refused():
    with pytest.raises(SceneError, match="class 4 does not exist"):
        scene(4)
    with pytest.raises(SceneError, match=r"cells \[16\] are not in a picture of 4 x 4"):
        scene(0, cells=[5, 16])
