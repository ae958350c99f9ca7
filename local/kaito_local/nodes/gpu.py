"""``python -m kaito_local.nodes.gpu --count N``: a device plugin whose GPUs do not exist; runs inside a node.

kubelet's device plugin API v1beta1
(https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/): the plugin serves a
socket, registers it with kubelet, streams its devices and answers allocations, so counting, exhaustion and health
are kubelet's own. The handful of messages are encoded here, because their only fields are strings, lists and maps of
strings.
A restarted kubelet makes its socket anew and empties the folder; the plugin then registers again.

A file ``unhealthy-gpus`` in the folder lists device ids that are to be reported as unhealthy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from kaito_local.nodes.kubelet import DEVICE_PLUGIN_FOLDER

RESOURCE = "nvidia.com/gpu"
_VERSION = "v1beta1"
_SOCKET = "kaito-gpu.sock"
_LOOK_EVERY = 0.5


def encode_string(field: int, value: str) -> bytes:
    """A string field of a protocol buffer message."""
    return encode_message(field, value.encode())


def encode_message(field: int, payload: bytes) -> bytes:
    """An embedded message: tag, length, payload (https://protobuf.dev/programming-guides/encoding/)."""
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def decode(message: bytes) -> list[tuple[int, bytes | int]]:
    """The fields of a message of strings, messages and integers, in order."""
    fields: list[tuple[int, bytes | int]] = []
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        value, position = _read_varint(message, position)
        if tag & 7 == 2:
            fields.append((tag >> 3, message[position : position + value]))
            position += value
        else:
            fields.append((tag >> 3, value))
    return fields


class GpuPlugin:
    """``count`` GPUs named GPU-0, GPU-1, ... on the node whose device plugin folder is ``folder``."""

    def __init__(self, folder: Path, *, count: int) -> None:
        self._folder = folder
        self._count = count

    def run(self) -> None:
        """Serves and registers for ever, again whenever kubelet or the socket is a new one."""
        while True:
            server = self._serve()
            try:
                self._register()
                seen = self._sockets()
                while self._sockets() == seen:
                    time.sleep(_LOOK_EVERY)
            except grpc.RpcError as error:
                print(f"cannot register with kubelet: {error}", flush=True)
                time.sleep(_LOOK_EVERY)
            finally:
                server.stop(None).wait()

    def devices(self) -> bytes:
        """A ListAndWatchResponse: every device with its health."""
        try:
            unhealthy = set((self._folder / "unhealthy-gpus").read_text().split())
        except FileNotFoundError:
            unhealthy = set()
        names = [f"GPU-{number}" for number in range(self._count)]
        return b"".join(
            encode_message(
                1, encode_string(1, name) + encode_string(2, "Unhealthy" if name in unhealthy else "Healthy")
            )
            for name in names
        )

    def allocate(self, request: bytes) -> bytes:
        """An AllocateResponse: each container learns its devices as NVIDIA's runtime would be told them."""
        responses = b""
        for field, container in decode(request):
            if field == 1 and isinstance(container, bytes):
                devices = ",".join(
                    str(value, "ascii") for key, value in decode(container) if key == 1 and isinstance(value, bytes)
                )
                variable = encode_string(1, "NVIDIA_VISIBLE_DEVICES") + encode_string(2, devices)
                responses += encode_message(1, encode_message(1, variable))
        return responses

    def _serve(self) -> Any:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        methods = {
            "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(lambda request, context: b""),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._watch),
            "Allocate": grpc.unary_unary_rpc_method_handler(lambda request, context: self.allocate(request)),
            "PreStartContainer": grpc.unary_unary_rpc_method_handler(lambda request, context: b""),
        }
        handler = grpc.method_handlers_generic_handler(f"{_VERSION}.DevicePlugin", methods)
        server.add_generic_rpc_handlers((handler,))
        (self._folder / _SOCKET).unlink(missing_ok=True)
        server.add_insecure_port(f"unix://{self._folder / _SOCKET}")
        server.start()
        return server

    def _register(self) -> None:
        request = encode_string(1, _VERSION) + encode_string(2, _SOCKET) + encode_string(3, RESOURCE)
        with grpc.insecure_channel(f"unix://{self._folder / 'kubelet.sock'}") as channel:
            register: Callable[..., bytes] = channel.unary_unary(f"/{_VERSION}.Registration/Register")
            register(request, timeout=5, wait_for_ready=True)
        print(f"registered {self._count} {RESOURCE}", flush=True)

    def _watch(self, request: bytes, context: Any) -> Iterator[bytes]:
        sent = None
        while context.is_active():
            devices = self.devices()
            if devices != sent:
                sent = devices
                yield devices
            time.sleep(_LOOK_EVERY)

    def _sockets(self) -> tuple[int, int]:
        return (_inode(self._folder / "kubelet.sock"), _inode(self._folder / _SOCKET))


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, position


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="kaito_local.nodes.gpu", description="announce GPUs that do not exist to kubelet"
    )
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--folder", type=Path, default=DEVICE_PLUGIN_FOLDER)
    arguments = parser.parse_args()
    GpuPlugin(arguments.folder, count=arguments.count).run()


if __name__ == "__main__":
    main()
