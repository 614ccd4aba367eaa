"""SVD_Interpreter_Demo: singular vectors of weights, read through the unembedding."""

import torch

from steps.registry import step


def sizes(vectors):
    """Singular vectors have no sign: what is left is how large they are."""
    return vectors.abs()


@step
def values_of_a_head(tl, model):
    interpreter = tl.SVDInterpreter(model)
    return sizes(interpreter.get_singular_vectors("OV", layer_index=1, num_vectors=5, head_index=2))


@step
def neurons_in(tl, model):
    return sizes(
        tl.SVDInterpreter(model).get_singular_vectors("w_in", num_vectors=4, layer_index=2)
    )


@step
def neurons_out(tl, model):
    return sizes(
        tl.SVDInterpreter(model).get_singular_vectors("w_out", num_vectors=4, layer_index=2)
    )


@step
def best_tokens(tl, model):
    vectors = tl.SVDInterpreter(model).get_singular_vectors(
        "OV", layer_index=3, head_index=1, num_vectors=3
    )
    return vectors.shape, vectors.abs().topk(5, dim=0).values


@step
def module_of_its_own(tl, model):
    interpreter = tl.SVDInterpreter(model)
    return interpreter.get_singular_vectors(
        "w_out", layer_index=0, num_vectors=2
    ).abs().max(), interpreter.model is model


@step
def head_by_hand(tl, model):
    ov = tl.FactoredMatrix(model.blocks[1].attn.W_V[2], model.blocks[1].attn.W_O[2])
    u, s, v = ov.svd()
    return s, sizes(v.T[:3] @ model.W_U), (u @ torch.diag(s) @ v.T)


@step
def input_weights_by_hand(tl, model):
    u, s, _ = torch.linalg.svd(model.blocks[2].mlp.W_in, full_matrices=False)
    return s, sizes(u.T[:2] @ model.W_U)
