"""What can be reached from outside the Pod: the served port, and nothing else that answers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from tests.cluster.serving.conftest import Server
from tests.eventually import PATIENCE


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server], tiny_folder: Path) -> Server:
    running: Server = start_server("--host", "0.0.0.0", "--replicas", "2", weights=tiny_folder)
    running.wait_healthy()
    return running


def open_sockets(server: Server) -> list[tuple[str, int, str]]:
    """Address, port and title of whoever listens on more than the loopback address."""
    found = []
    for process in server.processes():
        for each in process.net_connections("inet"):
            address = ipaddress.ip_address(each.laddr.ip)
            mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
            listens = each.type == socket.SOCK_DGRAM or each.status == psutil.CONN_LISTEN
            if listens and not (mapped or address).is_loopback:
                found.append((str(address), each.laddr.port, " ".join(process.cmdline())))
    return found


def test_only_the_served_port_is_open_beside_what_ray_serve_cannot_bind_elsewhere(server: Server) -> None:
    port = httpx.URL(server.url).port
    served = [each for each in open_sockets(server) if each[1] == port]
    others = [each for each in open_sockets(server) if each[1] != port]
    assert [address for address, _, title in served if "haproxy" in title] == ["0.0.0.0"]
    # A replica's port for calls between deployments, which Ray Serve binds to every address ("[::]:0", ray 2.60).
    assert {title.split()[0].partition(".")[0] for _, _, title in others} == {"ray::ServeReplica:kaito:model"}
    assert len(others) == 2


def test_what_ray_serve_leaves_open_answers_nobody_without_the_token(server: Server) -> None:
    token = server.titled("ServeReplica")[0].environ()["RAY_AUTH_TOKEN"]
    for address, port, _ in open_sockets(server):
        if address != "::":
            continue
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            for metadata in ((), (("authorization", "Bearer " + "0" * 64),)):
                with pytest.raises(grpc.RpcError) as refused:
                    call(b"", metadata=metadata, timeout=PATIENCE)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as understood:
                call(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=PATIENCE)
            assert understood.value.code() is not grpc.StatusCode.UNAUTHENTICATED


def test_replicas_answer_on_sockets_that_only_the_servers_user_can_open(server: Server) -> None:
    (folder,) = server.folder.glob("kaito-serving-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.glob("replica-*.sock"))) == 2
