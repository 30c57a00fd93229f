"""Every position of a prompt is named rightly, whatever the words and the template.

Oracle: the words, counted by hand; both processors here make one token of each.
"""

from dataclasses import replace

import pytest
import tiny
import torch
from PIL import Image

from mechvlm.errors import LayoutError, PairError, PromptError, TokenError
from mechvlm.layout import Positions
from mechvlm.models import planted
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import check_pair

N_CELLS = 16


def words(vlm, text):
    """Names of the tokens that a text is by itself."""
    return vlm.tokenizer.convert_ids_to_tokens(vlm.to_tokens(text, False)[0].tolist())


def spelled(prompt):
    """The tokens of each run of neighbours in one group, the image as a count."""
    runs = []
    for token, at in zip(prompt.tokens, range(prompt.layout.n), strict=True):
        group = prompt.layout.group_of(at)
        if runs and runs[-1][0] == group:
            runs[-1][1].append(token)
        else:
            runs.append((group, [token]))
    return [(g, len(t) if g == "image" else " ".join(t)) for g, t in runs]


@pytest.fixture(scope="module", params=tiny.KINDS[:2], ids=lambda kind: kind.tower)
def vlm(request):
    return HookedVLM(*tiny.build(request.param))


@pytest.fixture(scope="module")
def planted_vlm():
    return HookedVLM(*planted.build("relay"))


# --- the chat template ----------------------------------------------------------------

TEXTS = [
    "what color",
    "USER",
    "ASSISTANT : USER",
    "ASSISTANT :",
    " what color ",
    "the dog . SYSTEM : the cat",
    "the the the",
]
picture = tiny.picture()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("system", [None, "see the dog", "USER :", "the"])
@pytest.mark.parametrize("image", [picture, None], ids=["image", "no image"])
@pytest.mark.parametrize("prefix", ["", " the", "ASSISTANT : what color"])
def test_groups_of_the_chat_template(vlm, text, system, image, prefix):
    wanted = [("bos", "<s>")]
    if system is not None:
        wanted += [("template", "SYSTEM :"), ("system", system)]
    wanted += [("template", "USER :")]
    wanted += [("image", N_CELLS)] if image is not None else []
    end = " ".join(["ASSISTANT :", *prefix.split()])
    wanted += [("query", text.strip()), ("template", end)]
    prompt = vlm.prompt(text, image, prefix=prefix, system=system)
    assert spelled(prompt) == wanted


@pytest.mark.parametrize("text", ["what digit", "answer look", " look ", "answer"])
@pytest.mark.parametrize("system", [None, "look", "look what answer"])
@pytest.mark.parametrize("prefix", ["", " zero"])
def test_groups_of_another_template(planted_vlm, text, system, prefix):
    """Without words between the system message, the image and the query."""
    prompt = planted_vlm.prompt(text, planted.scene(1), prefix=prefix, system=system)
    wanted = [("bos", "<s>")]
    wanted += [("system", system)] if system is not None else []
    wanted += [("image", N_CELLS), ("query", text.strip())]
    wanted += [("template", f"answer{prefix}")]
    assert spelled(prompt) == wanted


def test_a_template_that_trims_the_text(vlm):
    """As most real templates do: `{{ c['text'] | trim }}`."""
    trimming = tiny.TEMPLATE.replace("c['text'] + ' '", "(c['text'] | trim) + ' '")
    before = vlm.processor.chat_template
    vlm.processor.chat_template = trimming
    try:
        prompt = vlm.prompt("  the dog ", picture, system=" the cat ")
    finally:
        vlm.processor.chat_template = before
    assert ("query", "the dog") in spelled(prompt)
    assert ("system", "the cat") in spelled(prompt)


def test_a_template_that_writes_bos_itself(vlm):
    """Llava's own does: the tokenizer must not put a second one in front."""
    before = vlm.processor.chat_template
    vlm.processor.chat_template = "{{ bos_token }}" + before
    try:
        doubled = vlm.prompt("the dog", picture)
    finally:
        vlm.processor.chat_template = before
    assert torch.equal(doubled.ids, vlm.prompt("the dog", picture).ids)
    assert doubled.layout == vlm.prompt("the dog", picture).layout


def test_the_image_may_come_after_the_text(vlm):
    before = vlm.processor.chat_template
    vlm.processor.chat_template = (
        "USER : {% for c in messages[-1]['content'] | reverse %}"
        "{% if c['type'] == 'image' %}{{ '<image> ' }}"
        "{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}. "
    )
    try:
        prompt = vlm.prompt("the dog", picture)
    finally:
        vlm.processor.chat_template = before
    wanted = [("bos", "<s>"), ("template", "USER :"), ("query", "the dog")]
    assert spelled(prompt) == [*wanted, ("image", N_CELLS), ("template", ".")]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "this checkpoint has no chat template, .* Use `prompt_raw`"),
        ("USER : <image> ASSISTANT :", "does not show the query text as it was given"),
        ("<image> {{ messages[-1]['content'][-1]['text'] | upper }}", "the query text"),
        (
            "<image> {{ messages[-1]['content'][-1]['text'] }}",
            "not show the system text",
        ),
    ],
    ids=["none", "hides", "rewrites", "knows no system"],
)
def test_a_template_that_hides_the_text_is_refused(vlm, template, message):
    before = vlm.processor.chat_template
    vlm.processor.chat_template = template
    try:
        with pytest.raises(PromptError, match=message):
            vlm.prompt("the dog", picture, system="a cat")
    finally:
        vlm.processor.chat_template = before


