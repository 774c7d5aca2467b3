"""Errors of other libraries and of sockets. Libraries are known by name: none of them is imported for it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from django.core.exceptions import ImproperlyConfigured, PermissionDenied

from ..clients import errors
from .natures import Kind, Nature

_UNREACHED = Nature("network", Kind.OUTAGE)
_TIMEOUT = Nature("timeout")
_AUTHENTICATION, _AUTHORIZATION = Nature("authentication"), Nature("authorization")
_HANDLER, _NETWORK, _SERIALIZATION = Nature("handler"), Nature("network"), Nature("serialization")

_BY_NAME: Mapping[str, Nature] = {
    **dict.fromkeys(
        (
            "requests.ConnectionError", "requests.ChunkedEncodingError", "urllib3.NewConnectionError",
            "urllib3.ConnectTimeoutError", "urllib3.ProtocolError", "urllib3.ProxyError", "urllib3.SSLError",
            "httpx.NetworkError", "httpx.ConnectTimeout", "httpx.RemoteProtocolError", "httpx.ProxyError",
            "httpcore.NetworkError", "httpcore.ConnectTimeout", "httpcore.RemoteProtocolError", "httpcore.ProxyError",
            "aiohttp.ClientConnectionError", "aiohttp.ConnectionTimeoutError", "aiohttp.ClientPayloadError",
            "http.IncompleteRead", "http.BadStatusLine", "ssl.SSLError",
            "redis.ConnectionError", "redis.TimeoutError", "kombu.OperationalError",
            "smtplib.SMTPServerDisconnected", "smtplib.SMTPConnectError",
            "botocore.EndpointConnectionError", "botocore.ConnectTimeoutError", "botocore.ConnectionClosedError",
        ),
        _UNREACHED,
    ),
    **dict.fromkeys(
        (
            "requests.Timeout", "urllib3.ReadTimeoutError", "httpx.TimeoutException", "httpcore.TimeoutException",
            "aiohttp.ServerTimeoutError", "botocore.ReadTimeoutError",
        ),
        _TIMEOUT,
    ),
    **dict.fromkeys(("redis.AuthenticationError", "smtplib.SMTPAuthenticationError"), _AUTHENTICATION),
    "redis.AuthorizationError": _AUTHORIZATION,
    "json.JSONDecodeError": _SERIALIZATION,
}  # fmt: skip
"""By the first part of the module's name and the name of the class, or of the nearest class that it derives from."""

_WITH_STATUS = ("requests.HTTPError", "httpx.HTTPStatusError", "urllib.HTTPError", "aiohttp.ClientResponseError")
_REGISTRY = "confluent_kafka.SchemaRegistryError"
_WITH_REASON = ("urllib.URLError", "urllib3.MaxRetryError")
"""Errors whose `reason` is the error that tells."""

_UNREACHED_NUMBERS = frozenset(
    {errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
_EXHAUSTED_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS})
"""What this machine has no more of, or cannot use any more."""

_DOWN = frozenset({429, 502, 503, 504, *range(520, 528), 530})
_LONGEST = 900.0
"""Seconds; another side that wants to be left alone for longer is asked again all the same."""


def of(error: BaseException) -> Nature | None:
    """Return the nature of an error of a library that is known, of a socket or of the system; None of any other."""
    kafka = errors.of(error)
    if kafka is not None:
        return _of_kafka(errors.category(kafka), kafka.name())
    for one in type(error).__mro__:
        name = f"{one.__module__.partition('.')[0]}.{one.__name__}"
        if name in _BY_NAME:
            return _named(_BY_NAME[name], error)
        if name in _WITH_STATUS:
            return _of_http(error)
        if name == _REGISTRY:
            return _of_registry(error)
        if name in _WITH_REASON:
            reason = getattr(error, "reason", None)
            return (of(reason) if isinstance(reason, Exception) else None) or _HANDLER
    return _of_python(error)


def _of_python(error: BaseException) -> Nature | None:
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, ConnectionError | socket.gaierror) or number in _UNREACHED_NUMBERS:
        return _named(_UNREACHED, error)
    if number in _EXHAUSTED_NUMBERS:
        return Nature("outage", Kind.OUTAGE, f"this machine cannot go on ({errno.errorcode[number or 0]})")
    if isinstance(error, TimeoutError):
        return _TIMEOUT
    if isinstance(error, PermissionError | PermissionDenied):
        return _AUTHORIZATION
    if isinstance(error, UnicodeError):
        return _SERIALIZATION
    return Nature("configuration") if isinstance(error, ImproperlyConfigured) else None


def _named(nature: Nature, error: BaseException) -> Nature:
    if nature.kind is not Kind.OUTAGE:
        return nature
    kind = type(error)
    return Nature(nature.category, nature.kind, f"something cannot be reached ({kind.__module__}.{kind.__qualname__})")


def _of_kafka(category: str, name: str) -> Nature:
    if category in ("network", "timeout"):
        return Nature(category, Kind.OUTAGE, f"Kafka cannot be reached ({name})")
    return Nature(category)


def _of_http(error: BaseException) -> Nature:
    response = getattr(error, "response", None)
    source: Any = error if response is None else response
    status = _number(source, "status_code", "status", "code")
    if status is None:
        return _HANDLER
    after = _retry_after(source)
    if status in _DOWN or (status >= 500 and after is not None):
        return Nature("outage", Kind.OUTAGE, f"another service cannot answer now (HTTP {status})", after)
    if status >= 500:
        return _NETWORK
    return {401: _AUTHENTICATION, 407: _AUTHENTICATION, 403: _AUTHORIZATION, 408: _TIMEOUT}.get(status, _HANDLER)


def _of_registry(error: BaseException) -> Nature:
    status = _number(error, "http_status_code")
    if status is None or status >= 500 or status == 429:
        return Nature("outage", Kind.OUTAGE, f"the schema registry cannot answer now (HTTP {status})")
    if status in (401, 403):
        return _AUTHENTICATION if status == 401 else _AUTHORIZATION
    # An unknown or unfit schema, or subject.
    return _SERIALIZATION


def _number(source: object, *names: str) -> int | None:
    found = (getattr(source, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def _retry_after(source: Any) -> float | None:
    """Return the seconds that a Retry-After header asks for: written as such, or as a date."""
    headers = getattr(source, "headers", None)
    text = headers.get("Retry-After") if headers is not None else None
    if not text:
        return None
    try:
        seconds = float(text) if str(text).strip().isdigit() else _until(parsedate_to_datetime(str(text)))
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), _LONGEST)


def _until(moment: datetime) -> float:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime.now(UTC)).total_seconds()
