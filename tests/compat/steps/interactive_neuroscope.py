"""Interactive_Neuroscope: one neuron over one text."""

from steps.registry import step

TEXT = "We found the film brilliant and charming. It made us happy."


def neuron(model, text, layer, index):
    seen = {}

    def keep(value, hook):
        seen["activation"] = value[0, :, index]

    model.run_with_hooks(text, fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", keep)])
    return seen["activation"]


@step
def activations_of_a_neuron(tl, model):
    return neuron(model, TEXT, 2, 77)


@step
def activations_with_their_tokens(tl, model):
    return list(zip(model.to_str_tokens(TEXT), neuron(model, TEXT, 1, 5).tolist(), strict=True))


@step
def range_of_a_neuron(tl, model):
    values = tl.utils.to_numpy(neuron(model, TEXT, 3, 200))
    return float(values.max()), float(values.min()), values.shape


@step
def largest_neurons(tl, model):
    _, cache = model.run_with_cache(TEXT, names_filter="blocks.3.mlp.hook_post")
    top = cache["post", 3][0].max(dim=0).values.topk(5)
    return top.values, top.indices


@step
def only_as_far_as_needed(tl, model):
    seen = []
    model.run_with_hooks(
        TEXT,
        return_type=None,
        stop_at_layer=2,
        fwd_hooks=[(tl.utils.get_act_name("post", 1), lambda v, hook: seen.append(v[0, :, 5]))],
    )
    return seen[0]


@step
def output_weights_of_a_neuron(tl, model):
    direction = model.blocks[2].mlp.W_out[77]
    best = (direction @ model.W_U).topk(5)
    return best.values, model.to_str_tokens(best.indices)