# --- literal text ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<image> the dog", [("image", N_CELLS), ("query", "the dog")]),
        ("the <image> dog", [("query", "the"), ("image", N_CELLS), ("query", "dog")]),
        ("the dog<image>", [("query", "the dog"), ("image", N_CELLS)]),
        ("<image>", [("image", N_CELLS)]),
        ("<s> <image> dog", [("image", N_CELLS), ("query", "dog")]),
        ("  <image>   dog  ", [("image", N_CELLS), ("query", "dog")]),
    ],
)
def test_groups_of_literal_text(vlm, text, wanted):
    prompt = vlm.prompt_raw(text, picture)
    assert spelled(prompt) == [("bos", "<s>"), *wanted]
    assert prompt.text == text


def test_literal_text_alone(vlm):
    prompt = vlm.prompt_raw("USER : the dog")
    assert spelled(prompt) == [("bos", "<s>"), ("query", "USER : the dog")]
    assert prompt.layout.grids == ()
    assert set(prompt.inputs) & {"pixel_values"} == set()


def test_bos_in_the_middle_is_no_bos(vlm):
    prompt = vlm.prompt_raw("the <s> dog")
    assert prompt.layout["bos"] == Positions.of(0)


# --- what a prompt holds --------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 32), (7, 90), (32, 32)])
def test_image_positions_come_from_ids(vlm, size):
    prompt = vlm.prompt("the dog", tiny.picture(1, *size))
    (grid,) = prompt.layout.grids
    ids = prompt.ids[0].tolist()
    at = [i for i, each in enumerate(ids) if each == tiny.SPECIAL.index("<image>")]
    assert list(prompt.layout["image"]) == at
    assert len(at) == grid.rows * grid.cols == N_CELLS
    assert (grid.width, grid.height) == size == prompt.image.size
    features = vlm.hf_model.get_image_features(
        **{"pixel_values": prompt.inputs["pixel_values"]}
    )
    assert features.pooler_output[0].shape[0] == len(at)


def test_tokens_are_the_ids_spelled_out(vlm):
    prompt = vlm.prompt("the dog ?", picture, system="see")
    each = [vlm.tokenizer.decode([i]) for i in prompt.ids[0].tolist()]
    assert list(prompt.tokens) == each == vlm.to_str_tokens(prompt)
    assert len(prompt.tokens) == prompt.layout.n == prompt.ids.shape[1]
    assert vlm.to_str_tokens(prompt.ids) == each


def test_the_inputs_are_the_processors(vlm):
    """Nothing is lost and nothing is added on the way."""
    text = "USER : <image> the dog ASSISTANT :"
    direct = vlm.processor(text=text, images=picture, return_tensors="pt")
    prompt = vlm.prompt("the dog", picture)
    assert prompt.text == text
    assert set(prompt.inputs) == set(direct)
    for name, tensor in direct.items():
        torch.testing.assert_close(prompt.inputs[name], tensor, rtol=0, atol=0)


def test_a_path_is_its_picture(vlm, tmp_path):
    picture.save(tmp_path / "p.png")
    opened = vlm.prompt("the dog", picture).inputs["pixel_values"]
    for path in (tmp_path / "p.png", str(tmp_path / "p.png")):
        assert torch.equal(vlm.prompt("the dog", path).inputs["pixel_values"], opened)


def test_labels_name_token_and_group(vlm):
    prompt = vlm.prompt("the dog", picture)
    labels = prompt.labels("source")
    assert labels["token"] == ("source", list(prompt.tokens))
    dim, groups = labels["group"]
    assert (dim, groups[:3]) == ("source", ["bos", "template", "template"])
    assert groups.count("image") == N_CELLS


# --- longer and padded prompts --------------------------------------------------------


def last_logits(vlm, prompt):
    with torch.no_grad():
        return vlm(prompt)[0, -1]


def test_an_extended_prompt_is_the_longer_text(vlm):
    prompt = vlm.prompt("what color", picture)
    longer = prompt.extended(vlm.to_tokens("the dog", False)[0], ("the", "dog"))
    whole = vlm.prompt("what color", picture, prefix=" the dog")
    assert torch.equal(longer.ids, whole.ids)
    assert longer.tokens == whole.tokens
    assert spelled(longer)[-1] == ("generated", "the dog")
    assert torch.equal(longer.inputs["attention_mask"], whole.inputs["attention_mask"])
    torch.testing.assert_close(last_logits(vlm, longer), last_logits(vlm, whole))
    assert prompt.layout.n == longer.layout.n - 2, "the prompt itself is not touched"


