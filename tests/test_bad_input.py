"""Bad input gets its own error, with words that help, and nothing is left behind.

After every test here the fixture `untouched` compares hooks, layers, attention
implementation and every weight with what they were.
"""

import pytest
import tiny
import torch
from PIL import Image

from mechvlm import errors
from mechvlm.analyses.activation_patching import activation_patching
from mechvlm.axes import output_folder
from mechvlm.layout import Positions
from mechvlm.metrics import logit_difference, probability

pytestmark = pytest.mark.usefixtures("untouched")

LAST = Positions.of(22)


@pytest.fixture
def prompt(tiny_prompt):
    return tiny_prompt


@pytest.fixture(scope="module")
def text_only(tiny_vlm):
    return tiny_vlm.prompt("what color")


def same(activation, hook):
    return activation


def raises(error, message):
    """A context that wants this error, with this message."""
    return pytest.raises(error, match=message)


@pytest.mark.usefixtures("no_forward")
def test_the_guard_sees_a_forward(tiny_vlm, prompt):
    with pytest.raises(AssertionError, match="a forward pass ran although"):
        tiny_vlm(prompt)


def test_the_guard_sees_what_is_left(tiny_vlm, untouched):
    """Each thing that a run borrows, kept on purpose; then given back."""
    tiny_vlm.add_hook("hook_embed", same)
    assert untouched() == ["hooks on hook_embed", "torch hooks of hook_embed"]
    tiny_vlm.reset_hooks()
    backbone = tiny_vlm.hf_model.model.language_model
    handle = backbone.norm.register_forward_pre_hook(same)
    assert "torch hooks of hf_model.model.language_model.norm" in untouched()
    handle.remove()
    config = tiny_vlm.hf_model.config.text_config
    config._attn_implementation, was = "mechvlm", config._attn_implementation
    assert untouched() == ["attention of llama"]
    config._attn_implementation = was
    layers = backbone.layers
    backbone.layers = torch.nn.ModuleList(list(layers))
    assert "children of hf_model.model.language_model" in untouched()
    backbone.layers = layers
    weight = backbone.norm.weight.data
    was = weight.clone()
    weight[3] += 1e-3
    assert untouched() == ["weight hf_model.model.language_model.norm.weight"]
    weight.copy_(was)


# --- images ---------------------------------------------------------------------------


def test_a_placeholder_without_an_image(tiny_vlm):
    with raises(
        errors.MissingImageError, r"holds 1 image placeholder.*no image was giv"
    ):
        tiny_vlm.prompt_raw("<image> what color")


def test_an_image_without_a_placeholder(tiny_vlm):
    with raises(
        errors.PlaceholderError, r"so the image would be lost\. Put it in once"
    ):
        tiny_vlm.prompt_raw("what color", tiny.picture())


def test_two_placeholders_for_one_image(tiny_vlm):
    with raises(
        errors.PlaceholderError, "holds 2 image placeholders '<image>' for one"
    ):
        tiny_vlm.prompt_raw("<image> <image> what", tiny.picture())


@pytest.mark.parametrize("where", ["text", "prefix", "system"])
def test_a_placeholder_where_the_template_puts_it(tiny_vlm, where):
    words = {"text": "the dog"} | {where: "the <image> dog"}
    with raises(errors.PlaceholderError, "`prompt` puts it in by itself. Leave it out"):
        tiny_vlm.prompt(image=tiny.picture(), **words)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_question(tiny_vlm, text):
    with raises(errors.PromptError, "the text is empty: there is nothing to ask"):
        tiny_vlm.prompt(text, tiny.picture())


