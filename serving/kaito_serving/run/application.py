"""What the options say of the HTTP application, for whoever listens: a replica, and what speaks for all of them."""

from __future__ import annotations

import time

from fastapi import FastAPI

from kaito_serving.engine.base import Engine
from kaito_serving.http.app import Service, build
from kaito_serving.http.chat import Chat
from kaito_serving.http.generate_kwargs import ModelSettings
from kaito_serving.http.text import Text
from kaito_serving.options import Options, api_keys
from kaito_serving.run import host


def application(service: Service, options: Options, *, passing: bool = False) -> FastAPI:
    """The application over `service`; `passing` as in `http.app.build`."""
    return build(
        service,
        api_keys=api_keys(options),
        hardware=host.Hardware(monotonic=time.monotonic),
        request_timeout=options.request_timeout_s,
        runtime_adapters=options.adapters_dir if options.allow_runtime_adapters else None,
        passing=passing,
    )


def chat(engine: Engine, text: Text, settings: ModelSettings, options: Options) -> Chat:
    """What answers /chat over an engine."""
    return Chat(
        engine=engine,
        text=text,
        settings=settings,
        conversational=options.pipeline == "conversational",
        all_ends=options.chat_stop == "model",
    )
