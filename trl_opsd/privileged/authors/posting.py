# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One JSON request over HTTP, with what goes wrong sorted into what may pass and what stays."""

import http.client
import json
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from trl_opsd.privileged.asking import LateError, in_thread


PASSING = (408, 409, 429)  # and 500 and above
MOST_BYTES = 64 * 2**20


class PassingError(Exception):
    """
    What may be gone at the next attempt.

    Args:
        message (`str`): In words.
        wait (`float`, *optional*): Seconds to wait, if the server says so.
    """

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class _NoRedirect(HTTPRedirectHandler):
    """A redirect is an answer as any other: urllib would send the key along, to whatever host it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = build_opener(_NoRedirect)


def post_json(address: str, body: dict[str, Any], key: str | None, timeout: float) -> Any:
    """
    Send JSON and read JSON.

    Args:
        address (`str`): Where to.
        body (`dict[str, Any]`): What.
        key (`str`, *optional*): Goes as a bearer token, and into no error.
        timeout (`float`): Seconds for all of it, from the connection to the last byte.

    Raises:
        PassingError: No connection, time-out, status 408, 409, 429 or 5xx, or no JSON.
        RuntimeError: Any other status.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
    request = Request(address, json.dumps(body).encode(), headers, method="POST")
    try:
        return json.loads(in_thread(lambda: _sent(request, timeout), timeout))
    except HTTPError as error:
        words = _words(error, timeout)
        words = words if key is None else words.replace(key, "***")
        problem = f"{address} answers {error.code} {error.reason}: {words}"
        if error.code in PASSING or error.code >= 500:
            raise PassingError(problem, _retry_after(error.headers.get("Retry-After"))) from None
        raise RuntimeError(problem) from None
    except LateError:
        raise PassingError(f"{address} does not answer within {timeout:g} seconds.") from None
    except (OSError, http.client.HTTPException) as error:  # a `URLError`, a time-out, a connection that breaks off
        raise PassingError(f"{address} can't be reached: {type(error).__name__}: {error}.") from None
    except ValueError as error:
        raise PassingError(f"{address} answers what is no JSON: {error}.") from None


def _sent(request: Request, timeout: float) -> bytes:
    end = time.monotonic() + timeout
    with _OPENER.open(request, timeout=timeout) as response:
        return _body(response, end)


def _body(response: Any, end: float) -> bytes:
    """All of it. The socket's own time-out begins anew with each byte, and the thread must not outlive its use."""
    parts, size = [], 0
    while part := response.read1(2**16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > end:
            raise TimeoutError("the answer takes too long")
        if size > MOST_BYTES:
            raise OSError(f"the answer has more than {MOST_BYTES} bytes")
    return b"".join(parts)  # of an answer that breaks off, what is no JSON


def _words(error: HTTPError, timeout: float) -> str:
    try:
        with error:
            return error.read1(2**12).decode("utf-8", "replace").strip()[:500]
    except (OSError, http.client.HTTPException):
        return ""


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number of them or a date."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max((when - datetime.now(UTC)).total_seconds(), 0.0)
