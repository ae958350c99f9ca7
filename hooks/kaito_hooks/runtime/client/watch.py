"""One watch request: events, line by line, as plain JSON.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import urllib3

from kaito_hooks.runtime.client.decode import decode
from kaito_hooks.runtime.client.resource import Obj
from kaito_hooks.runtime.errors import ApiError, ConnectionFailed

_CHUNK = 256 * 1024


class WatchEvent(NamedTuple):
    """One event. A BOOKMARK's object carries nothing but a resourceVersion from which a later watch may start."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Obj


class WatchStream(Iterator[WatchEvent]):
    """The events of one open watch.

    Iteration ends when the server ended the watch in order (its timeout). Anything else raises: Gone when the
    resourceVersion is too old, another ApiError that the server sent, ConnectionFailed when the stream broke off or
    fell silent.
    """

    def __init__(self, response: urllib3.response.BaseHTTPResponse) -> None:
        self._response = response
        self._closed = False
        self._events = self._read()

    def __iter__(self) -> WatchStream:
        return self

    def __next__(self) -> WatchEvent:
        return next(self._events)

    def close(self) -> None:
        """Ends the watch, from any thread; a blocked read wakes up and iteration ends."""
        self._closed = True
        shutdown = getattr(self._response, "shutdown", None)
        if shutdown is not None:
            try:
                shutdown()
            except (OSError, ValueError, RuntimeError):
                self._response.close()

    def _read(self) -> Iterator[WatchEvent]:
        pending = b""
        try:
            for chunk in self._response.stream(_CHUNK, decode_content=False):
                lines = chunk.split(b"\n")
                if len(lines) == 1:
                    pending += chunk
                    continue
                lines[0] = pending + lines[0]
                pending = lines.pop()
                for line in lines:
                    if not line:
                        continue
                    parsed: dict[str, Any] = decode(line)
                    if parsed["type"] == "ERROR":
                        raise ApiError.from_status(parsed["object"])
                    yield WatchEvent(parsed["type"], parsed["object"])
            if pending:
                raise ConnectionFailed("the watch broke off within an event", reason="WatchEnded")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if self._closed:
                return
            silent = isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError)
            what = "fell silent" if silent else f"broke off: {error}"
            raise ConnectionFailed(f"the watch {what}", reason="WatchEnded") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if self._closed:
                return
            raise ConnectionFailed(
                f"the watch sent something that is no event: {error}", reason="WatchEnded"
            ) from error
        finally:
            self._response.close()
