"""The exercises of the notebooks: what is asked, what an answer looks like, and a hint."""

from __future__ import annotations

import dataclasses
from typing import Any

from neox_lab.family import load
from neox_lab.gym import exercise_answers as right
from neox_lab.gym.exercise_answers import BEGINNING, GIVING, Judge
from neox_lab.gym.exercise_forms import (
    COUNT,
    DIGIT,
    DIRECTION,
    EDGE,
    HOOKS,
    NEARLY,
    PART,
    PLACE,
    TOKEN,
    WORDS,
    Form,
)
from neox_lab.named import Named


@dataclasses.dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        notebook: the name of the notebook it belongs to.
        question: what is asked.
        form: what an answer looks like.
        judge: whether an answer is right.
        hint: what to try.
        head: the head of the model that it is about.
        built_in: it is about the built-in model, whatever model the course is about.
    """

    notebook: str
    question: str
    form: Form
    judge: Judge
    hint: str
    head: str = "causal-lm"
    built_in: bool = False

    def model(self, name: str | None) -> Any:
        """The model that it is about, in a course about the model of this name."""
        own = self.built_in or self.head != "causal-lm"
        return load(None if own else name, head=self.head)


EXERCISES: Named[Exercise] = Named(
    "exercise",
    {
        "likeliest token": Exercise(
            "00_start_here",
            'Which token does the model find likeliest after "The capital of Norway is"?',
            TOKEN,
            right.ranked("The capital of Norway is", 0),
            "model(prompt).logits[0, -1].argmax() is its number; model.to_string writes it out.",
        ),
        "greedy text": Exercise(
            "01_generate",
            'Greedy search writes 8 tokens after "It is the duty of". What is the sum of their '
            "log probabilities, in nats?",
            NEARLY,
            right.number(right.written),
            "compute_transition_scores with normalize_logits=True gives one number a token.",
        ),
        "one head silenced": Exercise(
            "02_hooks_and_cache",
            "Give hooks under which head 1 of layer 1 writes nothing, while all else in that layer "
            "writes what it did.",
            HOOKS,
            right.silenced,
            "z has the shape [batch, pos, head, d_head]: set one of its heads to zero.",
        ),
        "who looks at Mary": Exercise(
            "03_attention_maps",
            f'In "{GIVING}", which head looks most from the last token at the second one?',
            PLACE,
            right.same(right.looks_at_second),
            "maps.frame has every weight: query_pos is the last, key_pos is 1.",
        ),
        "surprise early": Exercise(
            "04_logit_lens",
            f'How surprising, in bits, is " States" after "{BEGINNING}", read off the stream '
            "before the last layer?",
            NEARLY,
            right.number(right.surprise_before_last_layer),
            "watch=[' States'] follows its probability; take −log2 in the row before the last.",
        ),
        "who carries the capital": Exercise(
            "05_activation_patching",
            'Patch one head at a time, at all positions, from "The capital of Spain is" into "The '
            'capital of Norway is": which one adds most to " Madrid" minus " Oslo"?',
            PLACE,
            right.same(right.carries_capital),
            "site='z_all_pos'; .top() lists the largest changes in either direction.",
        ),
        "who finds the copy": Exercise(
            "06_induction_heads",
            "On random tokens, shown twice, which head looks most at the earlier copy of the "
            "present token itself?",
            PLACE,
            right.same(right.finds_copy),
            'nl.detect.heads knows the pattern "duplicate_token"; .top(1) has the highest score.',
        ),
        "a direction for women": Exercise(
            "07_probing",
            "Give a direction of the stream after the last layer that tells women from men at the "
            "last word: of sentences such as those above, nine in ten must lie above the middle if "
            "the name is a woman's, and below it if it is a man's.",
            DIRECTION,
            right.tells_women,
            "method='difference' has the mean of each class in .weight, a row for each label, in "
            "alphabetical order.",
        ),
        "not wonderful": Exercise(
            "08_sequence_classification",
            'Write a text of blame, with "not" right before a word of praise from '
            "neox_lab.gym.words.POSITIVE, that the shipped head calls positive.",
            WORDS,
            right.praised,
            "The head has learned words more than sentences; .explain() says which ones it counts.",
            head="sequence-classification",
        ),
        "no answer": Exercise(
            "09_question_answering",
            'Write a text with the word "key" in it to which the reader answers "Where is the '
            'key?" with nothing.',
            WORDS,
            right.unanswered,
            "Let the text say something else of the key than where it is.",
            head="question-answering",
        ),
        "three persons": Exercise(
            "10_token_tagging",
            "Write a text in which the shipped tagger finds three persons, no more and no fewer.",
            WORDS,
            right.three_persons,
            "One sentence for each, as in the texts at the top.",
            head="token-classification",
        ),
        "loss of a sentence": Exercise(
            "11_language_modelling",
            'What is the mean loss, in nats per token, of "The capital of Spain is Madrid."?',
            NEARLY,
            right.number(
                lambda model: float(
                    right.losses(model, model.to_tokens("The capital of Spain is Madrid.")).mean()
                )
            ),
            "likelihood.perplexity has it among its metrics; perplexity is its exponential.",
        ),
        "second choice": Exercise(
            "12_live_widgets",
            'Write on from "Mary put the key in the" in a widget: what is the second likeliest '
            "first token?",
            TOKEN,
            right.ranked("Mary put the key in the", 1),
            "writing.branches[0].tokens[0].alternatives, the likeliest first.",
        ),
        "first step": Exercise(
            "13_training_dynamics",
            "At which of the built-in model's revisions does a head first look one token back with "
            "more than half of its attention? (The step alone.)",
            COUNT,
            right.same(right.first_step),
            'nl.dynamics.run(lambda model: nl.detect.heads(model, "previous_token"), steps="all"); '
            "its .frame has the scores.",
            built_in=True,
        ),
        "far from the end": Exercise(
            "14_tuned_lens",
            f'Read "{GIVING}" through the logit lens: how far, in bits and on average over '
            "positions, is the row 0_pre from the end?",
            NEARLY,
            right.number(right.read_at_start),
            "The column kl_bits of .frame; group it by layer.",
        ),
        "feature of the dogs": Exercise(
            "15_features",
            'Which feature of resid_post_1 is highest at the last token of "Then the dogs"?',
            COUNT,
            right.same(right.highest_feature),
            "nl.features.active(model, dictionary, text).frame has the activations of each token.",
            built_in=True,
        ),
        "nearest features": Exercise(
            "16_training_a_dictionary",
            "In the dictionary resid_post_2, how large is the largest cosine between what two "
            "features write?",
            NEARLY,
            right.number(right.nearest_features),
            "Rows of W_dec, normalized; the product with themselves, without the diagonal.",
            built_in=True,
        ),
        "strongest part": Exercise(
            "17_circuits",
            'Which head or MLP has the largest exact node score in nl.gym.pairs(model, "ioi", 8)? '
            "(Its name, such as MLP1.)",
            PART,
            right.same(right.strongest_part),
            "nl.circuits.node_scores(..., method='exact'); its .top() or .frame.",
        ),
        "most influential": Exercise(
            "18_attribution_graphs",
            'Which feature has the largest influence in the graph of "The cat by the rivers"? '
            "(Its name, such as L1F18@1.)",
            PART,
            right.same(right.influential),
            "graph.frame, rows whose kind is feature; the largest influence.",
            built_in=True,
        ),
        "turned between layers": Exercise(
            "19_steering",
            "What is the cosine between the directions from blame to praise after layers 1 and 2, "
            'found in two_kinds("train", 60)?',
            NEARLY,
            right.number(right.turned),
            "everywhere.vectors has one for each layer, by the name of its site.",
        ),
        "one digit exchanged": Exercise(
            "20_interchange",
            "In nl.gym.planted_variable(), take from the run on AbcdefghiJ= into the run on "
            "aBcdEfghij= what stands after layer 0 at the last position along the direction of a. "
            "What does the model answer?",
            DIGIT,
            right.same(right.exchanged),
            'A Site at ("resid_post", 0) with subspace=nl.gym.planted_variable.DIRECTIONS[:, :1]; '
            "nl.interchange.run has the logits, model.to_string the token.",
            built_in=True,
        ),
        "passes to write": Exercise(
            "21_large_models",
            "With 3.4 MB, how often is every layer read to write nine tokens after one prompt of "
            f'a few tokens, such as "{BEGINNING}"?',
            NEARLY,
            right.number(right.passes),
            "read_by counts it; the first token comes with the pass over the prompt.",
            built_in=True,
        ),
        "four tokens back": Exercise(
            "24_heads_in_weights_and_texts",
            f'In "{GIVING}", which head looks most, on average, at the token four before its own?',
            PLACE,
            right.same(right.looks_four_back),
            "A pattern as two_back is, with four; give [text] to nl.detect.heads beside it.",
        ),
        "strongest edge": Exercise(
            "25_where_estimates_fail",
            "Which edge of nl.gym.planted_two_step() has the largest exact effect?",
            EDGE,
            right.same(right.first_edge),
            "made.model and **made.question() go to nl.circuits.scores with method='exact'.",
            built_in=True,
        ),
        "when copies are found": Exercise(
            "26_finding_induction",
            "At which of the built-in model's revisions does a head first pay more than half of "
            "its attention to the token after the earlier copy? (The step alone.)",
            COUNT,
            right.same(right.first_induction),
            'nl.dynamics.run(lambda model: nl.detect.heads(model, "induction"), steps="all"); its '
            ".frame has the scores.",
            built_in=True,
        ),
        "who writes the verb": Exercise(
            "27_finding_indirect_object",
            "The same of another task: which head's own output adds most to the answers of "
            'nl.gym.pairs(model, "agreement", 8)?',
            PLACE,
            right.same(right.writes_verb),
            "nl.patching.path_patch with receivers='logits'; .top(1) is the largest effect.",
        ),
        "chance of a later year": Exercise(
            "28_finding_greater_than",
            'What probability does the model give to all even years from 1744 to 1798 after "The '
            'king ruled from 1742 to"?',
            NEARLY,
            right.number(right.later_years),
            "Softmax over the whole vocabulary first, then the sum over these years' tokens.",
            built_in=True,
        ),
        "who reads the country": Exercise(
            "29_finding_a_fact",
            'Which head, patched at the country alone (the token before the last) from "The people '
            'of Norway speak" into "The people of Spain speak", adds most to " Norwegian" minus '
            '" Spanish"?',
            PLACE,
            right.same(right.reads_country),
            "site='z' with positions={'country': -2}.",
        ),
    },
)
"""Exercises by name, in the order of the notebooks."""
