# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Client of an OpenAI-compatible endpoint: the `openai` package, with the limits and the masking that it lacks."""

import asyncio
import json
import logging
from contextlib import aclosing
from typing import Any

import httpx2  # comes with openai, which sends with it
from openai import APIError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient

from trl_opsd.privileged.authors.masking import LEAST_SECRET, masked


PASSING = (408, 409, 429)  # and 500 and above
MOST_BYTES = 64 * 2**20
RETRY_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")

for _name in ("httpx2", "httpcore2"):  # their lines of each request repeat the server's words, which may hold the key
    logging.getLogger(_name).setLevel(logging.WARNING)


class BoundedHTTPClient(DefaultAsyncHttpxClient):
    """
    HTTP client that keeps each attempt of `AsyncOpenAI` within limits. An attempt ends after `timeout` seconds, however
    slowly its bytes come. An answer has at most 64 MiB. A redirect is not followed, as it would take prompts and key to
    the host that it names. Only its own headers are sent: `openai` adds some from its environment variables, which are
    meant for another host. Of an answer it keeps the status, the body and what `openai` reads before a retry, in all of
    which `***` stands for the key: nothing that is logged, raised, returned or cached later can hold it.

    Args:
        key (`str`, *optional*): API key, sent as a bearer token.
        timeout (`float`): Seconds for one attempt.
    """

    def __init__(self, key: str | None, timeout: float):
        headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
        super().__init__(headers=headers, timeout=None, follow_redirects=False)
        # A short one is no secret, as the "EMPTY" of a local server, and may be a word of an answer
        self.secret = key if key is not None and len(key) >= LEAST_SECRET else None
        self.seconds, self.attempts = timeout, 0

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """
        Answer to one attempt.

        Raises:
            httpx2.RequestError: If there is none in time, or one without a text. `openai` tries again after it.
        """
        self.attempts += 1
        request = self.build_request(request.method, request.url, content=request.content)
        content = bytearray()
        try:
            async with asyncio.timeout(self.seconds), aclosing(await super().send(request, stream=True)) as response:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise httpx2.ReadError(f"it has more than {MOST_BYTES} bytes")
        except TimeoutError:
            raise httpx2.ReadTimeout(f"not within {self.seconds:g} seconds") from None
        headers = {name: response.headers[name] for name in RETRY_HEADERS if name in response.headers}
        headers = {name: masked(value, self.secret) for name, value in headers.items()}
        text = masked(content.decode("utf-8", "surrogateescape"), self.secret).encode("utf-8", "surrogateescape")
        response = httpx2.Response(response.status_code, headers=headers, content=text, request=request)
        if response.is_success and _text(response)[0] is None:
            raise httpx2.DecodingError(f"it holds no text: {response.text}")
        return response


class EndpointClient:
    """
    Client for one batch of requests.

    Args:
        url (`str`): Beginning of the endpoint's addresses.
        key (`str`, *optional*): API key; `***` stands for it in the text of a problem.
        timeout (`float`): Seconds for one attempt.
        retries (`int`): How often `openai` sends a request again.
    """

    def __init__(self, url: str, key: str | None, timeout: float, retries: int):
        self.key, self.http = key, BoundedHTTPClient(key, timeout)
        # Its own key is never sent; without one it would look for OPENAI_API_KEY
        self.openai = AsyncOpenAI(api_key="unused", base_url=url, max_retries=retries, http_client=self.http)

    async def ask(self, address: str, body: dict[str, Any]) -> tuple[str | None, bool, str | None]:
        """
        Text of the answer, whether it is whole, and where there is none the problem in words.

        Raises:
            RuntimeError: If the server refuses the request.
        """
        try:
            response = await self.openai.post(address, cast_to=httpx2.Response, content=json.dumps(body).encode())
            return *_text(response), None
        except APIError as error:
            problem, status = f"{address} {self._description(error)}", getattr(error, "status_code", 500)
        if status in PASSING or status >= 500:
            return None, False, problem
        raise RuntimeError(problem)  # behind no other error, which would hold the key

    def _description(self, error: APIError) -> str:
        if isinstance(error, APIStatusError):
            response, wait = error.response, error.response.headers.get("retry-after")
            wait = "" if wait is None else f" (Retry-After: {self._words(wait)})"
            return f"answers {response.status_code} {response.reason_phrase}: {self._words(response.text)}{wait}"
        cause = error.__cause__
        return f"gives no answer that can be used: {type(cause).__name__}: {self._words(str(cause))}."

    def _words(self, text: str) -> str:
        """Beginning of a server's text, masked before it is cut."""
        return masked(text.strip(), self.key)[:500]


def _text(response: httpx2.Response) -> tuple[str | None, bool]:
    """Text of an answer, `None` if it has none, and whether it is whole: not cut at the most tokens."""
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return (text if isinstance(text, str) else None), choice.get("finish_reason") != "length"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, False
