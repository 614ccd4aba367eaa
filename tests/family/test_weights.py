"""TransformerLens's weight names: right values, views where that is possible, nothing changed."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from oracle import SIZES, randomize, tokens
from torch import Tensor, nn

import neox_lab as nl
from neox_lab.errors import ConfigError, InputError
from neox_lab.family.factored import FactoredMatrix, composition_scores
from neox_lab.family.folded import folded

LAYERS, HEADS, D_MODEL, D_HEAD, D_MLP, VOCAB = 3, 4, 64, 16, 96, 211
MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")
BIASES = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")


def build(name: str = "GPTNeoXForCausalLM", **overrides: Any) -> Any:
    model = getattr(nl, name)(nl.GPTNeoXConfig(**SIZES | overrides)).eval()
    randomize(model)
    return model.requires_grad_(False)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Assert equality to ``tolerance`` of the largest number (absolute, if that is below 1)."""
    scale = float(b.detach().abs().max().clamp(min=1)) if b.numel() else 1.0
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@pytest.fixture(scope="module", params=[(True, True), (False, True), (True, False)], ids=str)
def run(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    parallel, bias = request.param
    model = build(use_parallel_residual=parallel, attention_bias=bias)
    return model, model.run_with_cache(tokens())[1]


def test_shapes(run: Any) -> None:
    model, _ = run
    shapes = {name: tuple(getattr(model, name).shape) for name in (*MATRICES, *BIASES)}
    per_head = (LAYERS, HEADS, D_MODEL, D_HEAD)
    assert shapes == {
        **dict.fromkeys(("W_Q", "W_K", "W_V"), per_head),
        "W_O": (LAYERS, HEADS, D_HEAD, D_MODEL),
        "W_in": (LAYERS, D_MODEL, D_MLP),
        "W_out": (LAYERS, D_MLP, D_MODEL),
        **dict.fromkeys(("b_Q", "b_K", "b_V"), (LAYERS, HEADS, D_HEAD)),
        "b_in": (LAYERS, D_MLP),
        **dict.fromkeys(("b_O", "b_out"), (LAYERS, D_MODEL)),
    }
    assert model.W_E.shape == (VOCAB, D_MODEL)
    assert model.W_U.shape == (D_MODEL, VOCAB)
    assert torch.equal(model.b_U, torch.zeros(VOCAB))
    assert model.all_head_labels[:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    assert len(model.all_head_labels) == LAYERS * HEADS


def test_every_step_of_a_block_by_name(run: Any) -> None:
    model, cache = run
    for layer, block in enumerate(model.blocks):
        norms = model.backbone.layers[layer]
        x = cache["normalized", layer, "ln1"]
        x = x * norms.input_layernorm.weight + norms.input_layernorm.bias
        for name in "QKV":
            weight, bias = getattr(block, f"W_{name}"), getattr(block, f"b_{name}")
            made = torch.einsum("bpd,hde->bphe", x, weight) + bias
            close(made, cache[name.lower(), layer])
        out = torch.einsum("bphe,hed->bpd", cache["z", layer], block.W_O) + block.b_O
        close(out, cache["attn_out", layer])
        x = cache["normalized", layer, "ln2"]
        x = x * norms.post_attention_layernorm.weight + norms.post_attention_layernorm.bias
        close(x @ block.W_in + block.b_in, cache["pre", layer])
        close(cache["post", layer] @ block.W_out + block.b_out, cache["mlp_out", layer])
    assert torch.equal(model.W_E[tokens()], cache["hook_embed"])
    close(cache["unembed.hook_in"] @ model.W_U + model.b_U, cache["unembed.hook_out"])


def test_no_attention_bias_reads_as_zeros() -> None:
    model = build(attention_bias=False)
    for name in ("b_Q", "b_K", "b_V", "b_O"):
        assert not getattr(model, name).any()
    assert model.b_in.all()


def test_layers_are_views_and_writable(run: Any) -> None:
    model, _ = run
    model = copy.deepcopy(model)
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for name in MATRICES:
        for layer, block in enumerate(model.blocks):
            view = getattr(block, name)
            assert view.untyped_storage().data_ptr() in storages, name
            assert torch.equal(view, getattr(model, name)[layer])
    assert model.W_E.data_ptr() == model.backbone.embed_in.weight.data_ptr()
    assert model.W_U.data_ptr() == model.embed_out.weight.data_ptr()

    _, before = model.run_with_cache(tokens())
    model.blocks[1].W_Q[2] = 0
    _, after = model.run_with_cache(tokens())
    assert torch.equal(before["q", 0], after["q", 0])
    changed = (before["q", 1] != after["q", 1]).flatten(0, 1).any(-1).any(0)
    assert changed.tolist() == [False, False, True, False]
    close(after["q", 1][:, :, 2], model.b_Q[1, 2].expand(3, 12, -1))
    assert torch.equal(before["k", 1], after["k", 1])


def test_views_survive_column_major_weights(run: Any) -> None:
    """The same numbers with other strides, as a layout for decoding may give them."""
    model, _ = run
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.T.contiguous().T
    for name in MATRICES:
        assert torch.equal(getattr(other, name), getattr(model, name))
        assert getattr(other.blocks[0], name)._is_view()


def test_gradients_pass_through_views() -> None:
    model = build().requires_grad_(True)
    model.W_Q[1, 2].sum().backward()
    gradient = model.backbone.layers[1].attention.query_key_value.weight.grad
    rows = gradient.view(HEADS, 3, D_HEAD, D_MODEL)
    assert (rows[2, 0] == 1).all()
    assert gradient.sum() == D_HEAD * D_MODEL


def test_circuits(run: Any) -> None:
    model, cache = run
    z = torch.einsum("bhqk,bkhe->bqhe", cache["pattern", 1], cache["v", 1])
    close(z, cache["z", 1])
    close(model.OV[1, 2].AB, model.W_V[1, 2] @ model.W_O[1, 2])
    close(model.QK[1, 2].AB, model.W_Q[1, 2] @ model.W_K[1, 2].T)
    assert model.QK.shape == model.OV.shape == (LAYERS, HEADS, D_MODEL, D_MODEL)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_accumulated_bias(run: Any, layer: int) -> None:
    model, _ = run
    everything = model.b_O[:layer].sum(0) + model.b_out[:layer].sum(0)
    close(model.accumulated_bias(layer), everything)
    close(model.accumulated_bias(layer, include_mlp_biases=False), model.b_O[:layer].sum(0))
    if layer < LAYERS:
        own = 0 if model.config.use_parallel_residual else model.b_O[layer]
        close(model.accumulated_bias(layer, mlp_input=True), everything + own)


def test_accumulated_bias_of_layers_that_are_not_there(run: Any) -> None:
    model, _ = run
    for layer, mlp_input in ((-1, False), (LAYERS + 1, False), (True, False), (LAYERS, True)):
        with pytest.raises(InputError, match="layer="):
            model.accumulated_bias(layer, mlp_input=mlp_input)


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores(mode: str) -> None:
    model = build()
    scores = model.all_composition_scores(mode)
    assert scores.shape == (LAYERS, HEADS, LAYERS, HEADS)
    for writer in range(LAYERS):
        for reader in range(LAYERS):
            for first, second in ((0, 1), (3, 2)):
                score = scores[writer, first, reader, second]
                if writer >= reader:
                    assert score == 0
                    continue
                left = model.OV.AB[writer, first]
                right = {"Q": model.QK.AB, "K": model.QK.AB.mT, "V": model.OV.AB}[mode]
                right = right[reader, second]
                close(score, (left @ right).norm() / left.norm() / right.norm())
    with pytest.raises(ConfigError, match="'Q', 'K' or 'V'"):
        model.all_composition_scores("q")


def test_other_heads_say_what_they_have() -> None:
    with pytest.raises(ConfigError, match=r"model.score.weight \[label, d_model\] = \[2, 64\]"):
        _ = build("GPTNeoXForSequenceClassification").W_U
    with pytest.raises(ConfigError, match=r"model\.qa_outputs"):
        _ = build("GPTNeoXForQuestionAnswering").b_U
    with pytest.raises(ConfigError, match="GPTNeoXModel has no head"):
        _ = build("GPTNeoXModel").W_U
    tagger = build("GPTNeoXForTokenClassification")
    assert tagger.output_head is tagger.classifier
    assert tagger.W_Q.shape == (LAYERS, HEADS, D_MODEL, D_HEAD)


def test_folded_weights_read_what_layer_norm_passes_on(run: Any) -> None:
    model, cache = run
    before = copy.deepcopy(model.state_dict())
    for layer, block in enumerate(folded(model).blocks):
        x = cache["normalized", layer, "ln1"]
        for name in "QKV":
            weight, bias = getattr(block, f"W_{name}"), getattr(block, f"b_{name}")
            close(torch.einsum("bpd,hde->bphe", x, weight) + bias, cache[name.lower(), layer])
            close(weight.mean(-2), torch.zeros(HEADS, D_HEAD))
        x = cache["normalized", layer, "ln2"]
        close(x @ block.W_in + block.b_in, cache["pre", layer])
        for name in ("W_O", "b_O", "W_out", "b_out"):
            written = getattr(block, name)
            close(written.mean(-1), torch.zeros(written.shape[:-1]))
    logits = cache["ln_final.hook_normalized"] @ folded(model).W_U + folded(model).b_U
    close(logits.log_softmax(-1), cache["unembed.hook_out"].log_softmax(-1))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def with_folded_weights(model: Any) -> Any:
    """A model of its own that has the folded weights, and layer norms without any."""
    config = nl.GPTNeoXConfig.from_dict(model.config.to_dict() | {"attention_bias": True})
    other = nl.GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    weights = folded(model)
    other.backbone.embed_in.weight.copy_(weights.W_E)
    other.embed_out = nn.Linear(D_MODEL, VOCAB).requires_grad_(False)
    other.embed_out.weight.copy_(weights.W_U.T)
    other.embed_out.bias.copy_(weights.b_U)
    for layer, block in enumerate(other.blocks):
        for name in MATRICES:
            getattr(block, name).copy_(getattr(weights, name)[layer])
        for name in BIASES:
            getattr(block, name).copy_(getattr(weights.blocks[layer], name))
    return other  # its layer norms have weight 1 and bias 0


def test_folded_weights_make_an_equivalent_model(run: Any) -> None:
    model, cache = run
    other = with_folded_weights(model)
    output, folded_cache = other.run_with_cache(tokens())
    close(output.logits.log_softmax(-1), cache["unembed.hook_out"].log_softmax(-1))
    for layer in range(LAYERS):
        close(folded_cache["pattern", layer], cache["pattern", layer])
    close(folded_cache["resid_post", 2].mean(-1), torch.zeros(3, 12))


def test_folded_follows_the_model() -> None:
    model = build()
    view = folded(model)
    before = view.W_in
    model.blocks[0].W_in.mul_(2)
    close(view.W_in[0], 2 * before[0])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(0, 10**6),
)
def test_factored_matrices_equal_their_products(
    leading: list[int], rows: int, rank: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix = FactoredMatrix(draw(*leading, rows, rank), draw(*leading, rank, columns))
    dense = matrix.A @ matrix.B
    assert matrix.shape == dense.shape
    assert matrix.ndim == dense.ndim
    close(matrix.AB, dense)
    close(matrix.T.AB, dense.mT)
    left, s, right = matrix.svd()
    close(left @ torch.diag_embed(s) @ right.mT, dense)
    close(matrix.U @ torch.diag_embed(matrix.S) @ matrix.Vh, dense)
    close(s[..., : min(rows, columns)], torch.linalg.svdvals(dense)[..., :rank])
    close(matrix.norm(), dense.norm(dim=(-2, -1)))
    close(matrix.collapse_l().mT @ matrix.collapse_l(), dense.mT @ dense)
    close(matrix.collapse_r() @ matrix.collapse_r().mT, dense @ dense.mT)

    vector, other = draw(columns), FactoredMatrix(draw(columns, 2), draw(2, 6))
    close(matrix @ vector, dense @ vector)
    close((matrix @ other).AB, dense @ other.AB)
    thin = draw(3, rows)
    close((thin @ matrix).AB, thin @ dense)
    close(thin[0] @ matrix, (thin[:1] @ dense)[..., 0, :])

    close(matrix.make_even().AB, dense)
    even = [side.norm(dim=(-2, -1)) for side in matrix.make_even().pair]
    close(*even)
    close((3 * matrix * torch.tensor(0.5)).AB, 1.5 * dense)
    close(matrix.get_corner(2), dense[(slice(2),) * dense.dim()])
    close(matrix.unsqueeze(0).AB, dense[None])
    assert (matrix.ldim, matrix.mdim, matrix.rdim) == (rows, rank, columns)
    assert matrix.has_leading_dims == bool(leading)
    close(matrix[None].AB, dense[None])

    close(matrix[..., 0].AB, dense[..., [0]])
    close(matrix[..., rows - 1, :].AB, dense[..., [rows - 1], :])
    close(matrix[..., 1:, :2].AB, dense[..., 1:, :2])
    if leading:
        close(matrix[0].AB, dense[0])
        close(matrix[-1:, ..., -1].AB, dense[-1:, ..., [-1]])


def test_eigenvalues_and_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 3, generator=generator), torch.randn(2, 3, 6, generator=generator)
    matrix = FactoredMatrix(a, b)
    assert matrix.pair[0].data_ptr() == a.data_ptr()
    close(matrix.BA, b @ a)
    close(matrix.eigenvalues.sum(-1).real, torch.einsum("bii->b", a @ b))
    assert "rank 3" in repr(matrix)
    with pytest.raises(InputError, match="square"):
        _ = FactoredMatrix(a, b[..., :5]).eigenvalues
    with pytest.raises(InputError, match=r"\[.., rank, columns\]"):
        FactoredMatrix(a, a)
    with pytest.raises(IndexError):
        _ = matrix[0, 0, 0, 0]
    with pytest.raises(InputError, match="one number"):
        _ = matrix * torch.ones(2)
    assert FactoredMatrix(a.bfloat16(), b.bfloat16()).S.dtype == torch.float32


def test_composition_scores_are_those_of_the_products() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    left = FactoredMatrix(draw(2, 3, 5, 2), draw(2, 3, 2, 6))
    right = FactoredMatrix(draw(4, 6, 3), draw(4, 3, 7))
    found = composition_scores(left, right)
    assert found.shape == (2, 3, 4)
    for writer in range(6):
        for reader in range(4):
            first, second = left.AB.flatten(0, 1)[writer], right.AB[reader]
            wanted = (first @ second).norm() / first.norm() / second.norm()
            close(found.flatten(0, 1)[writer, reader], wanted)
    together = composition_scores(left, right[:3], broadcast_dims=False)
    close(together, torch.stack([found[:, head, head] for head in range(3)], dim=1))
    with pytest.raises(InputError, match="columns of the first"):
        composition_scores(left, left)
