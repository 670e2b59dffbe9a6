# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A model behind an OpenAI-compatible endpoint that writes contexts: retries, a limit on failures, and a disk cache."""

import logging
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trl_opsd.privileged.authors.answer_cache import AnswerCache
from trl_opsd.privileged.authors.posting import PassingError, post_json
from trl_opsd.rollouts.rollout import Messages


logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 120.0

_JITTER = random.Random()  # not the run's random numbers


@dataclass
class _Answer:
    """What came of one request: a text, or in words what kept it away."""

    text: str | None = None
    problem: str | None = None
    requests: int = 0
    cached: bool = False


@dataclass
class EndpointAuthor:
    """
    A model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, a provider): chat completions for messages,
    plain completions for texts. Each process sends its own requests.

    What may pass (no connection, time-out, status 408, 409, 429 or 5xx, an answer without a text) is tried again, after
    1, 2, 4, ... seconds give or take a half, or after what the server asks for with `Retry-After`. Any other status is
    an error at once, in the server's words. A request that still fails has no text, and its rollout no view; more than
    `max_failures` of them in a batch are an error. Logged: `endpoint_requests` (with repeated ones),
    `endpoint_retries`, `endpoint_cached`, `endpoint_failed`.

    Args:
        url (`str`): Beginning of its addresses, such as `http://localhost:8000/v1`.
        model (`str`): Name of the model there.
        api_key_env (`str`, *optional*): Environment variable with the key. The key itself is in no config, error or
            cache.
        concurrency (`int`, *optional*, defaults to `8`): Requests of a process at a time.
        timeout (`float`, *optional*, defaults to `120.0`): Seconds for one request.
        retries (`int`, *optional*, defaults to `4`): How often a request is sent again.
        backoff (`float`, *optional*, defaults to `1.0`): Seconds before the second attempt, doubled for each further
            one. No wait is longer than two minutes; a server that asks for more counts as failed.
        max_failures (`int` or `float`, *optional*, defaults to `0`): How many requests of a batch may fail, as a number
            or, below 1, as a share.
        cache_dir (`str`, *optional*): Folder that keeps the texts by what was asked, so that equal requests have one
            text. Processes and runs may share it. It holds privileged information: keep it out of `output_dir`, or let
            its name begin with `_`.
        options (`dict[str, Any]`, *optional*): More of the request's body, such as `{"top_p": 0.95}`.

    Raises:
        ValueError: If an option is out of range, or the variable with the key is not set or holds no key.
        RuntimeError: When it writes, if the server refuses a request or too many fail.
    """

    url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4
    backoff: float = 1.0
    max_failures: int | float = 0
    cache_dir: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(
                "`url` must be like http://localhost:8000/v1, without a key, a user name or a query in it (name an "
                "environment variable with `api_key_env`)."
            )
        for name, least in (("concurrency", 1), ("retries", 0), ("backoff", 0), ("max_failures", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not self.timeout > 0:
            raise ValueError(f"`timeout` must be above 0, got {self.timeout}.")
        names = ("requests", "retries", "cached", "failed")
        self.counts = dict.fromkeys((f"endpoint_{name}" for name in names), 0)

    def setup(self) -> None:
        """Look for the key and the folder before training."""
        self._key()
        if self.cache_dir is not None:
            Path(self.cache_dir).mkdir(parents=True, exist_ok=True)

    def _key(self) -> str | None:
        if self.api_key_env is not None and not os.environ.get(self.api_key_env, "").strip():
            raise ValueError(f"`author.endpoint`: the environment variable {self.api_key_env} is not set.")
        key = None if self.api_key_env is None else os.environ[self.api_key_env].strip()
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"`author.endpoint`: the environment variable {self.api_key_env} holds what no key has (a line break, "
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
        shared = {"model": self.model, "max_tokens": max_new_tokens, "temperature": temperature, **self.options}
        bodies = [{**shared, "prompt" if isinstance(one, str) else "messages": one} for one in prompts]
        key, stop = self._key(), threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = [pool.submit(self._answer, body, key, stop) for body in bodies]
            try:
                for done in as_completed(waiting):
                    done.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        answers = [future.result() for future in waiting]
        self._count(answers)
        return [answer.text for answer in answers]

    def _count(self, answers: list[_Answer]) -> None:
        """
        Raises:
            RuntimeError: If too many failed.
        """
        problems = [answer.problem for answer in answers if answer.problem is not None]
        self.counts["endpoint_requests"] = sum(answer.requests for answer in answers)
        self.counts["endpoint_retries"] = sum(max(answer.requests - 1, 0) for answer in answers)
        self.counts["endpoint_cached"] = sum(answer.cached for answer in answers)
        self.counts["endpoint_failed"] = len(problems)
        if not problems:
            return
        told = f"{len(problems)} of {len(answers)} requests to {self.url} failed for good; the first one: {problems[0]}"
        limit = self.max_failures * len(answers) if self.max_failures < 1 else self.max_failures
        if len(problems) > limit:
            raise RuntimeError(f"{told} `max_failures={self.max_failures}` allows {int(limit)}.")
        logger.warning(told)

    # One request, in a thread

    def _answer(self, body: dict[str, Any], key: str | None, stop: threading.Event) -> _Answer:
        address = f"{self.url.rstrip('/')}/{'chat/completions' if 'messages' in body else 'completions'}"
        cache = None if self.cache_dir is None else AnswerCache(Path(self.cache_dir), address, body)
        if cache is not None and (text := cache.read()) is not None:
            return _Answer(text, cached=True)
        try:
            answer = self._attempts(address, body, key, stop)
        except BaseException:
            stop.set()
            raise
        if cache is not None and answer.text is not None:
            cache.write(answer.text)
        return answer

    def _attempts(self, address: str, body: dict[str, Any], key: str | None, stop: threading.Event) -> _Answer:
        problem, count = "", 0
        while count <= self.retries and not stop.is_set():  # set where another one was refused, which is the error
            count += 1
            try:
                return _Answer(_text(post_json(address, body, key, self.timeout)), requests=count)
            except PassingError as error:
                problem, wait = str(error), error.wait
            if wait is None:
                wait = min(self.backoff * 2 ** (count - 1), LONGEST_WAIT_SECONDS / 1.5) * _JITTER.uniform(0.5, 1.5)
            if wait > LONGEST_WAIT_SECONDS:
                problem += f" It asks to wait for {wait:.0f} seconds, which is too long."
                break
            if count <= self.retries:
                stop.wait(wait)
        return _Answer(problem=problem, requests=count)


def _text(answer: Any) -> str:
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise PassingError(f"The answer holds no text: {repr(answer)[:200]}.")
    return text
