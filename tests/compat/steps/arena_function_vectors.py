"""ARENA 1.4.2, function vectors: means of heads over tasks, added to other prompts."""

import torch

from steps.registry import step

FACTS = ["The capital of Norway is called", "The capital of Spain is called"]
PLAIN = "Martin saw that"


def mean_state(model, layer):
    tokens = model.to_tokens(FACTS, padding_side="left")
    _, cache = model.run_with_cache(tokens)
    return cache["resid_post", layer][:, -1].mean(0)


def added(vector):
    def add(value, hook):
        value[:, -1, :] += vector
        return value

    return add


@step
def mean_hidden_state(tl, model):
    return mean_state(model, 2)


@step
def prediction_with_it(tl, model):
    vector = mean_state(model, 2)
    logits = model.run_with_hooks(PLAIN, fwd_hooks=[("blocks.2.hook_resid_post", added(vector))])
    return logits[0, -1].log_softmax(-1)


@step
def text_with_it(tl, model):
    vector = mean_state(model, 1)
    model.add_hook("blocks.1.hook_resid_post", added(vector))
    text = model.generate(PLAIN, max_new_tokens=5, do_sample=False, verbose=False)
    model.reset_hooks()
    return text


@step
def mean_head_outputs(tl, model):
    _, cache = model.run_with_cache(model.to_tokens(FACTS))
    z = torch.stack([cache["z", layer][:, -1].mean(0) for layer in range(4)])
    return torch.einsum("lhd,lhdm->lhm", z, model.W_O)


@step
def causal_effects_of_heads(tl, model):
    _, cache = model.run_with_cache(model.to_tokens(FACTS))
    token = model.to_single_token(" Oslo")
    effects = torch.zeros(4, 4)
    for layer in range(4):
        mean = cache["z", layer][:, -1].mean(0)
        for head in range(4):

            def put(z, hook, mean=mean, head=head):
                z[:, -1, head] = mean[head]
                return z

            logits = model.run_with_hooks(
                PLAIN, fwd_hooks=[(tl.utils.get_act_name("z", layer), put)]
            )
            effects[layer, head] = logits[0, -1].log_softmax(-1)[token]
    return effects


@step
def steering_between_two_texts(tl, model):
    def state(text):
        _, cache = model.run_with_cache(text, names_filter="blocks.1.hook_resid_pre")
        return cache["resid_pre", 1][0, -1]

    change = state("It made us happy") - state("It made us sad")

    def steer(value, hook):
        return value + 3 * change

    return model.run_with_hooks("It made us", fwd_hooks=[("blocks.1.hook_resid_pre", steer)])[
        0, -1
    ].log_softmax(-1)


@step
def padded_batch(tl, model):
    texts = ["The capital of Norway is called", "Martin saw"]
    tokens = model.to_tokens(texts, padding_side="left")
    return tokens, model(texts, padding_side="left")[:, -1].log_softmax(-1)


@step
def padded_batch_on_the_right(tl, model):
    texts = ["The capital of Norway is called", "Martin saw"]
    logits = model(texts, padding_side="right")
    return logits[0, -1].log_softmax(-1), logits[1, 1].log_softmax(-1)
