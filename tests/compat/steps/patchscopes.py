"""Patchscopes_Generation_Demo: a hidden state of one text put into another."""

import torch

from steps.registry import step

SOURCE = "The capital of Norway is called"
TARGET = "Martin saw Carl. Nancy saw"


def hidden(tl, model, layer, position=-1):
    _, cache = model.run_with_cache(SOURCE)
    return cache[tl.utils.get_act_name("resid_post", layer)][0, position, :]


def put_in(tl, model, state, layer, position):
    def put(value, hook):
        value[0, position] = state
        return value

    return [(tl.utils.get_act_name("resid_post", layer), put)]


@step
def hidden_state(tl, model):
    return hidden(tl, model, 2)


@step
def next_token_after_patching(tl, model):
    state = hidden(tl, model, 1)
    with model.hooks(fwd_hooks=put_in(tl, model, state, 1, -1)):
        logits = model(TARGET)
    return logits[0, -1].log_softmax(-1)


@step
def every_pair_of_layers(tl, model):
    rows = []
    for source in range(4):
        state = hidden(tl, model, source)
        for target in range(4):
            logits = model.run_with_hooks(TARGET, fwd_hooks=put_in(tl, model, state, target, -1))
            rows.append(logits[0, -1].softmax(-1).topk(3).indices)
    return torch.stack(rows)


@step
def text_after_patching(tl, model):
    state = hidden(tl, model, 2)

    def put(value, hook):
        if value.shape[1] > 1:
            value[0, -1] = state
        return value

    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", put)]):
        return model.generate(TARGET, max_new_tokens=5, do_sample=False, verbose=False)


@step
def text_token_by_token(tl, model):
    tokens = model.to_tokens(TARGET)
    state = hidden(tl, model, 2)
    for _ in range(4):
        logits = model.run_with_hooks(tokens, fwd_hooks=put_in(tl, model, state, 2, 4))
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=-1)
    return model.to_string(tokens)


@step
def mapped_state(tl, model):
    state = hidden(tl, model, 1) * 2 - model.W_E[5]
    logits = model.run_with_hooks(TARGET, fwd_hooks=put_in(tl, model, state, 0, 3))
    return model.to_str_tokens(logits[0, -1].topk(4).indices)


@step
def logit_lens_of_a_state(tl, model):
    state = hidden(tl, model, 2)
    return model.unembed(model.ln_final(state[None, None]))[0, 0].log_softmax(-1)
