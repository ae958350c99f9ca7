"""The GPU device plugin's messages, held against Google's own protocol buffer runtime and a real socket."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from tests.eventually import PATIENCE

from kaito_local.nodes.gpu import GpuPlugin, decode, encode_message, encode_string


def devices(message: bytes) -> dict[str, str]:
    found = {}
    for field, device in decode(message):
        assert field == 1
        assert isinstance(device, bytes)
        values = dict(decode(device))
        found[str(values[1], "ascii")] = str(values[2], "ascii")  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 70_000])
def test_strings_of_any_length_are_encoded_as_protocol_buffers_do(length: int) -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")
    text = "x" * length
    ours = encode_string(1, text)
    assert wrappers.StringValue.FromString(ours).value == text
    assert dict(decode(ours)) == {1: text.encode()}


def test_all_gpus_are_healthy_but_those_listed(tmp_path: Path) -> None:
    plugin = GpuPlugin(tmp_path, count=3)
    assert devices(plugin.devices()) == {"GPU-0": "Healthy", "GPU-1": "Healthy", "GPU-2": "Healthy"}
    (tmp_path / "unhealthy-gpus").write_text("GPU-1\n")
    assert devices(plugin.devices())["GPU-1"] == "Unhealthy"


def test_each_container_learns_its_gpus(tmp_path: Path) -> None:
    one = encode_message(1, encode_string(1, "GPU-0") + encode_string(1, "GPU-2"))
    other = encode_message(1, encode_string(1, "GPU-1"))
    answers = decode(GpuPlugin(tmp_path, count=3).allocate(one + other))
    values = []
    for _, container in answers:
        assert isinstance(container, bytes)
        entry = dict(decode(dict(decode(container))[1]))  # type: ignore[arg-type]
        assert entry[1] == b"NVIDIA_VISIBLE_DEVICES"
        values.append(entry[2])
    assert values == [b"GPU-0,GPU-2", b"GPU-1"]


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[tuple[Path, list[bytes], threading.Event]]:
    """A registration service at kubelet's socket."""
    requests: list[bytes] = []
    registered = threading.Event()

    def register(request: bytes, context: grpc.ServicerContext) -> bytes:
        requests.append(request)
        registered.set()
        return b""

    server = grpc.server(futures.ThreadPoolExecutor(1))
    handlers = {"Register": grpc.unary_unary_rpc_method_handler(register)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.Registration", handlers),))
    server.add_insecure_port(f"unix://{tmp_path}/kubelet.sock")
    server.start()
    yield tmp_path, requests, registered
    server.stop(None).wait()


def test_the_plugin_registers_and_streams_its_devices(
    kubelet: tuple[Path, list[bytes], threading.Event],
) -> None:
    folder, requests, registered = kubelet
    plugin = subprocess.Popen([sys.executable, "-m", "kaito_local.nodes.gpu", "--folder", str(folder), "--count", "2"])
    try:
        assert registered.wait(PATIENCE)
        fields = dict(decode(requests[0]))
        assert (fields[1], fields[3]) == (b"v1beta1", b"nvidia.com/gpu")
        with grpc.insecure_channel(f"unix://{folder}/{str(fields[2], 'ascii')}") as channel:  # type: ignore[arg-type]
            stream = channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch")(b"", timeout=PATIENCE)
            assert devices(next(iter(stream))) == {"GPU-0": "Healthy", "GPU-1": "Healthy"}
    finally:
        plugin.kill()
        plugin.wait()
