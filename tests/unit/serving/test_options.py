"""The command line, as Pod specs and users of KAITO write it."""

from pathlib import Path

import pytest

from kaito_serving.errors import OptionError
from kaito_serving.options import api_keys, parse
from kaito_serving.run.server import replica_count


def test_the_command_line_of_a_pod_is_understood():
    options = parse(
        [
            *("--pipeline", "text-generation", "--pretrained_model_name_or_path", "/workspace/tfs/weights"),
            *("--served_model_name", "phi", "workspace-phi", "--torch_dtype", "auto", "--adapters_dir", "/mnt/adapter"),
            *("--adapter_strengths", '{"a":0.5}', "--host", "10.0.0.1", "--port", "5000"),
        ],
        {},
    )
    assert (options.pipeline, options.weights, options.served_model_name) == (
        "text-generation",
        "/workspace/tfs/weights",
        ("phi", "workspace-phi"),
    )
    assert (options.dtype, options.host, options.port) == ("auto", "10.0.0.1", 5000)
    assert (options.adapters_dir, options.adapter_strengths) == (Path("/mnt/adapter"), {"a": 0.5})


def test_defaults_are_those_of_kaito():
    options = parse([], {})
    assert (options.pipeline, options.weights, options.port) == ("text-generation", "/workspace/tfs/weights", 5000)
    assert options.dtype == "auto"
    assert not options.allow_remote_files


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--pipeline fill-mask", "Unsupported pipeline: fill-mask"),
        ("--torch_dtype int8", "Invalid torch dtype: int8"),
        ("--combination_type ties", "--combination_type ties is not supported"),
        ("--allow_remote_files --revision main", "40 hex digits"),
        ("--load_in_4bit --load_in_8bit", "exclude each other"),
        ("--nonsense 1", "Unrecognized arguments: --nonsense"),
        ("--port seventy", "--port"),
        ("--port 70000", "between 1 and 65535"),
        ("--max_context -1", "--max_context must be at least 0"),
        ("--adapter_strengths [1]", "must be a JSON object"),
        ('--adapter_strengths {"a":2}', "not between 0 and 1"),
        ('--adapter_strengths {"a":"x"}', "is not a number"),
        ('--adapter_strengths {"a":NaN}', "not between 0 and 1"),
        ("--engine vllm --vllm /nowhere/vllm", "--engine vllm needs the program /nowhere/vllm"),
        ("--nnodes 2 --master_addr a", "--nnodes above 1 needs --engine vllm"),
        ("--engine vllm --vllm /bin/sh --nnodes 2", "--nnodes above 1 needs --master_addr"),
        ("--engine vllm --vllm /bin/sh --nnodes 2 --node_rank 2 --master_addr a", "--node_rank 2 is not one of"),
        ("--nnodes 0", "is not one of --nnodes 0"),
        ("--engine vllm --vllm /bin/sh --load_in_8bit", "--load_in_8bit is not served by the vllm engine"),
        ("--engine vllm --vllm /bin/sh --replicas 2", "--replicas 2 is not served by the vllm engine"),
        ("--engine vllm --vllm /bin/sh --kv_cache_tokens 9", "--kv_cache_tokens is not served by the vllm engine"),
        ("--replicas -1", "--replicas must be at least 0"),
        ("--allow_runtime_adapters --api_keys_file keys --replicas 2", "needs --replicas 1"),
        ("--engine auto --vllm /bin/sh --load_in_8bit", "--load_in_8bit is not served by the vllm engine"),
        ("--engine auto --vllm /bin/sh --replicas 2", "--replicas 2 is not served by the vllm engine"),
        (f"--engine vllm --vllm /bin/sh --allow_remote_files --revision {'a' * 40}", "--allow_remote_files is not"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(line, sentence):
    with pytest.raises(OptionError) as failure:
        parse(line.split(), {})
    assert sentence in str(failure.value)
    assert "\n" not in str(failure.value)


GIB = 1024**3


@pytest.mark.parametrize(
    ("line", "gpus", "memory", "weights", "count"),
    [
        ("", 0, 0, 8 * GIB, 1),
        ("", 1, 16 * GIB, 8 * GIB, 1),
        ("", 4, 16 * GIB, 8 * GIB, 4),
        ("", 4, 16 * GIB, 14 * GIB, 1),
        ("", 4, 16 * GIB, float("inf"), 1),
        ("--replicas 4", 0, 0, 8 * GIB, 4),
        ("--replicas 2", 4, 16 * GIB, 8 * GIB, 2),
        ("--allow_runtime_adapters --api_keys_file keys", 4, 16 * GIB, 8 * GIB, 1),
    ],
)
def test_a_replica_per_gpu_that_holds_the_model_unless_the_options_say_otherwise(line, gpus, memory, weights, count):
    assert replica_count(parse(line.split(), {}), gpus=gpus, memory=memory, weights=weights) == count


@pytest.mark.parametrize("name", ["svd", "cat"])
def test_exact_ways_to_combine_adapters_are_accepted(name):
    parse(["--combination_type", name], {})


def test_switches_stand_alone_or_with_a_value():
    assert parse(["--load_in_4bit"], {}).load_in_4bit
    assert parse(["--load_in_4bit", "true"], {}).load_in_4bit
    assert not parse(["--load_in_4bit", "False"], {}).load_in_4bit


def test_api_keys_are_lines_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert api_keys(parse(["--api_keys_file", str(file)], {})) == ("one", "two")
    file.write_text("\n")
    with pytest.raises(OptionError, match="holds no key"):
        api_keys(parse(["--api_keys_file", str(file)], {}))


@pytest.mark.parametrize(
    ("line", "uses"),
    [
        ("--engine vllm --vllm /bin/sh", True),
        ("--engine auto --vllm /bin/sh", True),
        ("--engine auto --vllm /nowhere/vllm", False),
        ("--engine transformers --vllm /bin/sh", False),
    ],
)
def test_auto_takes_vllm_where_it_is_installed(line, uses):
    assert parse(line.split(), {}).uses_vllm is uses
