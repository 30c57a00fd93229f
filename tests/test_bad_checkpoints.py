"""A checkpoint that is damaged or unknown is refused, and never half loaded.

Also what only shows where types are not checked, as with a user: in a process apart.
"""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from mechvlm import errors
from mechvlm.models.checks import check_model
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.load import load

WEIGHTS = "model.safetensors"
pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def quiet(monkeypatch):
    """Keep transformers' own reports of what is missing off the screen."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A copy of a whole checkpoint, to be spoiled."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def without(name):
    return lambda folder: (folder / name).unlink()


def torn(name, share=0.5):
    def tear(folder):
        file = folder / name
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    return tear


def config(part=None, **changes):
    def change(folder):
        file = folder / "config.json"
        found = json.loads(file.read_text())
        (found[part] if part else found).update(changes)
        file.write_text(json.dumps(found))

    return change


def weights(change):
    def rewrite(folder):
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def lose(found):
    del found["language_model.model.layers.2.mlp.down_proj.weight"]


def gain(found):
    found["adapter.weight"] = torch.ones(3)


def damage(found):
    found["language_model.model.layers.1.self_attn.q_proj.weight"][0] = float("nan")


def silence(found):
    for name in found:
        if "multi_modal_projector" in name:
            found[name].zero_()


SPOILED = {
    "no config": (
        without("config.json"),
        errors.CheckpointError,
        "config.json missing",
    ),
    "torn config": (torn("config.json"), errors.CheckpointError, "not a valid JSON"),
    "no weights": (without(WEIGHTS), errors.CheckpointError, r"\*.safetensors missing"),
    "torn weights": (torn(WEIGHTS), errors.CheckpointError, "file not fully covered"),
    "empty weights": (torn(WEIGHTS, 0), errors.CheckpointError, "header too small"),
    "torn header": (
        torn(WEIGHTS, 1e-4),
        errors.CheckpointError,
        "cannot load .*header",
    ),
    "no processor": (
        without("processor_config.json"),
        errors.CheckpointError,
        "what save_pretrained of model and processor writes",
    ),
    "no tokenizer": (without("tokenizer.json"), errors.CheckpointError, "cannot load"),
    "torn tokenizer": (torn("tokenizer.json"), errors.CheckpointError, "cannot load"),
    "a weight less": (
        weights(lose),
        errors.CheckpointError,
        "has 1 missing keys, such as .*layers.2.mlp.down_proj.* would be random",
    ),
    "a weight more": (
        weights(gain),
        errors.CheckpointError,
        "1 unexpected keys, such as",
    ),
    "a layer more": (
        config("text_config", num_hidden_layers=5),
        errors.CheckpointError,
        "has 9 missing keys",
    ),
    "a layer less": (
        config("text_config", num_hidden_layers=3),
        errors.CheckpointError,
        "has 9 unexpected keys",
    ),
    "another shape": (
        config("text_config", intermediate_size=80),
        errors.CheckpointError,
        "cannot load .*mismatch",
    ),
    "a number that is none": (
        weights(damage),
        errors.ModelCheckError,
        "gives NaN or infinite logits. Weights are damaged, or torch.float32",
    ),
    "no projector": (
        weights(silence),
        errors.ModelCheckError,
        "changes no logit: the image does not reach .* projector's weights loaded",
    ),
    "unknown architecture": (
        config(architectures=["LlavaNextForConditionalGeneration"]),
        errors.FamilyError,
        "architecture LlavaNext.* is not known here; known are LlavaForConditionalG",
    ),
    "another kind of model": (
        config(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        errors.FamilyError,
        "architecture GPT2LMHeadModel is not known here",
    ),
    "nobody's model type": (
        config(model_type="zebra", architectures=["ZebraForAll"]),
        errors.FamilyError,
        "the config of .* is not known here: .*zebra",
    ),
    "unknown config key": (
        config(image_tiles=4),
        errors.FamilyError,
        r"has keys that family 'llava' does not understand: \['image_tiles'\]",
    ),
    "unknown text key": (
        config("text_config", residual_scale=2.0),
        errors.FamilyError,
        r"does not understand: \['residual_scale'\]\. They may change what",
    ),
    "unknown backbone": (
        config("text_config", model_type="gemma"),
        errors.FamilyError,
        "language backbone 'gemma' is not known here; known are llama, mistral, qwen2",
    ),
    "CLS token kept": (
        config(vision_feature_select_strategy="full"),
        errors.FamilyError,
        "keeps the CLS token",
    ),
    "another image token": (
        config(image_token_index=7),
        errors.LayoutError,
        "0 image positions do not fill",
    ),
}


def test_the_whole_checkpoint_loads(folder, tiny_vlm):
    """Otherwise every refusal below could have another reason."""
    vlm = load(folder)
    assert vlm.cfg.model_name == "copy"
    assert not vlm.hf_model.training
    prompt = tiny_vlm.prompt("the dog", tiny.picture())
    with torch.no_grad():
        torch.testing.assert_close(vlm(prompt), tiny_vlm(prompt), rtol=0, atol=0)


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_checkpoint(name, folder):
    spoil, error, message = SPOILED[name]
    spoil(folder)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    with pytest.raises(error, match=f"(?s){message}"):
        load(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


@pytest.mark.parametrize("place", ["missing", "config.json", "empty"])
def test_no_checkpoint_folder(folder, place):
    (folder / "empty").mkdir()
    with pytest.raises(
        errors.CheckpointError, match=r"there is no|is no whole checkpoint"
    ):
        load(folder / place)


def test_a_relative_folder_that_is_not_there():
    with pytest.raises(
        errors.CheckpointError, match=r"there is no checkpoint folder \./no"
    ):
        load("./nowhere")


def test_a_name_that_is_not_cached_needs_the_network():
    """The hub is off in tests: the look-up ends in the cache, at once."""
    with pytest.raises(
        errors.CheckpointError, match="a hub name needs the network once"
    ):
        load("mechvlm-tests/no-such-model")


@pytest.mark.parametrize("name", ["a number that is none", "no projector"])
def test_the_checks_can_be_left_out(name, folder):
    SPOILED[name][0](folder)
    assert load(folder, check=False).cfg.n_layers == 4


# --- models that lie ------------------------------------------------------------------


@pytest.fixture
def lying(tiny_vlm):
    """A copy of the model, to be broken."""
    return HookedVLM(copy.deepcopy(tiny_vlm.hf_model), tiny_vlm.processor)


def test_a_model_that_is_whole_passes(lying):
    assert check_model(lying) is None


def test_a_norm_that_is_not_the_norm_is_found(lying):
    """Something between hook points that is not what they say: a doubled weight."""
    lying.ln_final.offset = 1.0
    lying.ln_final.tapped = lambda residual, output: 2 * output
    with pytest.raises(
        errors.ModelCheckError, match=r"hooked forward differs from .* by 1"
    ):
        check_model(lying)


def test_attention_that_does_not_sum_to_1_is_found(lying, monkeypatch):
    """The softmax of another model, without its denominator."""
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda *a, **k: softmax(*a, **k) * 1.001
    )
    for layer in lying.blocks:
        layer.layer.o.weight.data.zero_()
    with pytest.raises(
        errors.ModelCheckError, match="attention rows miss a sum of 1 by 0"
    ):
        check_model(lying)


# --- without type checks --------------------------------------------------------------

UNCHECKED = """
import json, sys
sys.path.insert(0, "tests")
import numpy as np
import tiny, torch
from mechvlm.interventions import Ablate, Knockout
from mechvlm.layout import Positions
from mechvlm.analyses.activation_patching import activation_patching
from mechvlm.models.hooked import HookedVLM
from mechvlm.sites import Site
vlm = HookedVLM(*tiny.build())
prompt = vlm.prompt("the dog", tiny.picture())
tries = {
    "ids": lambda: vlm(prompt.ids),
    "ids and start": lambda: vlm(prompt.ids, prompt=prompt),
    "text": lambda: vlm("the dog"),
    "array": lambda: vlm.prompt("the dog", np.zeros((32, 32, 3), np.uint8)),
    "bytes": lambda: vlm.prompt("the dog", b"PNG"),
    "return type": lambda: vlm(prompt, return_type="loss"),
    "component": lambda: Site("resid", 0),
    "direction": lambda: activation_patching(
        vlm, prompt, prompt, metric=None, direction="both"
    ),
    "mask": lambda: Positions.of(np.array([True, False])),
    "one layer": lambda: Knockout(1, Positions.of(9), Positions.of(1)),
    "one head": lambda: Knockout(range(2), Positions.of(9), Positions.of(1), 3),
    "a name": lambda: Ablate(Site("embed"), "last"),
}
said = {}
for name, call in tries.items():
    try:
        call()
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


