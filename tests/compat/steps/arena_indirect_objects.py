"""ARENA 1.4.1, indirect object identification: attribution, patching, paths, ablation."""

from functools import partial

import torch

from steps.registry import step

NAMES = [(" Martin", " Carl"), (" Nancy", " Oscar"), (" Tom", " Alice")]
FORM = "{0} and{1} came to the tower. Then{2} showed a watch to"


def data(model):
    """Tokens of both roles ``[prompt, pos]``, corrupted ones, answers ``[prompt, 2]``."""
    clean, corrupted, answers = [], [], []
    for first, second in NAMES:
        for giver, other in ((first, second), (second, first)):
            clean.append(FORM.format(first.strip(), second, giver))
            corrupted.append(FORM.format(first.strip(), second, other))
            answers.append([model.to_single_token(other), model.to_single_token(giver)])
    return (
        model.to_tokens(clean, prepend_bos=True),
        model.to_tokens(corrupted, prepend_bos=True),
        torch.tensor(answers),
    )


def difference(logits, answers, per_prompt=False):
    chosen = logits[:, -1].gather(-1, answers)
    result = chosen[:, 0] - chosen[:, 1]
    return result if per_prompt else result.mean()


def normalised(model):
    clean, corrupted, answers = data(model)
    high, low = difference(model(clean), answers), difference(model(corrupted), answers)
    return lambda logits: (difference(logits, answers) - low) / (high - low)


@step
def differences_of_prompts(tl, model):
    clean, corrupted, answers = data(model)
    return difference(model(clean), answers, True), difference(model(corrupted), answers, True)


@step
def batch_of_prompts(tl, model):
    clean, _, _ = data(model)
    return clean, model.to_string(clean[0]), [model.to_str_tokens(row)[0] for row in clean]


@step
def directions(tl, model):
    _, _, answers = data(model)
    correct, wrong = model.tokens_to_residual_directions(answers).unbind(dim=1)
    return correct - wrong


@step
def scaled_final_stream(tl, model):
    clean, _, answers = data(model)
    logits, cache = model.run_with_cache(clean)
    correct, wrong = model.tokens_to_residual_directions(answers).unbind(dim=1)
    final = cache["resid_post", -1][:, -1]
    scaled = cache.apply_ln_to_stack(final, layer=-1, pos_slice=-1)
    return torch.einsum("bd,bd->", scaled, correct - wrong) / 6, difference(logits, answers)


def along(model, cache, answers, stack):
    correct, wrong = model.tokens_to_residual_directions(answers).unbind(dim=1)
    scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
    return torch.einsum("...bd,bd->...", scaled, correct - wrong) / len(answers)


@step
def accumulated_stream(tl, model):
    clean, _, answers = data(model)
    _, cache = model.run_with_cache(clean)
    stack, labels = cache.accumulated_resid(pos_slice=-1, return_labels=True)
    return along(model, cache, answers, stack), labels


@step
def decomposed_stream(tl, model):
    clean, _, answers = data(model)
    _, cache = model.run_with_cache(clean)
    stack, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    return along(model, cache, answers, stack), labels


@step
def stacked_heads(tl, model):
    clean, _, answers = data(model)
    _, cache = model.run_with_cache(clean)
    stack = cache.stack_head_results(layer=-1, pos_slice=-1)
    return along(model, cache, answers, stack).reshape(4, 4)


@step
def heads_of_a_layer_and_what_remains(tl, model):
    clean, _, answers = data(model)
    _, cache = model.run_with_cache(clean)
    stack, labels = cache.stack_head_results(
        layer=2, pos_slice=-1, return_labels=True, incl_remainder=True
    )
    return stack.sum(0), cache["resid_pre", 2][:, -1], labels