def test_a_file_that_is_no_picture(tiny_vlm, tmp_path):
    (tmp_path / "notes.png").write_text("milk, eggs")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("notes.png", "empty.png", "missing.png", "."):
        with raises(
            errors.UnreadableImageError, r"cannot read .* as an image: .* Wanted"
        ):
            tiny_vlm.prompt("what color", tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
def test_a_torn_picture(tiny_vlm, tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    tiny.picture(0, 64, 64).save(whole)
    torn = tmp_path / f"torn.{suffix}"
    for share in (0.02, 0.3, 0.7):
        torn.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        with raises(
            errors.UnreadableImageError, f"cannot read .*torn.{suffix} as an im"
        ):
            tiny_vlm.prompt("what color", torn)


def test_a_torn_picture_that_is_already_open(tiny_vlm, tmp_path):
    """PIL reads pixels late: the file breaks only where they are needed."""
    tiny.picture(0, 64, 64).save(tmp_path / "torn.png")
    half = (tmp_path / "torn.png").read_bytes()[:3000]
    (tmp_path / "torn.png").write_bytes(half)
    with (
        Image.open(tmp_path / "torn.png") as picture,
        raises(
            errors.UnreadableImageError, r"cannot read .*as an image: image file is tr"
        ),
    ):
        tiny_vlm.prompt("what color", picture)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_picture_of_more_than_8_bits(tiny_vlm, mode):
    """Pillow would make almost all of it white, and the image would be lost."""
    with raises(
        errors.UnreadableImageError, f"has mode '{mode}', and Pillow would cut"
    ):
        tiny_vlm.prompt("what color", Image.new(mode, (40, 40), 300))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_picture_of_8_bits_is_read(tiny_vlm, prompt, mode):
    picture = tiny.picture().convert(mode)
    made = tiny_vlm.prompt("what color", picture)
    assert made.image.mode == "RGB"
    assert made.inputs["pixel_values"].std() > 0.1
    assert made.inputs["pixel_values"].shape == prompt.inputs["pixel_values"].shape


def test_a_picture_without_pixels(tiny_vlm):
    with raises(
        errors.UnreadableImageError, r"the picture of size \(0, 5\) has no pixels"
    ):
        tiny_vlm.prompt("what color", Image.new("RGB", (0, 5)))


def test_a_box_outside_the_picture(prompt):
    with raises(errors.RegionError, r"is not inside the picture of 40 x 32 pixels"):
        prompt.layout.region((30, 10, 41, 20))
    with raises(errors.RegionError, "an area cropped away has no tokens"):
        prompt.layout.region((0, 0, 4, 32))


# --- words ----------------------------------------------------------------------------


def test_an_answer_of_several_tokens(tiny_vlm):
    with raises(errors.TokenError, "'red blue' is 2 tokens"):
        logit_difference(tiny_vlm, "red blue", "cat")
    with raises(errors.TokenError, "'violet' is not in the vocabulary"):
        probability(tiny_vlm, "violet")


# --- pairs ----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_forward")
def test_prompts_of_two_lengths(tiny_vlm, prompt):
    longer = tiny_vlm.prompt("what color ?", tiny.picture(1))
    metric = logit_difference(tiny_vlm, "red", "blue")
    with raises(errors.PairError, "has 23 positions and the corrupted one 24"):
        activation_patching(tiny_vlm, prompt, longer, metric=metric)


def test_prompts_without_a_difference(tiny_vlm, prompt):
    metric = logit_difference(tiny_vlm, "red", "blue")
    with raises(errors.MetricError, "there is no gap to recover"):
        activation_patching(tiny_vlm, prompt, prompt, metric=metric, layers=[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [4]}, errors.LayerError, r"layers \[4\] cannot be patched"),
        ({"layers": []}, errors.LayerError, r"layers \[\] cannot be patched"),
        ({"at": "generated"}, errors.InterventionError, "'generated' is empty in this"),
        ({"at": "img"}, errors.LayoutError, "no group is called 'img'"),
        (
            {"at": {"a": LAST}, "site": "z"},
            errors.InterventionError,
            "head by head, so",
        ),
        (
            {"at": Positions.of(50)},
            errors.InterventionError,
            "names positions 50, outsid",
        ),
    ],
)
def test_a_sweep_of_nothing(tiny_vlm, prompt, options, error, message):
    other = tiny_vlm.prompt("what color", tiny.picture(5))
    metric = logit_difference(tiny_vlm, "red", "blue")
    with raises(error, message):
        activation_patching(tiny_vlm, prompt, other, metric=metric, **options)


# --- hooks ----------------------------------------------------------------------------


def broken(activation, hook):
    raise ZeroDivisionError("a mistake inside a hook")


def test_a_typo_in_a_hook_name(tiny_vlm, prompt):
    typo = [("blocks.1.hook_resid_prE", same)]
    near = (
        r"no hook point is called 'blocks.1.hook_resid_prE'\. Near it: blocks\.1\.hook"
    )
    with raises(errors.HookError, near):
        tiny_vlm.run_with_hooks(prompt, fwd_hooks=[("hook_embed", same), *typo])
    with raises(errors.HookError, near):
        tiny_vlm.run_with_cache(prompt, names_filter="blocks.1.hook_resid_prE")
    with raises(errors.HookError, near):
        tiny_vlm.add_hook(*typo[0])
    with raises(errors.HookError, "a filter of hook names matches no hook point"):
        tiny_vlm.run_with_hooks(
            prompt, fwd_hooks=[(lambda name: "pattrn" in name, same)]
        )
    with raises(errors.HookError, r"Turn it on with vlm.set_use_attn_result\(True\)"):
        tiny_vlm.run_with_hooks(prompt, fwd_hooks=[("blocks.0.attn.hook_result", same)])