def test_left_padding_changes_positions_and_nothing_else(vlm):
    prompt = vlm.prompt("what color", picture, system="see")
    padded = prompt.left_padded(3, vlm.tokenizer.pad_token_id)
    assert spelled(padded) == [("pad", "<pad> <pad> <pad>"), *spelled(prompt)]
    assert padded.layout.grids[0].start == prompt.layout.grids[0].start + 3
    torch.testing.assert_close(last_logits(vlm, padded), last_logits(vlm, prompt))
    mask = torch.ones_like(padded.inputs["attention_mask"])
    unmasked = replace(padded, inputs={**padded.inputs, "attention_mask": mask})
    assert not torch.allclose(last_logits(vlm, unmasked), last_logits(vlm, prompt))


def test_padding_and_extending_go_together(vlm):
    prompt = vlm.prompt("what color", picture)
    new, names = vlm.to_tokens("the dog", False)[0], ("the", "dog")
    twice = prompt.left_padded(1, 0).left_padded(2, 0)
    once = prompt.left_padded(3, 0)
    first, then = (
        once.extended(new, names),
        prompt.extended(new, names).left_padded(3, 0),
    )
    for ours, theirs in ((twice, once), (first, then)):
        assert ours.layout == theirs.layout
        assert ours.tokens == theirs.tokens
        for name in ours.inputs:
            assert torch.equal(ours.inputs[name], theirs.inputs[name]), name
    torch.testing.assert_close(
        last_logits(vlm, first), last_logits(vlm, prompt.extended(new, names))
    )


# --- pairs ----------------------------------------------------------------------------


def test_prompts_of_one_layout_are_a_pair(vlm):
    clean = vlm.prompt("what color", picture)
    assert check_pair(clean, vlm.prompt("the dog", tiny.picture(7))) is None
    assert (
        check_pair(clean, clean.extended(torch.tensor([], dtype=torch.long), ()))
        is None
    )


def test_prompts_of_two_lengths_are_no_pair(vlm):
    with pytest.raises(
        PairError, match="has 23 positions and the corrupted one 24: they"
    ):
        check_pair(vlm.prompt("what color", picture), vlm.prompt("a b c", picture))


def test_prompts_of_other_groups_are_no_pair(vlm):
    clean = vlm.prompt("the dog the", picture)
    other = vlm.prompt("the dog", picture, prefix=" the")
    with pytest.raises(
        PairError, match=r"same length but other groups \(query, template\)"
    ):
        check_pair(clean, other)


# --- words ----------------------------------------------------------------------------


def test_a_single_token_is_its_id(vlm):
    assert vlm.to_single_token("dog") == len(tiny.SPECIAL) + tiny.WORDS.index("dog")
    assert vlm.to_string(vlm.to_single_token("dog")) == "dog"


@pytest.mark.parametrize("special", tiny.SPECIAL)
def test_a_special_token_is_no_answer(vlm, special):
    with pytest.raises(TokenError, match=f"'{special}' is the special token"):
        vlm.to_single_token(special)


def test_words_there_and_back(vlm):
    ids = vlm.to_tokens("the dog ?")
    assert ids.tolist() == [
        [1, *vlm.to_tokens("the dog ?", prepend_bos=False)[0].tolist()]
    ]
    assert vlm.to_str_tokens("the dog") == ["<s>", "the", "dog"]
    assert vlm.to_string(vlm.to_tokens("the dog", prepend_bos=False)) == "the dog"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "red blue",
            r"'red blue' is 2 tokens .*'red', 'blue'.*; a metric needs exactly one",
        ),
        ("", "'' is 0 tokens .* single tokens, or pass a token id"),
        ("zebra", "'zebra' is not in the vocabulary: the tokenizer has only '<unk>'"),
    ],
)
def test_what_is_not_one_token_is_refused(vlm, word, message):
    with pytest.raises(TokenError, match=message):
        vlm.to_single_token(word)


def test_an_image_of_another_size_is_refused(vlm):
    """A processor that does not belong to the model: 9 patches for 16 cells."""
    lying = tiny.processor(clip=vlm.processor.num_additional_image_tokens == 1)
    lying.patch_size = 10
    with pytest.raises(
        LayoutError, match="9 image positions do not fill whole images of 4"
    ):
        HookedVLM(vlm.hf_model, lying).prompt("the dog", picture)


def test_a_file_on_its_side_is_turned_up(tiny_vlm, tmp_path):
    """Oracle: the picture that was laid on its side before saving."""
    upright = tiny.picture(1, width=40, height=32)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to view"
    turned.save(tmp_path / "side.png", exif=exif)
    prompt = tiny_vlm.prompt("what color ?", tmp_path / "side.png")
    assert prompt.image.size == (40, 32)
    assert prompt.image.tobytes() == upright.tobytes()
