# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
HTTP client of one or several vLLM servers: options, round-robin dispatch, time-outs and retries with back-off.

It is that of Python's library, as huggingface_hub brings httpx or httpx2 by its version, and no other is always there.
"""

import http.client
import itertools
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from trl_opsd.options import Count, Index, Positive, check_fields, near
from trl_opsd.privileged.authors.endpoint import is_plain_address
from trl_opsd.privileged.authors.masking import LEAST_SECRET, masked


PASSING = (408, 409, 429)  # and 500 and above
FIRST_WAIT, MOST_WAIT = 0.5, 8.0  # seconds before the first retry, which double up to the most


@dataclass(frozen=True)
class ServerOptions:
    """
    Options of a teacher on a server: `teacher_server_options`.

    Args:
        model (`str`, *optional*): Name of the model there. `None` means the first one that the server lists.
        api_key_env (`str`, *optional*): Environment variable with the key of `vllm serve --api-key`.
        concurrency (`int`, *optional*, defaults to `16`): Requests of a process at a time, over all servers.
        timeout (`float`, *optional*, defaults to `300.0`): Seconds for one attempt. A request waits in the server's
            queue within them.
        retries (`int`, *optional*, defaults to `5`): How often a request is sent again, each time to the next server.
        tolerance (`float`, *optional*, defaults to `0.2`): Nats by which a server's log-probabilities of the same
            tokens may differ from one answer to the next, or from another server's, at the start and on resume.
        live (`bool`, *optional*, defaults to `False`): Whether it is the server that TRL samples from
            (`vllm_mode="server"`) and synchronises with the student.

    Raises:
        ValueError: If an option is out of range.
    """

    model: str | None = None
    api_key_env: str | None = None
    concurrency: Count = 16
    timeout: Positive = 300.0
    retries: Index = 5
    tolerance: Positive = 0.2
    live: bool = False

    def __post_init__(self) -> None:
        check_fields(self, shows_text=False)  # a text at the wrong place may be the key
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env, re.ASCII):
            raise ValueError("`api_key_env` must be the name of an environment variable, and not the key itself.")

    @classmethod
    def of(cls, given: dict[str, Any] | None) -> "ServerOptions":
        """The options that a config gives."""
        names = [item.name for item in fields(cls)]
        for name in given or {}:
            if name not in names:
                raise ValueError(f"`teacher_server_options` has no {name!r}{near(name, names)}: it takes {names}.")
        try:
            return cls(**(given or {}))
        except ValueError as error:
            raise ValueError(f"`teacher_server_options`: {error}") from None

    def key(self) -> str | None:
        """The API key, from its environment variable."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(f"`teacher_server_options`: the environment variable {self.api_key_env} is not set.")
        return key


class ServerError(RuntimeError):
    """A server refused a request, or gave no answer that can be used after the last retry."""


class ServerClient:
    """
    Client of one or several servers that serve the same model. Its methods may be called from several threads.

    Args:
        urls (`list[str]`): Addresses of the servers, with or without `/v1` at the end.
        options ([`ServerOptions`]): Concurrency, time-out, retries and key.
        first (`int`): Server of the first request, so that processes begin at different ones.

    Attributes:
        retried (`int`): Requests that were sent again so far.
    """

    def __init__(self, urls: list[str], options: ServerOptions, first: int = 0):
        self.urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        self.options, self.retried = options, 0
        key = options.key()
        self.secret = key if key is not None and len(key) >= LEAST_SECRET else None
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._opener = urllib.request.build_opener(_NoRedirects)
        self.pool = ThreadPoolExecutor(options.concurrency, thread_name_prefix="teacher-server")
        self._next = itertools.count(first)
        self._random = random.Random()  # of its own: waits depend on the server, and the training's draws must not
        self._lock, self._closed = threading.Lock(), threading.Event()

    def submit(self, function: Any, *args: Any) -> Future:
        """Run a function that sends a request, in a thread of the pool."""
        return self.pool.submit(function, *args)

    def close(self) -> None:
        """Give up all requests that have not been answered."""
        self._closed.set()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, path: str, body: dict[str, Any] | None = None, server: int | None = None) -> Any:
        """
        The JSON of an answer.

        Args:
            path (`str`): Path on the server.
            body (`dict`, *optional*): Body of a POST request; without one it is a GET request.
            server (`int`, *optional*): Number of the server to ask, by default one after the other.

        Raises:
            ServerError: If the server refuses the request, or there is no answer after the last retry.
        """
        start = next(self._next) if server is None else server
        problem, wait = "", FIRST_WAIT
        for attempt in range(self.options.retries + 1):
            if attempt:
                with self._lock:
                    self.retried += 1
                self._closed.wait(wait * self._random.uniform(0.75, 1.0))
            if self._closed.is_set():
                raise ServerError("Given up, as another request failed.")
            address = f"{self.urls[(start if server is not None else start + attempt) % len(self.urls)]}{path}"
            wait = min(FIRST_WAIT * 2**attempt, MOST_WAIT)
            try:
                return self._attempt(address, body)
            except urllib.error.HTTPError as error:
                problem = f"{address} answers {error.code}: {self._words(_said(error))}"
                if error.code not in PASSING and error.code < 500:
                    raise ServerError(problem) from None
                wait = max(wait, _retry_after(error))
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", error)
                said = f"{type(reason).__name__}: {self._words(str(reason))}"
                problem = f"{address} gives no answer that can be used: {said}"
        raise ServerError(
            f"{problem} (after {self.options.retries} retries). See whether the server runs, and its log; if it is "
            "only slow, raise `timeout` or `retries` of `teacher_server_options`, or lower `concurrency`."
        )

    def _attempt(self, address: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, self._headers)
        end, content = time.monotonic() + self.options.timeout, bytearray()
        with self._opener.open(request, timeout=self.options.timeout) as response:
            while part := response.read1():
                content += part
                if time.monotonic() > end:
                    raise TimeoutError(f"not within {self.options.timeout:g} seconds")
        return json.loads(content)

    def _words(self, text: str) -> str:
        """Beginning of a server's text, without the key."""
        return masked(text.strip(), self.secret)[:500]


def check_urls(urls: list[str]) -> None:
    """
    Refuse addresses that are none.

    Raises:
        ValueError: Naming the first that is not.
    """
    if wrong := [url for url in urls if not is_plain_address(url)]:
        shown = wrong[0] if "@" not in wrong[0] else "[an address with a user name]"
        raise ValueError(
            f"`teacher_model_server_url` must be like http://localhost:8000, without a key, a user name or a query in "
            f"it, got {shown!r}."
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error, as it would take prompts and key to the host that it names."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _said(error: urllib.error.HTTPError) -> str:
    """Beginning of the text of a refusal."""
    try:
        return error.read(2**16).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks for, up to two minutes."""
    try:
        return min(max(float(error.headers["Retry-After"]), 0.0), 120.0)
    except (TypeError, ValueError):
        return 0.0