@pytest.mark.parametrize("keep", [True, False])
def test_a_hook_that_never_fires(tiny_vlm, prompt, text_only, keep):
    vision = [("vision_projector.hook_out", same)]
    try:
        with raises(
            errors.HookError, r"hooks on vision_projector.hook_out \(forward\) never fi"
        ):
            tiny_vlm.run_with_hooks(text_only, fwd_hooks=vision, reset_hooks_end=keep)
        with raises(errors.HookError, "stopped before that layer"):
            tiny_vlm.run_with_hooks(
                prompt, fwd_hooks=[("blocks.3.hook_resid_pre", same)], stop_at_layer=2
            )
        with (
            raises(errors.HookError, "no forward ran"),
            tiny_vlm.hooks([("hook_embed", same)]),
        ):
            pass
    finally:
        tiny_vlm.reset_hooks()
    with raises(errors.HookError, "or a vision hook met a prompt without an image"):
        tiny_vlm.run_with_cache(text_only, names_filter="vision_projector.hook_out")


def test_a_backward_hook_that_cannot_fire(tiny_vlm, prompt):
    back = [("hook_embed", same)]
    with (
        torch.no_grad(),
        raises(errors.HookError, "given while gradients are off, so they could never"),
        tiny_vlm.hooks(bwd_hooks=back),
    ):
        raise AssertionError("never reached")
    with raises(
        errors.HookError, "would be removed before a backward pass could reach"
    ):
        tiny_vlm.run_with_hooks(prompt, bwd_hooks=back)


@pytest.mark.parametrize(
    "name",
    [
        "hook_embed",
        "blocks.1.attn.hook_pattern",
        "blocks.2.hook_resid_mid",
        "blocks.3.attn.hook_rot_q",
        "vision_projector.hook_out",
        "ln_final.hook_scale",
    ],
)
def test_a_mistake_inside_a_hook(tiny_vlm, prompt, name):
    """The error passes through as it is, and everything borrowed is given back."""
    with pytest.raises(ZeroDivisionError, match="a mistake inside a hook"):
        tiny_vlm.run_with_hooks(prompt, fwd_hooks=[(name, broken), (name, same)])
    residual = torch.zeros(1, 23, 64)
    with pytest.raises(ZeroDivisionError):
        tiny_vlm.run_with_hooks(
            residual, prompt=prompt, start_at_layer=1,
            fwd_hooks=[("blocks.3.hook_resid_pre", broken)],
        )  # fmt: skip
    with (
        pytest.raises(ZeroDivisionError),
        tiny_vlm.attn_results([("attn.hook_result", same)]),
    ):
        hooks = [("blocks.2.attn.hook_result", broken)]
        tiny_vlm.run_with_hooks(prompt, fwd_hooks=hooks)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, None), (0, -1), (0, 5)])
def test_a_layer_to_start_or_stop_at(tiny_vlm, prompt, start, stop):
    residual = torch.zeros(1, 23, 64)
    with raises(errors.LayerError, r"is out of range: this model has 4 layers, 0\.\.3"):
        tiny_vlm(residual, prompt=prompt, start_at_layer=start, stop_at_layer=stop)


def test_half_of_what_a_forward_needs(tiny_vlm, prompt):
    residual = torch.zeros(1, 23, 64)
    wanted = (
        r"wanted vlm\(prompt\), or vlm\(residual, prompt=prompt, start_at_layer=k\)"
    )
    for given in ({"prompt": prompt}, {"start_at_layer": 1}, {}):
        with raises(errors.PromptError, wanted):
            tiny_vlm(residual, **given)
    with raises(
        errors.PromptError, "alone would lose the image: build them with vlm.pr"
    ):
        tiny_vlm(prompt, start_at_layer=2)


# --- files ----------------------------------------------------------------------------


def test_a_half_written_output(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-0.nc").write_bytes(b"")
    with (
        raises(errors.OutputError, "is not a finished output: it is half-written"),
        output_folder(tmp_path / "out"),
    ):
        raise AssertionError("never reached")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_every_error_is_one_of_pythons_own_too():
    """Code that knows nothing of this package still catches it."""
    kinds = [vars(errors)[name] for name in errors.__all__]
    for kind in kinds:
        if issubclass(kind, errors.MechVLMError) and kind is not errors.MechVLMError:
            assert any(own in kind.__mro__ for own in PYTHONS), kind


PYTHONS = (ValueError, TypeError, RuntimeError, OSError, LookupError)
