"""What listens on the served port: the door, and behind it the application that speaks for all replicas."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from kaito_serving import version
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.options import Options
from kaito_serving.run import log
from kaito_serving.run.application import application
from kaito_serving.run.door import Door, configuration
from kaito_serving.run.folder import ServerFolder
from kaito_serving.run.listener import Listener
from kaito_serving.run.pod import Pod

_STATE_ENDS_WITHIN = 0.5  # seconds


class Front:
    """Entered, the port is open and says that the model loads; ServerFailed when it cannot be opened."""

    def __init__(self, options: Options, folder: ServerFolder, *, threads: int) -> None:
        self.folder = folder
        self.pod = Pod(
            replicas=options.replicas, metrics=ServingMetrics(model=options.served_model_name[0], version=version())
        )
        settings = configuration(
            host=options.host,
            port=options.port,
            state=folder.state,
            replicas=folder.sockets(options.replicas),
            longest=options.request_timeout_s,
            unavailable=Door.unavailable(folder.root),
            control=Door.control(folder.root),
            threads=threads,
            metrics_of_all=not options.uses_vllm,
        )
        self.door = Door(folder.root, settings, host=options.host, port=options.port)
        self._listener = Listener(application(self.pod, options), folder.state)
        self._stack = ExitStack()

    def drain(self) -> None:
        """The server ends: it answers a while longer, and says so."""
        self.pod.drain()
        self.door.drain()

    def __enter__(self) -> Front:
        with ExitStack() as stack:
            receiver = log.Receiver(self.folder.log)
            stack.callback(receiver.close)
            self._listener.start()
            stack.callback(self._listener.stop, within=_STATE_ENDS_WITHIN)
            stack.callback(self.door.close)
            self.door.open()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
