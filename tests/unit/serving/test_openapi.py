"""The OpenAPI document is true: requests made from it get what it says, and never an error of the server."""

import threading
import time

import hypothesis
import pytest
import schemathesis
import uvicorn
from schemathesis.specs.openapi import checks
from tests.eventually import PATIENCE, eventually

from kaito_serving.http.app import build
from kaito_serving.http.metrics import MeteredEngine, ServingMetrics
from kaito_serving.model.load import load
from kaito_serving.options import Options
from kaito_serving.run.service import ModelService

EVERY = hypothesis.settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)


CHECKS = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)


@pytest.fixture(scope="module")
def url(tiny_folder, make_engine, make_surfaces):
    tiny = load(Options(weights=str(tiny_folder)))
    metrics = ServingMetrics(model="tiny", version="0")
    service = ModelService(
        load=lambda metrics: make_surfaces(
            tiny,
            MeteredEngine(make_engine(tiny), metrics, monotonic=time.monotonic),
            Options(served_model_name=("tiny",)),
        ),
        metrics=metrics,
        monotonic=time.monotonic,
    )
    app = build(service, hardware=dict, request_timeout=PATIENCE)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started and service.unready() is None)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_what_the_document_allows_is_answered_as_it_says(url, subtests):
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert {"POST /chat", "POST /v1/chat/completions", "GET /v1/models"} <= {each.label for each in operations}
    for operation in operations:
        with subtests.test(msg=operation.label):

            @EVERY
            @hypothesis.given(case=operation.as_strategy())
            def ask(case):
                response = case.call(timeout=PATIENCE)
                assert response.status_code < 500, (response.status_code, response.text[:500])
                case.validate_response(response, checks=CHECKS)

            ask()


def test_what_the_document_does_not_allow_is_the_clients_fault(url, subtests):
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for found in document.get_all_operations():
        operation = found.ok()
        if operation.method.upper() != "POST":
            continue
        with subtests.test(msg=operation.label):

            @EVERY
            @hypothesis.given(case=operation.as_strategy(schemathesis.GenerationMode.NEGATIVE))
            def ask(case):
                response = case.call(timeout=PATIENCE)
                assert response.status_code < 500, (response.status_code, response.text[:500])
                case.validate_response(response, checks=CHECKS)

            ask()
