"""From generate_kwargs to what the engine is asked."""

import pytest

from kaito_serving.engine.base import Limits, SamplingParams
from kaito_serving.errors import InvalidRequest
from kaito_serving.http.contract import GenerateKwargs
from kaito_serving.http.generate_kwargs import ModelSettings, effective, plan

LIMITS = Limits(vocabulary=1000, context=2048)
MODEL = ModelSettings(
    generation_config={"eos_token_id": [3, 6], "temperature": 0.2, "no_repeat_ngram_size": None},
    eos_token_id=3,
    end_tokens=frozenset({3, 6}),
)


def body(**given):
    """The settings of a request that sends `given`, as /chat makes them."""
    fields = GenerateKwargs(**given).model_dump(exclude={"pad_token_id", "eos_token_id"} - given.keys())
    return effective(fields, MODEL)


def steps(prompt_tokens=10, prefix_tokens=0, hole=None, **given):
    return plan(body(**given), prompt_tokens=prompt_tokens, prefix_tokens=prefix_tokens, limits=LIMITS, hole=hole)


def test_without_settings_the_defaults_hold_and_the_models_own_never_win():
    assert steps().params == SamplingParams(max_tokens=190, temperature=1.0, top_k=10, stop_token_ids=frozenset({3}))


def test_null_settings_leave_the_model_its_own():
    made = plan(effective(None, MODEL), prompt_tokens=5, limits=LIMITS)
    # transformers' own max_length of 20
    assert made.params == SamplingParams(max_tokens=15, temperature=0.0, stop_token_ids=frozenset({3, 6}))


def test_max_new_tokens_beats_max_length():
    assert steps(max_new_tokens=7, max_length=5).params.max_tokens == 7


def test_a_prefix_adds_its_tokens_to_the_lengths():
    made = steps(prompt_tokens=30, prefix_tokens=5, max_length=100, min_length=40)
    assert (made.params.max_tokens, made.params.min_tokens) == (75, 15)
    assert steps(prompt_tokens=30, prefix_tokens=5, max_new_tokens=8).params.max_tokens == 8
    assert steps(prompt_tokens=30, prefix_tokens=5, min_length=99, min_new_tokens=7).params.min_tokens == 7


def test_a_null_end_token_ends_nothing():
    assert steps(eos_token_id=None).params.stop_token_ids == frozenset()


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": False},
        {"temperature": 0},
        {"temperature": -3},
        {"temperature": 1e-12},
        {"top_k": 1},
        {"top_p": 0},
    ],
    ids=str,
)
def test_what_can_only_choose_the_likeliest_token_is_greedy(given):
    assert steps(**given).params.temperature == 0.0


def test_top_k_beyond_the_vocabulary_does_not_limit():
    assert steps(top_k=5000).params.top_k == 0
    assert steps(top_k=0).params.top_k == 0


NEUTRAL = {
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "length_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": None,
}


def test_neutral_values_count_as_absent():
    assert steps(**NEUTRAL) == steps()


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"repetition_penalty": 2}, "repetition_penalty", 2.0),
        ({"typical_p": 0.9}, "typical_p", 0.9),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"epsilon_cutoff": 0.01}, "epsilon_cutoff", 0.01),
        ({"eta_cutoff": 0.02}, "eta_cutoff", 0.02),
        ({"min_length": 15}, "min_tokens", 5),
        ({"min_length": 5}, "min_tokens", 0),  # the prompt is longer
        ({"min_new_tokens": 5}, "min_tokens", 5),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size", 3),
        ({"bad_words_ids": [[5], [6, 7]]}, "bad_words_ids", ((5,), (6, 7))),
        ({"bad_words_ids": [[3]]}, "bad_words_ids", ()),  # the end of the text alone
        ({"suppress_tokens": [5]}, "suppress_tokens", (5,)),
        ({"begin_suppress_tokens": [5]}, "begin_suppress_tokens", (5,)),
        ({"forced_eos_token_id": 3}, "forced_eos_token_ids", (3,)),
        ({"forced_bos_token_id": 3}, "forced_bos_token_id", None),  # only behind a prompt of one token
        ({"exponential_decay_length_penalty": [5, 1.1]}, "length_decay", (5, 1.1)),
        ({"stop_strings": "x"}, "stop", ("x",)),
        ({"stop_strings": ["x", "y"]}, "stop", ("x", "y")),
        ({"eos_token_id": 4}, "stop_token_ids", {4}),
        ({"eos_token_id": -1}, "stop_token_ids", frozenset()),
        ({"eos_token_id": 5000}, "stop_token_ids", frozenset()),
        ({"seed": 7}, "seed", 7),
    ],
    ids=str,
)
def test_every_setting_has_its_place(given, name, value):
    assert getattr(steps(**given).params, name) == value


def test_a_first_token_is_forced_behind_a_prompt_of_one_token():
    assert steps(prompt_tokens=1, forced_bos_token_id=5).params.forced_bos_token_id == 5


def test_a_time_limit_is_kept_beside_the_settings():
    assert steps(max_time=2.5).max_time == 2.5


@pytest.mark.parametrize(
    "given",
    [
        {"nonsense": 1},
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"max_length": 10},
        {"max_length": -1},
        {"max_new_tokens": 2039},
        {"top_k": -1},
        {"top_p": 1.5},
        {"top_p": -0.1},
        {"typical_p": 0},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e-38},
        {"repetition_penalty": 11},
        {"num_beams": 0},
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 17},
        {"pad_token_id": 1000},
        {"pad_token_id": -1},
        {"suppress_tokens": list(range(501))},
        {"bad_words_ids": [[token] for token in range(502)]},
        {"begin_suppress_tokens": list(range(501))},
        {"exponential_decay_length_penalty": [0, 1e10]},
        {"stop_strings": ["x"] * 5000},
        {"stop_strings": ["x" * 300]},
        {"stop_strings": [""]},
        {"seed": -1},
        {"num_beam_groups": 2},
        {"bad_words_ids": [[1000]]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": "x"},
        {"suppress_tokens": [-1]},
        {"penalty_alpha": 0.6},
        {"custom_generate": "someone/repository"},
        {"assistant_model": "x"},
        {"no_repeat_ngram_size": "3"},
        {"min_p": float("nan")},
        {"exponential_decay_length_penalty": [1]},
    ],
    ids=lambda given: str(given)[:60],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(given):
    with pytest.raises(InvalidRequest) as failure:
        steps(**given)
    assert 10 < len(str(failure.value)) < 300


def test_several_sampled_answers_share_the_batch():
    assert steps(num_return_sequences=3).sequences == 3


def test_a_hole_keeps_the_end_of_the_prompt():
    made = steps(prompt_tokens=1990, hole=2000, max_new_tokens=20)
    assert (made.prompt_tokens, made.params.max_tokens) == (1980, 20)
    with pytest.raises(InvalidRequest, match="leave no room"):
        steps(prompt_tokens=10, hole=20, max_new_tokens=20)
