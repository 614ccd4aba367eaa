"""Config_Overhaul and what people read from ``model.cfg``."""

from steps.registry import MODEL, step


@step
def sizes(tl, model):
    cfg = model.cfg
    return cfg.d_model, cfg.d_head, cfg.n_heads, cfg.n_layers, cfg.d_mlp, cfg.d_vocab, cfg.n_ctx


@step
def as_a_dictionary(tl, model):
    settings = model.cfg.to_dict()
    return {name: settings[name] for name in ("n_layers", "n_heads", "act_fn", "d_vocab_out")}


@step
def positions(tl, raw):
    cfg = raw.cfg
    return (
        cfg.positional_embedding_type,
        cfg.rotary_dim,
        int(cfg.rotary_base),
        cfg.rotary_adjacent_pairs,
    )


@step
def normalisation(tl, model, raw):
    return model.cfg.normalization_type, raw.cfg.normalization_type, raw.cfg.final_rms


@step
def attention(tl, raw):
    cfg = raw.cfg
    return float(cfg.attn_scale), cfg.use_attn_scale, cfg.attention_dir, cfg.use_local_attn


@step
def flags(tl, raw):
    cfg = raw.cfg
    return [
        cfg.use_attn_result, cfg.use_split_qkv_input, cfg.use_hook_mlp_in, cfg.use_attn_in,
        cfg.gated_mlp, cfg.attn_only, cfg.scale_attn_by_inverse_layer_idx,
    ]  # fmt: skip


@step
def names(tl, raw):
    cfg = raw.cfg
    return cfg.model_name, cfg.original_architecture, cfg.tokenizer_name


@step
def beginnings(tl, raw):
    return raw.cfg.default_prepend_bos, str(raw.cfg.dtype), raw.cfg.d_vocab


@step
def parameters(tl, raw):
    return raw.cfg.n_params, sum(1 for _ in raw.parameters()) > 0


@step
def configuration_without_weights(tl):
    cfg = tl.loading_from_pretrained.get_pretrained_model_config(MODEL)
    return cfg.n_layers, cfg.d_model, cfg.act_fn


@step
def official_name(tl):
    return tl.loading_from_pretrained.get_official_model_name(MODEL)
