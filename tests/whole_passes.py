"""The oracle of what is said under interventions: Hugging Face alone, without a cache.

Every word is chosen by a whole pass over all that came before it. Rows of a layer's
input are written by a hook on that layer, and attention is cut in the eager mask.
"""

from contextlib import contextmanager

import tiny
import torch


@torch.no_grad()
def talkative(kind):
    """A random model that says nothing but words, and never ends, and its processor.

    An image token among them would want an image of its own in the next whole pass. The
    head is its own: tied to the embedding it says the last word again and again.
    """
    model, processor = tiny.build(kind)
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id = None
    first = len(tiny.SPECIAL)
    spoken = slice(first, first + len(tiny.WORDS))
    weight = torch.zeros_like(model.lm_head.weight)
    weight[spoken] = 0.3 * torch.randn_like(weight[spoken])
    model.lm_head.weight = torch.nn.Parameter(weight)
    return model, processor


def layers_of(vlm):
    return vlm.hf_model.model.language_model.layers


@torch.no_grad()
def streams(vlm, prompt):
    """h[0] to h[n_layers] of a prompt, each [position d_model]."""
    kept, layers = {}, layers_of(vlm)
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, i=i: kept.__setitem__(i, args[0][0].clone())
        )
        for i, layer in enumerate(layers)
    ]
    handles.append(
        layers[-1].register_forward_hook(
            lambda _, args, out: kept.__setitem__(len(layers), out[0].clone())
        )
    )
    vlm.hf_model(**prompt.inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    return [kept[i] for i in range(len(layers) + 1)]


@torch.no_grad()
def speak(vlm, prompt, n_new, *, writes=None, cuts=None):
    """Token ids of a greedy answer, and the logits of its first word.

    `writes` is {layer: (positions, values)}, `cuts` {layer: (target, source)}; a target
    of a cut may lie in what is generated.
    """
    ids, first = prompt.ids.clone(), None
    with hooked(vlm, writes or {}, cuts or {}):
        for _ in range(n_new):
            logits = vlm.hf_model(**inputs_of(prompt, ids), use_cache=False).logits
            first = logits[0, -1] if first is None else first
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, prompt.layout.n :].tolist(), first


def inputs_of(prompt, ids):
    """The processor's output, as it would be with more words behind."""
    more = ids.shape[1] - prompt.layout.n
    inputs = dict(prompt.inputs) | {"input_ids": ids}
    for name, new in (("attention_mask", 1), ("token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, more), value=new)
    return inputs


@contextmanager
def hooked(vlm, writes, cuts):
    handles, layers = [], layers_of(vlm)
    for layer, (at, values) in writes.items():

        def write(_, args, at=at, values=values):
            hidden = args[0].clone()
            hidden[0, list(at)] = values
            return (hidden, *args[1:])

        handles.append(layers[layer].register_forward_pre_hook(write))
    for layer, (target, source) in cuts.items():

        def cut(_, args, kwargs, target=target, source=source):
            mask = kwargs["attention_mask"].clone()
            rows = [row for row in target if row < mask.shape[-2]]
            mask[..., torch.tensor(rows)[:, None], torch.tensor(list(source))] = -1e9
            return args, {**kwargs, "attention_mask": mask}

        attention = layers[layer].self_attn
        handles.append(attention.register_forward_pre_hook(cut, with_kwargs=True))
    before = vlm.hf_model.config.text_config._attn_implementation
    if cuts:
        vlm.hf_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        vlm.hf_model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