@step
def top_heads(tl, model):
    clean, _, answers = data(model)
    _, cache = model.run_with_cache(clean)
    scores = along(model, cache, answers, cache.stack_head_results(layer=-1, pos_slice=-1))
    order = scores.argsort(descending=True)[:3]
    return [cache["pattern", int(i) // 4][0, int(i) % 4] for i in order]


@step
def ready_made_sweeps(tl, model):
    clean, corrupted, _ = data(model)
    _, cache = model.run_with_cache(clean)
    metric = normalised(model)
    p = tl.patching
    return (
        p.get_act_patch_resid_pre(model, corrupted, cache, metric),
        p.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric),
    )


@step
def sweep_over_blocks(tl, model):
    clean, corrupted, _ = data(model)
    _, cache = model.run_with_cache(clean)
    return tl.patching.get_act_patch_block_every(model, corrupted, cache, normalised(model))


@step
def sweep_over_heads(tl, model):
    clean, corrupted, _ = data(model)
    _, cache = model.run_with_cache(clean)
    return tl.patching.get_act_patch_attn_head_all_pos_every(
        model, corrupted, cache, normalised(model)
    )


@step
def sweep_by_hand(tl, model):
    clean, corrupted, _ = data(model)
    _, cache = model.run_with_cache(clean)
    metric = normalised(model)

    def put(value, hook, pos):
        value[:, pos] = cache[hook.name][:, pos]
        return value

    model.reset_hooks()
    results = torch.zeros(4, clean.shape[1])
    for layer in range(4):
        for pos in range(clean.shape[1]):
            results[layer, pos] = metric(
                model.run_with_hooks(
                    corrupted,
                    fwd_hooks=[(tl.utils.get_act_name("resid_pre", layer), partial(put, pos=pos))],
                )
            )
    return results


def path_to_the_end(tl, model, sender):
    """Path patching in three runs: head to the final residual stream."""
    clean, corrupted, answers = data(model)
    z = lambda name: name.endswith("z")  # noqa: E731
    _, clean_cache = model.run_with_cache(clean, names_filter=z, return_type=None)
    _, new_cache = model.run_with_cache(corrupted, names_filter=z, return_type=None)

    def freeze(value, hook):
        value[...] = clean_cache[hook.name]
        if hook.layer() == sender[0]:
            value[:, :, sender[1]] = new_cache[hook.name][:, :, sender[1]]
        return value

    final = tl.utils.get_act_name("resid_post", 3)
    model.add_hook(z, freeze)
    _, patched = model.run_with_cache(clean, names_filter=final, return_type=None)
    model.reset_hooks()
    logits = model.unembed(model.ln_final(patched[final]))
    return difference(logits, answers)


@step
def path_from_an_early_head(tl, model):
    return path_to_the_end(tl, model, (0, 1))


@step
def path_from_a_late_head(tl, model):
    return path_to_the_end(tl, model, (3, 2))


@step
def path_to_values_of_a_head(tl, model):
    clean, corrupted, answers = data(model)
    _, clean_cache = model.run_with_cache(clean)
    _, new_cache = model.run_with_cache(corrupted)

    def freeze(value, hook):
        value[...] = clean_cache[hook.name]
        if hook.layer() == 0:
            value[:, :, 2] = new_cache[hook.name][:, :, 2]
        return value

    receiver = tl.utils.get_act_name("v", 2)
    model.add_hook(lambda name: name.endswith("z"), freeze, level=1)
    _, patched = model.run_with_cache(
        clean, names_filter=lambda name: name == receiver, return_type=None
    )
    model.reset_hooks()

    def put(value, hook):
        value[:, :, 1] = patched[hook.name][:, :, 1]
        return value

    return difference(model.run_with_hooks(clean, fwd_hooks=[(receiver, put)]), answers)


@step
def copying_scores(tl, model):
    names = torch.tensor([model.to_single_token(name) for pair in NAMES for name in pair])
    found = torch.zeros(4, 4)
    stream = model.embed(names[None])
    mlp = model.blocks[0].mlp(model.blocks[0].ln2(stream))
    for layer in range(4):
        for head in range(4):
            out = (stream + mlp)[0] @ model.W_V[layer, head] @ model.W_O[layer, head]
            logits = model.unembed(model.ln_final(out[None]))[0]
            best = logits.topk(5, dim=-1).indices
            found[layer, head] = (best == names[:, None]).any(-1).float().mean()
    return found


@step
def patterns_on_random_tokens(tl, model):
    torch.manual_seed(1)
    tokens = torch.randint(100, 2000, (5, 15))
    _, cache = model.run_with_cache(
        torch.cat([tokens, tokens], 1),
        return_type=None,
        names_filter=lambda name: name.endswith("pattern"),
    )
    return torch.stack(
        [cache["pattern", layer].diagonal(-14, -2, -1).mean((0, -1)) for layer in range(4)]
    )


@step
def means_over_templates(tl, model):
    clean, corrupted, _ = data(model)
    _, cache = model.run_with_cache(corrupted, names_filter=lambda name: name.endswith("z"))
    return [cache["z", layer].mean(dim=0) for layer in range(4)]


@step
def minimal_circuit_by_permanent_hooks(tl, model):
    clean, corrupted, answers = data(model)
    _, cache = model.run_with_cache(corrupted, names_filter=lambda name: name.endswith("z"))
    means = {layer: cache["z", layer].mean(dim=0) for layer in range(4)}
    kept = torch.zeros(4, 4, dtype=torch.bool)
    kept[1, 2] = kept[2, 0] = kept[3] = True

    def mean_unless_kept(z, hook):
        return torch.where(kept[hook.layer()][None, None, :, None], z, means[hook.layer()])

    model.reset_hooks(including_permanent=True)
    model.add_hook(lambda name: name.endswith("z"), mean_unless_kept, is_permanent=True)
    model.reset_hooks()
    result = difference(model(clean), answers)
    model.reset_hooks(including_permanent=True)
    return result, difference(model(clean), answers)


@step
def cached_with_hooks_on(tl, model):
    clean, _, _ = data(model)
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: value * 0)]):
        _, cache = model.run_with_cache(clean, return_type=None)
    return cache["mlp_out", 1].abs().max(), cache["resid_post", 1]


@step
def neurons_of_a_layer(tl, model):
    clean, _, answers = data(model)
    _, cache = model.run_with_cache(clean)
    stack = cache.get_neuron_results(2, neuron_slice=(0, 40), pos_slice=-1)
    return stack, cache.stack_neuron_results(layer=1, neuron_slice=(0, 3), pos_slice=-1)


@step
def everything_in_the_stream(tl, model):
    clean, _, _ = data(model)
    _, cache = model.run_with_cache(clean)
    stack, labels = cache.get_full_resid_decomposition(
        expand_neurons=False, return_labels=True, pos_slice=-1
    )
    return stack.sum(0), cache["resid_post", -1][:, -1], labels


@step
def head_results_computed(tl, model):
    clean, _, _ = data(model)
    _, cache = model.run_with_cache(clean)
    cache.compute_head_results()
    return cache["result", 2][:, -1]
