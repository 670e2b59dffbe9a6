# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Author behind an OpenAI-compatible endpoint: its options, a limit on failures, a disk cache."""

import asyncio
import json
import logging
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trl_opsd.options import Count, Index, NonNegative, Positive, check_fields
from trl_opsd.privileged.authors.answer_cache import AnswerCache
from trl_opsd.rollouts.rollout import Messages


if TYPE_CHECKING:
    from trl_opsd.privileged.authors.endpoint_client import EndpointClient

logger = logging.getLogger(__name__)


@dataclass
class EndpointAuthor:
    """
    Model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, a provider): chat completions for messages,
    plain completions for texts. Each process sends its own requests, through the `openai` package
    (`pip install 'trl-opsd[endpoint]'`).

    A passing failure (no connection, time-out, status 408, 409, 429 or 5xx, an answer without a text) is tried again by
    `openai`: after 0.5, 1, 2, ... up to 8 seconds, a little less at random, or after what the server asks for with
    `Retry-After`, up to two minutes. Any other status is an error at once, in the server's words. A request that still
    fails has no text, and its rollout no view; more than `max_failures` of them in a batch are an error. Logged:
    `endpoint_requests` (with repeated ones), `endpoint_retries`, `endpoint_cached`, `endpoint_failed`.

    Args:
        url (`str`): Beginning of its addresses, such as `http://localhost:8000/v1`.
        model (`str`): Name of the model there.
        api_key_env (`str`, *optional*): Environment variable with the key. The key itself is in no config, error, log
            or cache.
        concurrency (`int`, *optional*, defaults to `8`): Requests of a process at a time.
        timeout (`float`, *optional*, defaults to `120.0`): Seconds for one attempt, from the connection to the last
            byte.
        retries (`int`, *optional*, defaults to `4`): How often a request is sent again.
        backoff (`float`, *optional*): Deprecated, without effect: `openai` sets the waits.
        max_failures (`int` or `float`, *optional*, defaults to `0`): How many requests of a batch may fail, as a number
            or, below 1, as a share.
        cache_dir (`str`, *optional*): Folder that keeps the texts by what was asked, so that equal requests have one
            text. Empty and cut texts are not kept. Processes and runs may share it. It holds privileged information:
            keep it out of `output_dir`, or let its name begin with `_`.
        options (`dict[str, Any]`, *optional*): More of the request's body, such as `{"top_p": 0.95}`.

    Raises:
        ImportError: When it is set up, if the `openai` package is missing.
        ValueError: If an option is out of range, or the variable with the key is not set or holds no key.
        RuntimeError: When it writes, if the server refuses a request or too many fail.
    """

    url: str
    model: str
    api_key_env: str | None = None
    concurrency: Count = 8
    timeout: Positive = 120.0
    retries: Index = 4
    backoff: float | None = None
    max_failures: NonNegative = 0
    cache_dir: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_plain_address(self.url):
            raise ValueError(
                "`url` must be like http://localhost:8000/v1, without a key, a user name or a query in it (name an "
                "environment variable with `api_key_env`)."
            )
        check_fields(self, shows_text=False)  # a text at the wrong place may be the key
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env, re.ASCII):
            raise ValueError("`api_key_env` must be the name of an environment variable, and not the key itself.")
        try:
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`options` can't be sent as JSON: {error}") from None
        if self.backoff is not None:
            text = "`author.endpoint`: `backoff` has no effect, as the openai package sets the waits. Leave it out."
            warnings.warn(text, FutureWarning, stacklevel=3)
        names = ("requests", "retries", "cached", "failed")
        self.counts = dict.fromkeys((f"endpoint_{name}" for name in names), 0)

    def setup(self) -> None:
        """Check for the `openai` package, the key and the folder before training."""
        _client_class()
        self._key()
        if self.cache_dir is not None:
            Path(self.cache_dir).mkdir(parents=True, exist_ok=True)

    @property
    def _variable(self) -> str:
        """Name of the variable for errors, unless it looks like a key that was put there."""
        return self.api_key_env if self.api_key_env.isupper() else "that `api_key_env` names"

    def _key(self) -> str | None:
        if self.api_key_env is not None and not os.environ.get(self.api_key_env, "").strip():
            raise ValueError(f"`author.endpoint`: the environment variable {self._variable} is not set.")
        key = None if self.api_key_env is None else os.environ[self.api_key_env].strip()
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"`author.endpoint`: the environment variable {self._variable} holds what no key has (a line break, "
                "or characters beyond ASCII)."
            )
        return key

    def write(self, prompts: list[str | Messages], *, max_new_tokens: int, temperature: float) -> list[str | None]:
        """
        One text for each prompt, `None` for one that failed.

        Args:
            prompts (`list`): Texts or chat messages.
            max_new_tokens (`int`): Most tokens of a text.
            temperature (`float`): Of the sampling; `0.0` takes the likeliest token.
        """
        self.counts = dict.fromkeys(self.counts, 0)
        if not prompts:
            return []
        shared = {"model": self.model, "max_tokens": max_new_tokens, "temperature": temperature, **self.options}
        bodies = [{**shared, "prompt" if isinstance(one, str) else "messages": one} for one in prompts]
        client, problems = _client_class()(self.url, self._key(), self.timeout, self.retries), []
        from anyio.from_thread import start_blocking_portal  # comes with openai

        # An event loop in a thread of its own, as this thread may run one already (a notebook does)
        with start_blocking_portal() as portal:
            texts = portal.call(self._texts, client, bodies, problems)
        attempts, first = client.http.attempts, len(bodies) - self.counts["endpoint_cached"]
        self.counts |= {"endpoint_requests": attempts, "endpoint_retries": attempts - first}
        self._check(problems, len(bodies))
        return texts

    async def _texts(
        self, client: "EndpointClient", bodies: list[dict[str, Any]], problems: list[str]
    ) -> list[str | None]:
        slots = asyncio.Semaphore(self.concurrency)

        async def text_for(body: dict[str, Any]) -> str | None:
            address = f"{self.url.rstrip('/')}/{'chat/completions' if 'messages' in body else 'completions'}"
            cache = None if self.cache_dir is None else AnswerCache(Path(self.cache_dir), address, body)
            known = None if cache is None else cache.read()
            await slots.acquire()  # and kept at an error, so that no other request begins
            if known is not None and known.strip():
                text = known
                self.counts["endpoint_cached"] += 1
            else:
                text, whole, problem = await client.ask(address, body)
                problems.extend([] if problem is None else [problem])
                if cache is not None and text is not None and text.strip() and whole:
                    cache.write(text)
            slots.release()
            return text

        async with client.http:
            return await asyncio.gather(*map(text_for, bodies))  # the first error ends the loop, and all requests

    def _check(self, problems: list[str], count: int) -> None:
        """
        Count the failed requests of a batch.

        Raises:
            RuntimeError: If there are more than `max_failures`.
        """
        self.counts["endpoint_failed"] = len(problems)
        if not problems:
            return
        text = f"{len(problems)} of {count} requests to {self.url} failed for good; the first one: {problems[0]}"
        limit = self.max_failures * count if self.max_failures < 1 else self.max_failures
        if len(problems) > limit:
            raise RuntimeError(f"{text} `max_failures={self.max_failures}` allows {int(limit)}.")
        logger.warning(text)


def _client_class() -> type["EndpointClient"]:
    """Class of the client, imported when it is used, as it needs the `openai` package."""
    try:
        from trl_opsd.privileged.authors.endpoint_client import EndpointClient
    except ImportError:
        raise ImportError("`author.endpoint` needs the openai package: `pip install 'trl-opsd[endpoint]'`.") from None
    return EndpointClient


def is_plain_address(url: Any) -> bool:
    """Whether `url` is a web address that has nothing but a host, a port and a path."""
    try:
        parts = urlsplit(url)
        plain = parts.port != 0 and not re.search(r"[\s?#;@]", url)
    except (ValueError, TypeError, AttributeError):
        return False
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)
