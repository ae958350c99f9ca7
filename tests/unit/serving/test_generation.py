"""From generate_kwargs to what the engine is asked."""

import pytest

from kaito_serving.engine.base import Limits, Sampling
from kaito_serving.errors import InvalidRequest
from kaito_serving.http.contract import GenerateKwargs
from kaito_serving.http.generation import ModelSettings, effective, plan

LIMITS = Limits(vocabulary=1000, context=2048)
MODEL = ModelSettings(
    generation_config={"eos_token_id": [3, 6], "temperature": 0.2, "no_repeat_ngram_size": None},
    eos_token_id=3,
    pad_token_id=3,
    limits=LIMITS,
)


def body(**given):
    """The settings of a request that sends `given`, as /chat makes them."""
    fields = GenerateKwargs(**given).model_dump(exclude={"pad_token_id", "eos_token_id"} - given.keys())
    return effective(fields, MODEL)


def steps(prompt_tokens=10, prefix_tokens=0, hole=None, **given):
    return plan(body(**given), prompt_tokens=prompt_tokens, prefix_tokens=prefix_tokens, limits=LIMITS, hole=hole)


def test_without_settings_the_defaults_hold_and_the_models_own_never_win():
    made = steps()
    assert made.max_new_tokens == 190
    assert made.sampling == Sampling(temperature=1.0, top_k=10, top_p=1.0)
    assert made.eos_token_ids == {3}
    assert made.special == {}


def test_null_settings_leave_the_model_its_own():
    made = plan(effective(None, MODEL), prompt_tokens=5, limits=LIMITS)
    assert made.max_new_tokens == 15  # transformers' own max_length of 20
    assert made.eos_token_ids == {3, 6}
    assert made.sampling is None


def test_max_new_tokens_beats_max_length():
    assert steps(max_new_tokens=7, max_length=5).max_new_tokens == 7


def test_a_prefix_adds_its_tokens_to_the_lengths():
    made = steps(prompt_tokens=30, prefix_tokens=5, max_length=100, min_length=40)
    assert made.max_new_tokens == 75
    assert made.special["min_length"] == 45
    assert steps(prompt_tokens=30, prefix_tokens=5, max_new_tokens=8).max_new_tokens == 8


def test_a_null_end_token_ends_nothing():
    assert steps(eos_token_id=None).eos_token_ids == frozenset()


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
    assert steps(**given).sampling is None


def test_top_k_beyond_the_vocabulary_does_not_limit():
    assert steps(top_k=5000).sampling == Sampling(1.0, 0, 1.0)
    assert steps(top_k=0).sampling == Sampling(1.0, 0, 1.0)


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
    "given",
    [
        {"num_beams": 2},
        {"repetition_penalty": 1.2},
        {"typical_p": 0.9},
        {"min_length": 5},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [[5]]},
        {"min_p": 0.1},
        {"stop_strings": ["x"]},
    ],
    ids=str,
)
def test_further_settings_go_to_the_engine_as_they_are(given):
    ((key, value),) = given.items()
    assert steps(**given).special[key] == value


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
        {"num_beams": 0},
        {"num_beams": 1000},
        {"num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 3, "num_beams": 2},
        {"num_beam_groups": 2},
        {"bad_words_ids": [[1000]]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": "x"},
        {"suppress_tokens": [-1]},
        {"penalty_alpha": 0.6},
        {"custom_generate": "someone/repository"},
        {"assistant_model": "x"},
        {"num_beams": 16, "max_new_tokens": 1000},
        {"no_repeat_ngram_size": "3"},
        {"min_p": float("nan")},
        {"exponential_decay_length_penalty": [1]},
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_with_a_sentence(given):
    with pytest.raises(InvalidRequest) as failure:
        steps(**given)
    assert len(str(failure.value)) > 10


def test_several_sampled_answers_share_the_batch():
    made = steps(num_return_sequences=3)
    assert made.sequences == 3
    assert made.special == {}


def test_a_hole_keeps_the_end_of_the_prompt():
    made = steps(prompt_tokens=1990, hole=2000, max_new_tokens=20)
    assert (made.prompt_tokens, made.max_new_tokens) == (1980, 20)
    with pytest.raises(InvalidRequest, match="leave no room"):
        steps(prompt_tokens=10, hole=20, max_new_tokens=20)
