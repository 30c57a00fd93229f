"""Compressed contexts against plain eager passes over the whole sequence.

The oracle keeps no cache and drops nothing: a second copy of the model runs prompt,
question and answer so far through Hugging Face's eager attention, and a hook written
here adds minus infinity where a new row would read what a layer has dropped.
"""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Count, Positions
from mechvlm.models import asking
from mechvlm.models.compressing import Generated, LastRow, Random, image_scores, n_kept
from mechvlm.models.context import whole_context

CLOSE = 1e-5
"""Largest difference of two float32 logits; they reach 3 here, and 1e-6 was seen."""

TEXT, QUESTION = "what color is the cat ?", "is the dog red ?"
NEW = 4
EVERY_KIND = pytest.mark.parametrize(
    "kind", tiny.EVERY_KIND, ids=lambda k: f"{k.family}-{k.backbone}-{k.kv_heads}"
)


@cache
def case_of(kind):
    """A hooked model, its eager copy, a prompt, and how a question follows it."""
    vlm = mv.HookedVLM(*tiny.build(kind))
    plain, _ = tiny.build(kind, attention="eager")
    for model in (vlm.hf_model, plain):  # random models end where they like
        model.generation_config.eos_token_id = None
        model.config.text_config.eos_token_id = None
        with torch.no_grad():  # nor may they say that a picture stands here
            model.lm_head.weight[tiny.SPECIAL.index("<image>")] = 0
    raw = vlm.processor.chat_template is None
    render = (lambda question: question) if raw else None
    return SimpleNamespace(
        vlm=vlm, plain=plain, prompt=tiny.ask(vlm, TEXT), render=render
    )


@pytest.fixture
def case(kind):
    return case_of(kind)


def put(case, question=QUESTION):
    """Token ids of the question, by the tokenizer alone."""
    cue = "" if case.render else " ASSISTANT :"
    encoded = case.vlm.processor.tokenizer(question + cue, add_special_tokens=False)
    return torch.tensor(encoded["input_ids"])


@torch.no_grad()
def plainly(case, new, kept, prompt=None, positions=None):
    """Last logits of a whole eager pass in which the new rows read `kept` alone."""
    prompt = case.prompt if prompt is None else prompt
    n, whole = prompt.layout.n, prompt.extended(new, ("",) * len(new))
    inputs = dict(whole.inputs)
    if positions is not None:
        inputs["position_ids"] = positions
    hooks = []
    for layer, held in zip(case.plain.model.language_model.layers, kept, strict=True):
        gone = [at for at in range(n) if at not in held]

        def drop(_, args, kwargs, gone=gone):
            mask = kwargs["attention_mask"].clone()
            mask[:, :, n:, gone] = -math.inf
            return args, kwargs | {"attention_mask": mask}

        hook = layer.self_attn.register_forward_pre_hook(drop, with_kwargs=True)
        hooks.append(hook)
    try:
        return case.plain(**inputs, use_cache=False).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()


def step_by_step(case, kept, n_steps=NEW, **how):
    """Greedy ids and logits; each step is one whole pass."""
    new, logits = put(case), []
    for _ in range(n_steps):
        logits.append(plainly(case, new, kept, **how))
        new = torch.cat([new, logits[-1].argmax()[None]])
    return new[-n_steps:].tolist(), torch.stack(logits)


def asked(case, context, **how):
    how = {"render": case.render, "max_new_tokens": NEW} | how
    return mv.ask(case.vlm, context, QUESTION, **how)


def check_close(found, wanted, atol=CLOSE):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


# --- exactness ------------------------------------------------------------------------


@EVERY_KIND
def test_keeping_everything_is_the_plain_pass_over_the_whole_sequence(case):
    whole = mv.compressed_context(case.vlm, case.prompt, keep=1.0, select="last")
    every = [range(case.prompt.layout.n)] * case.vlm.cfg.n_layers
    ids, logits = step_by_step(case, every)
    said = asked(case, whole)
    assert said.ids.tolist() == ids
    check_close(said.logits, logits)


@EVERY_KIND
@pytest.mark.parametrize("text", ["prompt_text", "bos", "nothing"])
def test_what_is_dropped_is_masked_in_each_layer(case, text):
    """Windows and images that are read both ways included."""
    what = Positions.of() if text == "nothing" else text
    context = mv.compressed_context(
        case.vlm, case.prompt, keep=0.3, select=Random(1), text=what
    )
    assert len(set(context.kept)) == case.vlm.cfg.n_layers
    ids, logits = step_by_step(case, context.kept)
    said = asked(case, context)
    assert said.ids.tolist() == ids
    check_close(said.logits, logits)
    whole = asked(case, whole_context(case.vlm, case.prompt))
    assert (said.logits[0] - whole.logits[0]).abs().max() > 100 * CLOSE


