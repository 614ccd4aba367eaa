"""Exploratory_Analysis_Demo: indirect objects, from direct attribution to patching."""

from functools import partial

import torch

from steps.registry import step

PROMPTS = [
    "Martin and Carl came to the tower. Then Carl showed a watch to",
    "Martin and Carl came to the tower. Then Martin showed a watch to",
    "Nancy and Oscar came to the market. Then Oscar showed a lamp to",
    "Nancy and Oscar came to the market. Then Nancy showed a lamp to",
]
ANSWERS = [(" Martin", " Carl"), (" Carl", " Martin"), (" Nancy", " Oscar"), (" Oscar", " Nancy")]


def setting(model):
    """Tokens, answers [prompt, 2], logits and cache."""
    tokens = model.to_tokens(PROMPTS, prepend_bos=True)
    answers = torch.tensor([[model.to_single_token(one) for one in pair] for pair in ANSWERS])
    logits, cache = model.run_with_cache(tokens)
    return tokens, answers, logits, cache


def average_difference(logits, answers, per_prompt=False):
    chosen = logits[:, -1, :].gather(dim=-1, index=answers)
    difference = chosen[:, 0] - chosen[:, 1]
    return difference if per_prompt else difference.mean()


def to_difference(model, cache, answers, stack):
    """What a stack of residuals writes along the difference of the answers."""
    directions = model.tokens_to_residual_directions(answers)
    direction = directions[:, 0] - directions[:, 1]
    scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
    return torch.einsum("...bd,bd->...", scaled, direction) / len(PROMPTS)


@step
def test_a_prompt(tl, model):
    tl.utils.test_prompt(PROMPTS[0], " Martin", model, prepend_bos=True)
    return "printed"


@step
def test_a_prompt_with_a_leading_space(tl, model):
    tl.utils.test_prompt(
        PROMPTS[0], "Martin", model, prepend_space_to_answer=True, print_details=True, top_k=5
    )
    return "printed"


@step
def lengths_of_names(tl, model):
    return [len(model.to_str_tokens(f" {name}", prepend_bos=False)) for name in ("Martin", "Carl")]


@step
def tokens_and_answers(tl, model):
    tokens, answers, logits, _ = setting(model)
    return tokens, answers, average_difference(logits, answers, per_prompt=True)


@step
def string_tokens_of_a_prompt(tl, model):
    return model.to_str_tokens(PROMPTS[0], prepend_bos=True)


@step
def average_logit_difference(tl, model):
    _, answers, logits, _ = setting(model)
    return average_difference(logits, answers)


@step
def residual_directions(tl, model):
    _, answers, _, _ = setting(model)
    directions = model.tokens_to_residual_directions(answers)
    return directions.shape, directions[:, 0] - directions[:, 1]


@step
def direction_of_one_token(tl, model):
    return (
        model.tokens_to_residual_directions(" Martin"),
        model.tokens_to_residual_directions(model.to_single_token(" Carl")),
    )


@step
def final_stream_gives_the_difference(tl, model):
    _, answers, logits, cache = setting(model)
    final = cache["resid_post", -1][:, -1, :]
    return to_difference(model, cache, answers, final), average_difference(logits, answers)


@step
def names_of_the_last_stream(tl, model):
    _, _, _, cache = setting(model)
    return tl.utils.get_act_name("resid_post", 3), cache["resid_post", 3][:, -1]


@step
def logit_lens(tl, model):
    _, answers, _, cache = setting(model)
    stack, labels = cache.accumulated_resid(
        layer=-1, incl_mid=False, pos_slice=-1, return_labels=True
    )
    return to_difference(model, cache, answers, stack), labels


@step
def logit_lens_normalised(tl, model):
    _, _, _, cache = setting(model)
    return cache.accumulated_resid(layer=-1, incl_mid=False, pos_slice=-1, apply_ln=True)


@step
def attribution_of_layers(tl, model):
    _, answers, _, cache = setting(model)
    stack, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    return to_difference(model, cache, answers, stack), labels


@step
def attribution_of_heads(tl, model):
    _, answers, _, cache = setting(model)
    stack, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    parts = to_difference(model, cache, answers, stack)
    return parts.reshape(model.cfg.n_layers, model.cfg.n_heads), labels


@step
def attribution_of_neurons(tl, model):
    _, answers, _, cache = setting(model)
    stack, labels = cache.stack_neuron_results(layer=1, pos_slice=-1, return_labels=True)
    return to_difference(model, cache, answers, stack), labels[:5], len(labels)


