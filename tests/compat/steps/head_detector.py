"""Head_Detector_Demo: heads that look where a named pattern says."""

import torch

from steps.registry import step

TEXT = "Carl saw Martin, and Martin saw Carl. Carl saw Martin"
SEVERAL = ["Carl saw Martin and Carl saw Martin", "Nancy met Oscar and Nancy met Oscar"]


@step
def previous_token(tl, model):
    return tl.head_detector.detect_head(model, TEXT, "previous_token_head")


@step
def duplicate_token(tl, model):
    return tl.head_detector.detect_head(model, TEXT, detection_pattern="duplicate_token_head")


@step
def induction(tl, model):
    return tl.head_detector.detect_head(model, TEXT, "induction_head")


@step
def by_absolute_difference(tl, model):
    return tl.head_detector.detect_head(model, TEXT, "previous_token_head", error_measure="abs")


@step
def without_the_current_token(tl, model):
    return tl.head_detector.detect_head(
        model, TEXT, "induction_head", exclude_current_token=True, error_measure="mul"
    )


@step
def without_the_beginning(tl, model):
    return tl.head_detector.detect_head(
        model, TEXT, "duplicate_token_head", exclude_bos=True, exclude_current_token=True
    )


@step
def several_texts(tl, model):
    return tl.head_detector.detect_head(model, SEVERAL, "induction_head")


@step
def chosen_heads(tl, model):
    return tl.head_detector.detect_head(
        model, TEXT, "previous_token_head", heads=[(0, 1), (1, 3), (3, 0)]
    )


@step
def heads_by_layer(tl, model):
    return tl.head_detector.detect_head(model, TEXT, "induction_head", heads={1: [0, 2], 2: [3]})


@step
def with_a_cache(tl, model):
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    return tl.head_detector.detect_head(model, TEXT, "previous_token_head", cache=cache)


@step
def own_pattern(tl, model):
    length = model.to_tokens(TEXT).shape[-1]
    first = torch.zeros(length, length)
    first[:, 0] = 1
    return tl.head_detector.detect_head(model, TEXT, first)


@step
def own_pattern_of_shares(tl, model):
    length = model.to_tokens(TEXT).shape[-1]
    even = torch.tril(torch.ones(length, length))
    even = even / even.sum(-1, keepdim=True)
    return tl.head_detector.detect_head(model, TEXT, even, error_measure="abs")


@step
def patterns_by_name(tl, model):
    tokens = model.to_tokens(TEXT)
    detector = tl.head_detector
    return (
        detector.get_previous_token_head_detection_pattern(tokens),
        detector.get_duplicate_token_head_detection_pattern(tokens),
        detector.get_induction_head_detection_pattern(tokens),
    )


@step
def score_of_one_pattern(tl, model):
    tokens = model.to_tokens(TEXT)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    wanted = tl.head_detector.get_previous_token_head_detection_pattern(tokens)
    return [
        tl.head_detector.compute_head_attention_similarity_score(
            cache["pattern", 0][head],
            wanted,
            exclude_bos=False,
            exclude_current_token=False,
            error_measure="mul",
        )
        for head in range(4)
    ]


@step
def scores_of_all_kinds(tl, model):
    kinds = ("previous_token_head", "duplicate_token_head", "induction_head")
    return {kind: tl.head_detector.detect_head(model, SEVERAL[0], kind).max() for kind in kinds}


@step
def names_that_are_known(tl):
    tl.head_detector.get_supported_heads()
    return list(tl.head_detector.HEAD_NAMES)
