"""The page of a tuning Pod in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry
from tests.cluster.tuning.browser import Browser, program
from tests.eventually import eventually

from kaito_tuning.progress import Progress, ProgressFile
from kaito_tuning.progress.server import ProgressServer


@pytest.fixture(scope="module")
def chromium() -> str:
    return program()


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Iterator[Browser]:
    folder = tmp_path / "browser"
    folder.mkdir()
    running = Browser(chromium, folder)
    yield running
    running.close()


@pytest.fixture
def progress(tmp_path: Path) -> ProgressFile:
    return ProgressFile(tmp_path / "progress.json")


@pytest.fixture
def server(progress: ProgressFile) -> Iterator[ProgressServer]:
    running = ProgressServer("127.0.0.1", 0, progress=progress, registry=CollectorRegistry())
    running.start()
    yield running
    running.stop()


TEXT = "document.querySelector('main')?.innerText ?? ''"
LOST = "document.querySelector('#lost')?.checkVisibility()"
DRAWN = "document.querySelector('polyline.loss')?.getBoundingClientRect().width"
COLOUR = "getComputedStyle(document.querySelector('polyline.loss')).stroke"


def test_a_page_opened_before_the_first_step_follows_the_training_to_its_end(
    browser: Browser, progress: ProgressFile, server: ProgressServer
) -> None:
    progress.report(Progress(phase="LoadingModel"))
    browser.open(f"http://127.0.0.1:{server.port}/")
    eventually(lambda: "no loss yet" in browser.value(TEXT), what=lambda: browser.value(TEXT))
    assert "LoadingModel" in browser.value(TEXT)
    assert browser.value(DRAWN) is None
    assert browser.value(LOST) is False

    for step in range(1, 51):
        progress.history.on_log(step, {"loss": 2.0 / step})
    progress.report(Progress(phase="Training", progressPercentage=50, currentStep=50, totalSteps=100, epochs=1))
    eventually(lambda: "50 of 100" in browser.value(TEXT), what=lambda: browser.value(TEXT))
    svg = browser.value("document.querySelector('svg').getBoundingClientRect().width")
    # From step 1 to 50 of 100, in a frame of 650 of the drawing's 720 units.
    assert browser.value(DRAWN) == pytest.approx(svg * 650 / 720 * 49 / 100, abs=4)
    assert browser.value(COLOUR) == "rgb(31, 111, 235)", "the page's own style is applied"
    assert browser.value("document.title") == "Training, 50 %"

    progress.update(phase="Failed", reason="NonFiniteLoss", message="the loss is nan & <b>more</b>")
    eventually(lambda: "NonFiniteLoss" in browser.value(TEXT), what=lambda: browser.value(TEXT))
    assert "the loss is nan & <b>more</b>" in browser.value(TEXT)

    server.stop()
    eventually(lambda: browser.value(LOST) is True, what=lambda: browser.complaints)
    assert "NonFiniteLoss" in browser.value(TEXT), "what was known last stays"

    origins = {urlsplit(url).netloc for url in browser.asked if url.startswith("http")}
    assert origins == {f"127.0.0.1:{server.port}"}
    assert {urlsplit(url).path for url in browser.asked if url.startswith("http")} == {"/", "/progress"}
    refused = [text for text in browser.complaints if "Content Security Policy" in text or "Uncaught" in text]
    assert refused == []
