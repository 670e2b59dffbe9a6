# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A real HTTP server that scores and writes with a model of this process, by vLLM's addresses and forms of answers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from endpoint_server import Reply, sends


NAME = "tiny"
MOST = 20  # vLLM's default of --max-logprobs


class ScoringServer:
    """
    Args:
        model (`PreTrainedModel`): Scores, in its own type.
        tokenizer (`PreTrainedTokenizerBase`): Of the model.

    Attributes:
        requests (`list[dict]`): What came in: `path`, `key` and `body`.
        replies (`list[Reply]`): Answers to the next requests for scores; `None` for a true one. After them, true ones.
        always (`Reply`, *optional*): The answer to every request for scores.
        noise (`float`): Standard deviation of what is added to each logit.
        most (`int`): `--max-logprobs`.
        length (`int`): `--max-model-len`.
        raw (`bool`): Whether logits are told, as with `--logprobs-mode raw_logits`.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.requests: list[dict] = []
        self.replies: list[Reply | None] = []
        self.always: Reply | None = None
        self.noise, self.most, self.length, self.url, self.raw = 0.0, MOST, 512, "", False
        self.random = torch.Generator().manual_seed(0)  # and not that of the training in this process
        self.lock, self.closing = threading.Lock(), threading.Event()

    @property
    def scored(self) -> list[dict]:
        """Bodies of the requests for scores."""
        return [one["body"] for one in self.requests if "prompt_logprobs" in one["body"]]

    def reply(self, path: str, body: dict) -> Reply:
        answers = {"/v1/models": self._models, "/tokenize": self._tokens, "/detokenize": self._text}
        if path != "/v1/completions":
            return answers[path](body) if path in answers else sends(404, '{"detail":"Not Found"}')
        if self.always is not None:
            return self.always
        with self.lock:
            planned = self.replies.pop(0) if self.replies else None
        return planned or (self._scores(body) if "prompt_logprobs" in body else self._writes(body))

    def _models(self, body: dict) -> Reply:
        return says({"object": "list", "data": [{"id": NAME, "max_model_len": self.length}]})

    def _tokens(self, body: dict) -> Reply:
        ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        return says({"count": len(ids), "max_model_len": self.length, "tokens": ids})

    def _text(self, body: dict) -> Reply:
        return says({"prompt": self.tokenizer.decode(body["tokens"])})

    @torch.no_grad()
    def _scores(self, body: dict) -> Reply:
        ids, count = body["prompt"], body["prompt_logprobs"]
        if body["model"] != NAME:
            return refuses(404, f"The model `{body['model']}` does not exist.")
        if count > self.most:
            return refuses(400, f"Requested prompt logprobs of {count}, which is greater than max allowed: {self.most}")
        if len(ids) + body["max_tokens"] > self.length:
            return refuses(400, f"This model's maximum context length is {self.length} tokens.")
        with self.lock:
            logits = self.model(input_ids=torch.tensor([ids])).logits[0].float()
            logits = logits + self.noise * torch.randn(logits.shape, generator=self.random)
            logps = logits if self.raw else logits.log_softmax(-1)
        told: list[dict | None] = [None]
        for before, token in zip(logps[:-1], ids[1:], strict=True):
            top = before.topk(count)
            entries = {token: (before[token].item(), int((before >= before[token]).sum()))}
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            entries |= {one: (value, rank) for rank, (one, value) in enumerate(pairs, 1)}
            told.append({str(one): {"logprob": max(v, -9999.0), "rank": rank} for one, (v, rank) in entries.items()})
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": told}
        return says({"object": "text_completion", "model": NAME, "choices": [choice]})

    @torch.no_grad()
    def _writes(self, body: dict) -> Reply:
        ids, draw = list(body["prompt"]), torch.Generator().manual_seed(body["seed"])
        for _ in range(body["max_tokens"]):
            with self.lock:
                logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            greedy = body["temperature"] == 0
            chances = None if greedy else (logits / body["temperature"]).softmax(-1)
            ids.append(int(logits.argmax() if greedy else torch.multinomial(chances, 1, generator=draw)))
            if ids[-1] in body["stop_token_ids"]:
                break
        choice = {"index": 0, "text": "", "finish_reason": "stop", "token_ids": ids[len(body["prompt"]) :]}
        return says({"object": "text_completion", "model": NAME, "choices": [choice]})


def says(answer: Any) -> Reply:
    return sends(200, json.dumps(answer))


def refuses(status: int, message: str) -> Reply:
    """A refusal in vLLM's form."""
    return sends(status, json.dumps({"error": {"message": message, "type": "BadRequestError", "code": status}}))


@contextmanager
def scoring(model: Any, tokenizer: Any) -> Iterator[ScoringServer]:
    """A server for this block."""
    own = ScoringServer(model, tokenizer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as vLLM does

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict) -> None:
            with own.lock:
                own.requests.append({"path": self.path, "key": self.headers["Authorization"], "body": body})
            with suppress(OSError):  # who asked has gone
                own.reply(self.path, body)(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.closing = True, own.closing
    own.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield own
    finally:
        own.closing.set()
        server.shutdown()
        server.server_close()