@EVERY_KIND
def test_trap_04_position_is_not_cache_index(case, monkeypatch):
    """Counted from the cache's length, the new positions give another answer."""
    context = mv.compressed_context(case.vlm, case.prompt, keep=0.3, select="last")
    wanted = plainly(case, put(case), context.kept)
    check_close(asked(case, context).logits[0], wanted)
    short = torch.arange(context.n_tokens)[None]
    monkeypatch.setattr(asking, "position_ids", lambda prompt: short)
    assert (asked(case, context).logits[0] - wanted).abs().max() > 100 * CLOSE


@EVERY_KIND
def test_trap_07_padding_moves_indices_and_no_answer(case):
    """Its logits are those of the same prompt without padding."""
    padded = case.prompt.left_padded(3, 0)
    for keep in (1.0, 0.3):
        plain = mv.compressed_context(case.vlm, case.prompt, keep=keep, select="last")
        moved = mv.compressed_context(case.vlm, padded, keep=keep, select="last")
        shifted = [tuple(at - 3 for at in held) for held in moved.kept]
        assert shifted == [tuple(held) for held in plain.kept]
        check_close(asked(case, moved).logits, asked(case, plain).logits)


def test_trap_12_the_number_kept_is_counted_on_the_layout():
    """The paper's 5 % and 2 % of LLaVA-1.5's 576 positions are 28 and 11."""
    image = Positions.of(range(5, 581))
    groups = {"image": image, "query": Positions.of(range(600)) - image}
    grid = mv.ImageGrid(5, 24, 24, 336, 336, (0, 0, 336, 336))
    prompt = mv.Prompt({}, mv.Layout(600, groups, (grid,)), "", ("",) * 600)
    assert [n_kept(keep, prompt) for keep in (0.05, 0.02, 1.0, 0.0)] == [28, 11, 576, 0]
    assert [n_kept(Count(n), prompt) for n in (0, 1, 28, 576)] == [0, 1, 28, 576]
    assert [n_kept(k / 576, prompt) for k in range(577)] == [*range(577)]


def test_a_plain_number_is_a_share_and_one_is_all(tiny_vlm, tiny_prompt):
    """1 and 1.0 are the same, as in `keeps`; a number above says how to count."""
    kept = [
        mv.compressed_context(tiny_vlm, tiny_prompt, keep=keep, select="norm").n_image
        for keep in (1, 1.0, Count(1), 0, 0.0)
    ]
    assert kept == [16, 16, 1, 0, 0]
    with pytest.raises(mv.LayoutError, match=r"0.0 to 1.0. A number .* keep=Count\(28"):
        mv.compressed_context(tiny_vlm, tiny_prompt, keep=2, select="norm")
    with pytest.raises(mv.LayoutError, match="keep=True"):
        mv.compressed_context(tiny_vlm, tiny_prompt, keep=True, select="norm")


def test_a_run_is_read_as_its_prompt_is(tiny_vlm, tiny_prompt):
    runs = mv.base_run(tiny_vlm, tiny_prompt), mv.record(tiny_vlm, tiny_prompt, ["z"])
    how = {"keep": 0.3, "select": "last"}
    wanted = mv.compressed_context(tiny_vlm, tiny_prompt, **how)
    for run in runs:
        found = mv.compressed_context(tiny_vlm, run, **how)
        assert found.prompt is tiny_prompt and found.kept == wanted.kept
        assert all(map(torch.equal, found.keys, wanted.keys))
    assert whole_context(tiny_vlm, runs[0]).n_tokens == tiny_prompt.layout.n


