"""What holds in every test: no network, few threads, fixed seeds.

Nothing here imports mechvlm, torch or transformers at the top: the variables below must
be set before they load, and jaxtyping's hook must see mechvlm's first import.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys

import hypothesis
import pytest
from pages import browser, visit  # noqa: F401 - fixtures for pages in a browser

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
    MPLBACKEND="agg",
)
# Tiny matrices are slower on several threads, and sums come in another order there.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every run draws the same examples; HYPOTHESIS_PROFILE=search looks for new ones.
hypothesis.settings.register_profile(
    "fixed", deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


# --- the network is off ---------------------------------------------------------------


class NetworkUsed(Exception):
    """A test reached for a machine other than this one."""


def _is_here(host: object) -> bool:
    """Whether `host` names this machine without asking anyone."""
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def _guarded(method):
    def guarded(self, *args):
        address = args[-1]
        if self.family != getattr(socket, "AF_UNIX", None) and not _is_here(address[0]):
            raise NetworkUsed(f"tests run without a network, not to {address}")
        return method(self, *args)

    return guarded


def _guarded_lookup(lookup):
    def guarded(host, *args, **kwargs):
        if not _is_here(host):
            raise NetworkUsed(f"tests run without a network, not to {host}")
        return lookup(host, *args, **kwargs)

    return guarded


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Refuse every connection and name look-up that would leave this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", _guarded_lookup(socket.getaddrinfo))
        yield


# --- the same numbers every time ------------------------------------------------------


@pytest.fixture(autouse=True)
def _seeded():
    """Start each test from one seed, where torch is loaded at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


# --- models and scenes ----------------------------------------------------------------
# Fixtures that the tests share. Import mechvlm inside them, not above.


@pytest.fixture(scope="session")
def demo():
    """The trained model that comes with the package."""
    import mechvlm as mv

    return mv.load("demo")


@pytest.fixture(scope="session")
def tiny_vlm():
    """A random LLaVA, hooked: Llama with grouped heads behind CLIP."""
    import tiny

    from mechvlm.models.hooked import HookedVLM

    vlm = HookedVLM(*tiny.build(tiny.Kind("llama", 2, "clip")))
    # At its first forward transformers hangs hooks of its own on the vision tower.
    vlm(vlm.prompt("the dog", tiny.picture()))
    return vlm


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_vlm):
    """The same model as a folder in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_vlm.hf_model.save_pretrained(folder)
    tiny_vlm.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_prompt(tiny_vlm):
    """BOS, 2 words of the template, 16 cells, 2 words of query, 2 of the template."""
    import tiny

    made = tiny_vlm.prompt("what color", tiny.picture())
    assert (made.layout.n, list(made.layout["image"])) == (23, [*range(3, 19)])
    return made


@pytest.fixture
def untouched(tiny_vlm):
    """Check at the test's end that no hook is left and no weight has changed.

    The fixture's value tells, at any time, what differs from the test's beginning.
    """
    before = _state(tiny_vlm)

    def changed():
        now = _state(tiny_vlm)
        return sorted(k for k in before.keys() | now if before.get(k) != now.get(k))

    yield changed
    assert changed() == [], "the test left these as they were not before"


@pytest.fixture
def no_forward(tiny_vlm, monkeypatch):
    """Fail where a forward pass ends that should never have begun."""

    def never(*_):
        raise AssertionError("a forward pass ran although the input is bad")

    monkeypatch.setattr(tiny_vlm.hf_model.lm_head, "forward", never)


def _state(vlm):
    """Everything that a run borrows or could write, as text that can be compared."""
    state = {"vlm.cfg": str(vlm.cfg), "training": str(vlm.training)}
    for name, point in vlm.hook_dict.items():
        state[f"hooks on {name}"] = f"{point.fwd_hooks} {point.bwd_hooks} {point.ctx}"
    for name, module in vlm.named_modules(remove_duplicate=False):
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks
        state[f"torch hooks of {name}"] = str([list(each) for each in hooks])
        state[f"children of {name}"] = str([id(each) for each in module.children()])
    for name, tensor in vlm.state_dict(keep_vars=True).items():
        state[f"weight {name}"] = hash(tensor.detach().numpy().tobytes())
        state[f"gradient of {name}"] = f"{tensor.grad} {tensor.requires_grad}"
    config = vlm.hf_model.config
    for part in (config, config.text_config, config.vision_config):
        state[f"attention of {part.model_type}"] = part._attn_implementation
    return state
