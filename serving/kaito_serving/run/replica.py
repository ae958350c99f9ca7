"""A replica from inside: the model, its HTTP application, and the socket on which it answers."""

from __future__ import annotations

import shutil
import time

from kaito_serving import version
from kaito_serving.http.app import Surfaces
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.options import Options
from kaito_serving.run import log
from kaito_serving.run.application import application
from kaito_serving.run.folder import ServerFolder, claim
from kaito_serving.run.listener import Listener
from kaito_serving.run.service import ModelService
from kaito_serving.run.startup import Report


class Replica:
    """One copy of the model of `options`, whose server has `folder`; `name` stands in the log if there is one."""

    def __init__(self, options: Options, folder: ServerFolder, *, name: str) -> None:
        log.send(folder.log, name=name, debug=options.debug)
        self._options = options
        self._service = ModelService(
            load=self._load,
            metrics=ServingMetrics(model=options.served_model_name[0], version=version()),
            monotonic=time.monotonic,
            report=Report(folder.reports),
        )
        socket = claim(folder.sockets(options.replicas))
        self._mixes = socket.with_suffix(".mixes")
        shutil.rmtree(self._mixes, ignore_errors=True)  # of a process that was killed
        self._listener = Listener(application(self._service, options, passing=options.uses_vllm), socket)

    def start(self) -> None:
        """Listen, and load the model in the background. Until it answers, /health says no, and HAProxy waits."""
        self._listener.start()

    async def check(self) -> None:
        """Raise when only a new process can help; does not return if the application answers nothing more."""
        await self._listener.call(self._service.check)

    def stop(self) -> None:
        """Take no more requests, and let those that run finish."""
        self._listener.stop(within=self._options.request_timeout_s)

    def _load(self, metrics: ServingMetrics) -> Surfaces:
        if self._options.uses_vllm:
            from kaito_serving.run import vllm

            return vllm.assemble(self._options, self._service.step, mixes=self._mixes)
        from kaito_serving.run.assembly import assemble  # torch: only where the model is, 300 MiB less elsewhere

        return assemble(self._options, metrics, self._service.step)
