"""Training data from URLs: which are refused, what the files are called, what a failure says."""

from __future__ import annotations

import hashlib
import random
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kaito_hooks.artifacts.errors import ArtifactNotFound, Damaged, RefusedSource, Unreachable
from kaito_hooks.artifacts.transfer import addresses, download
from kaito_hooks.artifacts.transfer.http import Transfer

LOOPBACK = ["127.0.0.0/8"]


class Site:
    def __init__(self) -> None:
        self.paths: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.refuse_first = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.headers["Host"], self.path))
                status, headers, body = outer.paths.get(self.path, (404, {}, b""))
                if len(outer.asked) <= outer.refuse_first:
                    status, headers, body = 503, {}, b""
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.http.shutdown()
    running.http.server_close()


def transfer(waited: list[float] | None = None, *, allowed: list[str] = LOOPBACK, **more: object) -> Transfer:
    return Transfer(
        tls=ssl.create_default_context(),
        patience=download.PATIENCE,
        guard=addresses.guard(allowed, **more),  # type: ignore[arg-type]
        sleep=(waited if waited is not None else []).append,
        rng=random.Random(1),
    )


def test_a_file_is_called_as_its_url_ends(site: Site, tmp_path: Path) -> None:
    site.paths["/a/b.parquet?download=true&x=1"] = (200, {}, b"PAR1")
    (found,) = download.fetch(
        [f"{site.url}/a/b.parquet?download=true&x=1#part"], transfer=transfer(), destination=tmp_path
    )
    assert (found.name, found.bytes) == ("b.parquet_download_true_x_1", 4)
    assert (tmp_path / found.name).read_bytes() == b"PAR1"
    assert [p.name for p in tmp_path.iterdir()] == [found.name]
    assert site.asked[0][0] == site.url.removeprefix("http://")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://x/a/train.parquet?part=ab/cd%2F&to=/e/", "train.parquet_part_ab_cd%2F_to__e_"),
        ("http://x/train.parquet?file=a/other.csv#b/c", "train.parquet_file_a_other.csv"),
        ("http://x/a//train.csv", "train.csv"),
    ],
)
def test_a_slash_in_the_query_is_no_folder(url: str, name: str) -> None:
    assert download.file_name(url) == name


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        (["ftp://x/y.csv"], "no http or https"),
        (["file:///etc/passwd"], "no http or https"),
        (["http://user:secret@x/y.csv"], "carries a user"),
        (["http://x/"], "names no file"),
        (["http://x/.."], "names no file"),
        (["http://x/a/f.csv", "http://x/b/f.csv"], "would both be saved as 'f.csv'"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_before_anything_is_asked(
    tmp_path: Path, urls: list[str], says: str
) -> None:
    with pytest.raises(RefusedSource, match=says) as refused:
        download.fetch(urls, transfer=transfer(), destination=tmp_path)
    assert "secret" not in str(refused.value)


def test_the_address_that_was_checked_is_connected_to(site: Site, tmp_path: Path) -> None:
    """A name that changes its mind between the check and the connection gains nothing by it."""
    site.paths["/f.csv"] = (200, {}, b"x")
    port = site.url.rsplit(":", 1)[1]
    found = transfer(resolve=lambda host, port: ["127.0.0.1"])
    download.fetch([f"http://data.invalid:{port}/f.csv"], transfer=found, destination=tmp_path)
    assert site.asked == [(f"data.invalid:{port}", "/f.csv")]


def test_a_redirect_to_a_private_address_is_refused(site: Site, tmp_path: Path) -> None:
    site.paths["/f.csv"] = (302, {"Location": "http://169.254.169.254/latest/meta-data"}, b"")
    with pytest.raises(RefusedSource, match=r"169\.254\.169\.254"):
        download.fetch([f"{site.url}/f.csv"], transfer=transfer(), destination=tmp_path)


def test_a_site_in_trouble_is_tried_three_times(site: Site, tmp_path: Path) -> None:
    site.refuse_first = 99
    waited: list[float] = []
    url = f"{site.url}/f.csv?token=secret"
    with pytest.raises(Unreachable) as failed:
        download.fetch([url], transfer=transfer(waited), destination=tmp_path)
    assert str(failed.value).startswith(f"Failed to download {site.url}/f.csv?... after 3 attempts")
    assert "secret" not in str(failed.value)
    assert len(site.asked) == 3
    assert all(1 <= pause <= 2 for pause in waited)
    assert list(tmp_path.iterdir()) == []


def test_a_site_that_recovers_is_good_enough(site: Site, tmp_path: Path) -> None:
    site.paths["/f.csv"] = (200, {}, b"x")
    site.refuse_first = 2
    assert download.fetch([f"{site.url}/f.csv"], transfer=transfer(), destination=tmp_path)[0].bytes == 1


def test_a_file_that_changes_while_it_is_downloaded_is_one_version_of_it(site: Site, tmp_path: Path) -> None:
    old, new = b"old," * 5000, b"new," * 4000
    site.paths["/f.csv"] = (200, {"ETag": '"old"', "Content-Length": str(len(old) + 1)}, old)

    def change(seconds: float) -> None:
        site.paths["/f.csv"] = (200, {"ETag": '"new"'}, new)

    patient = transfer()
    patient.sleep = change
    (found,) = download.fetch([f"{site.url}/f.csv"], transfer=patient, destination=tmp_path)
    assert (tmp_path / "f.csv").read_bytes() == new
    assert (found.bytes, found.sha256) == (len(new), hashlib.sha256(new).hexdigest())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((404, {}, b""), ArtifactNotFound),
        ((200, {}, b""), Damaged),
        ((200, {"Content-Length": "9"}, b"x"), Unreachable),
    ],
    ids=["absent", "empty", "shorter than announced"],
)
def test_what_is_no_whole_file_is_told(
    site: Site, tmp_path: Path, answer: tuple[int, dict[str, str], bytes], error: type[Exception]
) -> None:
    site.paths["/f.csv"] = answer
    with pytest.raises(error, match="Failed to download"):
        download.fetch([f"{site.url}/f.csv"], transfer=transfer(), destination=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "secret"),
    [
        ("sv=2024&sig=Zq7w", "Zq7w"),
        ("download=true&token=hf_abcdefghijkl", "hf_abc"),
        ("X-Amz-Credential=AK1&X-Amz-Expires=60", "AK1"),
        ("anything=0123456789", "0123456789"),
        ("hf_abcdefghijkl", "hf_abc"),
        ("t=abcdefghijkl==", "abcdef"),
        ("%73ig=Zq7w", "Zq7w"),
    ],
)
def test_a_file_name_holds_no_secret_of_a_url_and_still_tells_urls_apart(query: str, secret: str) -> None:
    name = download.file_name(f"http://x/chat.jsonl?{query}")
    other = download.file_name(f"http://x/chat.jsonl?{query.replace(secret, secret[::-1])}")
    assert secret not in name
    assert name.startswith("chat.jsonl_")
    assert name != other