@EVERY_KIND
def test_trap_13_questions_go_on_from_the_last_position_not_the_last_index(case):
    """Rotary positions that are given, and run ahead of the indices, are kept."""
    n, ahead = case.prompt.layout.n, 7
    given = torch.arange(n)[None] + (torch.arange(n)[None] >= n // 2) * ahead
    prompt = mv.Prompt(
        {**case.prompt.inputs, "position_ids": given},
        *(case.prompt.layout, case.prompt.text, case.prompt.tokens),
        *(case.prompt.image, case.prompt.fills),
    )
    context = mv.compressed_context(case.vlm, prompt, keep=0.3, select="last")
    new = put(case)
    there = torch.cat([given, torch.arange(len(new))[None] + n + ahead], dim=1)
    wanted = plainly(case, new, context.kept, prompt=prompt, positions=there)
    check_close(asked(case, context).logits[0], wanted)


@EVERY_KIND
def test_trap_14_grouped_heads_are_kept_as_they_are(case):
    cfg = case.vlm.cfg
    context = mv.compressed_context(case.vlm, case.prompt, keep=Count(5), select="last")
    text = case.prompt.layout.n - 16
    shape = cfg.n_key_value_heads, 5 + text, cfg.d_head
    assert {tuple(x.shape) for x in (*context.keys, *context.values)} == {shape}
    assert context.n_bytes == 2 * cfg.n_layers * math.prod(shape) * 4
    assert {len(held) for held in context.kept} == {5 + text}
    whole = whole_context(case.vlm, case.prompt)
    for layer, held in enumerate(context.kept):
        rows = list(held)
        assert torch.equal(context.keys[layer], whole.keys[layer][:, rows])
        assert torch.equal(context.values[layer], whole.values[layer][:, rows])


def test_a_context_is_asked_many_times_and_stays_as_it_is(tiny_vlm, untouched):
    prompt = tiny_vlm.prompt(TEXT, tiny.picture())
    context = mv.compressed_context(tiny_vlm, prompt, keep=0.5, select=Generated(3))
    before = [x.clone() for x in (*context.keys, *context.values)]
    first = mv.ask(tiny_vlm, context, QUESTION)
    mv.ask(tiny_vlm, context, "what dog ?")
    again = mv.ask(tiny_vlm, context, QUESTION)
    assert torch.equal(first.logits, again.logits)
    assert all(map(torch.equal, before, (*context.keys, *context.values)))
    assert untouched() == []


def test_the_answers_layout_is_that_of_the_whole_sequence(tiny_vlm, tiny_prompt):
    context = mv.compressed_context(tiny_vlm, tiny_prompt, keep=Count(2), select="last")
    said = mv.ask(tiny_vlm, context, "red dog", prefix=" a", max_new_tokens=2)
    # 23 of the prompt; red dog ASSISTANT : a; one or two that were said
    asked = Positions.of(range(23, 28))
    assert said.layout["query"] == tiny_prompt.layout["query"] | asked
    assert list(said.layout["generated"]) == list(range(28, 28 + len(said.ids)))
    assert said.layout["image"] == tiny_prompt.layout["image"]


def test_a_context_prints_what_it_holds(tiny_vlm, tiny_prompt):
    context = mv.compressed_context(
        tiny_vlm, tiny_prompt, keep=Count(2), select="random"
    )
    # 4 layers x (keys, values) x 2 heads x 9 positions x 16 wide x 4 bytes
    assert repr(context) == (
        "Context(9 of 23 positions in each of 4 layers: 2 of 16 image, 7 of 7 text;"
        " 9,216 bytes of keys and values)"
    )


# --- what is selected -----------------------------------------------------------------


@EVERY_KIND
def test_scores_are_hugging_faces_own_attentions(case):
    """Step 0 is the last row of the prompt; each step has one row."""
    at, new = list(case.prompt.layout["image"]), torch.tensor([], dtype=torch.long)
    made = []
    for _ in range(NEW):
        whole = case.prompt.extended(new, ("",) * len(new))
        with torch.no_grad():
            out = case.plain(**whole.inputs, output_attentions=True, use_cache=False)
        made.append(out.attentions)
        new = torch.cat([new, out.logits[0, -1].argmax()[None]])
    last, generated = (
        image_scores(case.vlm, case.prompt, select)
        for select in (LastRow(), Generated(NEW))
    )
    for layer in range(case.vlm.cfg.n_layers):
        rows = [step[layer][0, :, -1, at].mean(dim=0) for step in made]
        check_close(last[layer], rows[0])
        check_close(generated[layer], sum(rows) / len(rows))
    assert (last - generated).abs().max() > 100 * CLOSE


def test_norms_are_those_of_the_stream_that_enters(tiny_vlm, tiny_prompt):
    with torch.no_grad():
        out = tiny_vlm.hf_model(**tiny_prompt.inputs, output_hidden_states=True)
    found = image_scores(tiny_vlm, tiny_prompt, "norm")
    for layer in range(4):
        wanted = out.hidden_states[layer][0, 3:19].square().sum(dim=-1).sqrt()
        check_close(found[layer], wanted)


def test_the_best_of_each_layer_are_kept_and_of_equals_the_first(tiny_vlm, tiny_prompt):
    scores = torch.zeros(4, 16)
    scores[0, [2, 9]] = 1.0
    scores[1, 15] = 3.0
    scores[2] = torch.arange(16.0)
    context = mv.compressed_context(
        tiny_vlm,
        tiny_prompt,
        keep=Count(2),
        select=lambda vlm, prompt: scores,
        text="bos",
    )
    wanted = [(0, 5, 12), (0, 3, 18), (0, 17, 18), (0, 3, 4)]
    assert [held.indices for held in context.kept] == wanted


def test_chance_differs_by_layer_and_seed(tiny_vlm, tiny_prompt):
    draws = [
        mv.compressed_context(
            tiny_vlm, tiny_prompt, keep=Count(4), select=Random(seed)
        ).kept
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 4


# --- how a question is put ------------------------------------------------------------

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


@pytest.mark.parametrize(
    ("template", "put"),
    [
        (LLAVA_TEMPLATE, "Is it red? ASSISTANT:"),
        (CHATML, "Is it red?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_question_goes_on_as_the_template_would(tiny_vlm, monkeypatch, template, put):
    prompt = tiny_vlm.prompt(TEXT, tiny.picture())
    monkeypatch.setattr(tiny_vlm.processor, "chat_template", template)
    assert asking.follow_up(tiny_vlm, prompt)("Is it red?") == put


def test_templates_that_cannot_be_followed_say_so(tiny_vlm, tiny_prompt, monkeypatch):
    context = mv.compressed_context(
        tiny_vlm, tiny_prompt, keep=Count(2), select="random"
    )
    for template, why in [
        (None, "no chat template.*Give render="),
        ("{{ messages[0]['content'][1]['text'] }} <image>", "puts the image after"),
        ("USER :", "hides the user's words"),
    ]:
        monkeypatch.setattr(tiny_vlm.processor, "chat_template", template)
        with pytest.raises(mv.PromptError, match=why):
            mv.ask(tiny_vlm, context, QUESTION)
        mv.ask(tiny_vlm, context, QUESTION, render=lambda q: f"{q} ASSISTANT :")


# --- what is refused ------------------------------------------------------------------


def test_contexts_that_cannot_be_made(tiny_vlm, tiny_prompt, no_forward):
    def made(prompt=tiny_prompt, **how):
        return mv.compressed_context(
            tiny_vlm, prompt, **{"keep": Count(2), "select": "random"} | how
        )

    for keep, what in [
        (1.5, "0.0 to 1.0"),
        (-1, "keep=-1"),
        (math.nan, "keep=nan"),
        (Count(17), "0 to 16"),
    ]:
        with pytest.raises(mv.LayoutError, match=what):
            made(keep=keep)
    with pytest.raises(mv.LayoutError, match=r"Count\(-1\)"):
        Count(-1)
    with pytest.raises(mv.MissingImageError, match="no image position to keep"):
        made(tiny_vlm.prompt("the dog"))


def test_contexts_that_keep_what_they_cannot(tiny_vlm, tiny_prompt):
    def made(**how):
        return mv.compressed_context(
            tiny_vlm, tiny_prompt, **{"keep": Count(2), "select": "random"} | how
        )

    with pytest.raises(mv.LayoutError, match="keeps nothing cannot be asked"):
        made(keep=0, text=Positions.of())
    with pytest.raises(mv.LayoutError, match="names image positions"):
        made(text="image")
    with pytest.raises(mv.LayoutError, match=r"positions 99 are not held"):
        made(text=Positions.of(99))
    for scores, what in [(torch.ones(4, 3), r"\(4, 3\)"), (np.nan, "finite: False")]:
        given = torch.full((4, 16), scores) if isinstance(scores, float) else scores
        with pytest.raises(mv.MetricError, match=what):
            made(select=lambda vlm, prompt, given=given: given)
    whole = whole_context(tiny_vlm, tiny_prompt)
    some, other = Positions.of(1), Positions.of(1, 2)
    with pytest.raises(mv.LayoutError, match=r"keep \[1, 2\] positions; wanted one"):
        whole.narrowed([some, other, some, some])
    with pytest.raises(mv.LayoutError, match="given for 1 layers"):
        whole.narrowed([some])
    longer = tiny_prompt.extended(torch.tensor([7]), ("dog",))
    with pytest.raises(mv.PromptError, match="goes on with generated tokens"):
        whole_context(tiny_vlm, longer)


def test_questions_that_cannot_be_asked(tiny_vlm, tiny_prompt, demo):
    context = mv.compressed_context(
        tiny_vlm, tiny_prompt, keep=Count(2), select="random"
    )
    with pytest.raises(mv.PromptError, match="there is nothing to ask"):
        mv.ask(tiny_vlm, context, " ")
    with pytest.raises(mv.PromptError, match="is put as ''"):
        mv.ask(tiny_vlm, context, "red ?", render=lambda question: "")
    with pytest.raises(mv.PromptError, match="holds an image placeholder"):
        mv.ask(tiny_vlm, context, "<image> red ?")
    with pytest.raises(mv.InterventionError, match="max_new_tokens=0"):
        mv.ask(tiny_vlm, context, QUESTION, max_new_tokens=0)
    with pytest.raises(mv.EngineError, match="another model made it"):
        mv.ask(demo, context, QUESTION)