def test_wrong_types_have_their_own_words_too():
    done = subprocess.run(
        [sys.executable, "-c", UNCHECKED],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    said = json.loads(done.stdout.splitlines()[-1])
    lost = "PromptError: a forward of {} with prompt={} and start_at_layer=None"
    assert said["ids"].startswith(lost.format("Tensor", "NoneType"))
    assert "Token ids alone would lose the image" in said["ids"]
    assert said["ids and start"].startswith(lost.format("Tensor", "Prompt"))
    assert said["text"].startswith(lost.format("str", "NoneType"))
    wanted = "ImageError: wanted a PIL image or the path of one, got "
    assert said["array"].startswith(f"{wanted}ndarray. Arrays: use PIL.Image.fromarray")
    assert said["bytes"].startswith(f"{wanted}bytes")
    assert said["return type"].startswith(
        "PromptError: return_type='loss': only 'logits'"
    )
    assert said["mask"].startswith("LayoutError: np.True_ is no position; wanted whole")
    assert said["component"].startswith(
        "SiteError: no component is called 'resid'; kno"
    )
    assert said["direction"].startswith("InterventionError: direction='both': wanted")
    assert said["one layer"].startswith(
        "InterventionError: Knockout.layers is 1; wanted a range or a tuple"
    )
    assert said["one head"].startswith("InterventionError: Knockout.heads is 3; wanted")
    assert said["a name"].startswith("InterventionError: Ablate.at is 'last'; wanted")
