"""The controller runtime: client, informers, queue, controllers, leader election, events, metrics, health, logs.

Level-triggered: a controller is told that something about a key may have changed, never what. It knows nothing of
Workspaces or machines; the controllers' packages import it, it imports none of them. Everything public is exported
here; ``client/`` talks to the API server, ``manager/`` is the process.
"""

from kaito_hooks.runtime.backoff import Backoff
from kaito_hooks.runtime.client.client import Client, ObjectList
from kaito_hooks.runtime.client.events import EventRecorder
from kaito_hooks.runtime.client.informer import Informer
from kaito_hooks.runtime.client.resource import Key, Obj, Resource
from kaito_hooks.runtime.client.watch import WatchEvent
from kaito_hooks.runtime.clock import (
    Clock,
    SystemClock,
    format_time,
    later,
    now_rfc3339,
    parse_time,
)
from kaito_hooks.runtime.controller import Controller, Result
from kaito_hooks.runtime.errors import (
    AlreadyExists,
    ApiError,
    BadRequest,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Gone,
    InternalError,
    Invalid,
    LeadershipLost,
    NotFound,
    ServerTimeout,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
)
from kaito_hooks.runtime.http_server import BoundedHTTPServer, Page
from kaito_hooks.runtime.logs import configure_logging
from kaito_hooks.runtime.manager.leader import LeaderElection
from kaito_hooks.runtime.manager.manager import Manager, run_until_signal
from kaito_hooks.runtime.metrics import Metrics
from kaito_hooks.runtime.quantities import format_duration, parse_duration, parse_quantity

__all__ = [
    "AlreadyExists",
    "ApiError",
    "Backoff",
    "BadRequest",
    "BoundedHTTPServer",
    "Client",
    "Clock",
    "Conflict",
    "ConnectionFailed",
    "Controller",
    "EventRecorder",
    "Forbidden",
    "Gone",
    "Informer",
    "InternalError",
    "Invalid",
    "Key",
    "LeaderElection",
    "LeadershipLost",
    "Manager",
    "Metrics",
    "NotFound",
    "Obj",
    "ObjectList",
    "Page",
    "Resource",
    "Result",
    "ServerTimeout",
    "ServiceUnavailable",
    "SystemClock",
    "TooManyRequests",
    "Unauthorized",
    "WatchEvent",
    "configure_logging",
    "format_duration",
    "format_time",
    "later",
    "now_rfc3339",
    "parse_duration",
    "parse_quantity",
    "parse_time",
    "run_until_signal",
]