@step
def logit_attributions(tl, model):
    _, answers, _, cache = setting(model)
    stack = cache.decompose_resid(layer=-1, return_labels=False, pos_slice=-1)
    return cache.logit_attrs(
        stack, tokens=answers[:, 0], incorrect_tokens=answers[:, 1], pos_slice=-1
    )


@step
def patterns_of_the_top_heads(tl, model):
    _, answers, _, cache = setting(model)
    stack = cache.stack_head_results(layer=-1, pos_slice=-1)
    parts = to_difference(model, cache, answers, stack)
    best = parts.topk(3).indices
    return torch.stack([cache["pattern", int(i) // 4][:, int(i) % 4].mean(0) for i in best])


@step
def values_weighted_by_their_norm(tl, model):
    _, _, _, cache = setting(model)
    return cache["pattern", 2] * cache["v", 2].norm(dim=-1).permute(0, 2, 1)[:, :, None, :]


@step
def corrupted_prompts(tl, model):
    tokens, answers, _, _ = setting(model)
    swapped = tokens[[1, 0, 3, 2]]
    logits, _ = model.run_with_cache(swapped, return_type="logits")
    return model.to_string(swapped[0]), average_difference(logits, answers)


def patched(tl, model, site, put, layers):
    """Normalised patching by hand of one site."""
    tokens, answers, logits, cache = setting(model)
    swapped = tokens[[1, 0, 3, 2]]
    corrupted, _ = model.run_with_cache(swapped, return_type="logits")
    high, low = average_difference(logits, answers), average_difference(corrupted, answers)
    cells = []
    for layer in layers:
        hook = (tl.utils.get_act_name(site, layer), partial(put, cache=cache))
        new = model.run_with_hooks(swapped, fwd_hooks=[hook], return_type="logits")
        cells.append((average_difference(new, answers) - low) / (high - low))
    return torch.stack(cells)


@step
def patch_streams_by_hand(tl, model):
    def put(value, hook, cache):
        value[:, 11, :] = cache[hook.name][:, 11, :]
        return value

    return patched(tl, model, "resid_pre", put, range(4))


@step
def patch_attention_by_hand(tl, model):
    def put(value, hook, cache):
        value[:, -1, :] = cache[hook.name][:, -1, :]
        return value

    return patched(tl, model, "attn_out", put, range(4))


@step
def patch_mlps_by_hand(tl, model):
    def put(value, hook, cache):
        return cache[hook.name]

    return patched(tl, model, "mlp_out", put, range(4))


@step
def patch_heads_by_hand(tl, model):
    def put(value, hook, cache):
        value[:, :, 3, :] = cache[hook.name][:, :, 3, :]
        return value

    return patched(tl, model, "z", put, range(4))


@step
def patch_values_by_hand(tl, model):
    def put(value, hook, cache):
        value[:, :, 1] = cache[hook.name][:, :, 1]
        return value

    return patched(tl, model, "v", put, range(4))


@step
def patch_patterns_by_hand(tl, model):
    def put(value, hook, cache):
        value[:, 1, :, :] = cache[hook.name][:, 1, :, :]
        return value

    return patched(tl, model, "attn", put, range(4))


@step
def scores_of_head_types(tl, model):
    torch.manual_seed(0)
    half = torch.randint(100, 1900, (10, 20))
    tokens = torch.cat([half, half], dim=1)
    scores = {"previous": [], "duplicate": [], "induction": []}

    def read(pattern, hook):
        for kind, offset in (("previous", -1), ("duplicate", -20), ("induction", -19)):
            scores[kind].append(pattern.diagonal(offset, dim1=-2, dim2=-1).mean(dim=(0, -1)))

    model.run_with_hooks(
        tokens, return_type=None, fwd_hooks=[(lambda name: name.endswith("hook_pattern"), read)]
    )
    return {kind: torch.stack(rows) for kind, rows in scores.items()}


@step
def backup_heads(tl, model):
    tokens, answers, _, _ = setting(model)

    def off(z, hook):
        z[:, :, 2, :] = 0
        return z

    model.reset_hooks()
    model.add_hook(tl.utils.get_act_name("z", 3), off)
    logits, cache = model.run_with_cache(tokens)
    model.reset_hooks()
    stack = cache.stack_head_results(layer=-1, pos_slice=-1)
    return average_difference(logits, answers), to_difference(model, cache, answers, stack)


@step
def composition_of_all_heads(tl, model):
    scores = [model.all_composition_scores(kind) for kind in ("Q", "K", "V")]
    return [torch.nan_to_num(one) for one in scores], model.all_head_labels()[:6]
