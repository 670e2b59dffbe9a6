# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Prompt log-probabilities of a server as tensors: requests for the scores of given tokens, and the reading of answers.

Legend: L tokens that are scored, k likeliest tokens at each.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from trl_opsd.teacher.server_client import ServerClient, ServerError


LOG_OF_ZERO = -9998.0  # vLLM writes -9999 for -inf, which JSON lacks
MOST_SUM = 1e-3  # by which the probabilities of an answer may exceed 1


@dataclass(frozen=True)
class TokenScores:
    """
    Scores of L tokens by a server.

    Args:
        label_logps (`torch.Tensor` of shape `(L,)`): Log-probabilities of the tokens themselves.
        ids, logps (`torch.Tensor` of shape `(L, k)`): The k likeliest tokens in their places, and their
            log-probabilities. A token that the student does not have is left out, and the label stands in its place.
    """

    label_logps: torch.Tensor
    ids: torch.Tensor
    logps: torch.Tensor


def request_body(model: str, ids: list[int], topk: int) -> dict[str, Any]:
    """Body of the request that has a server read `ids`. It must generate a token, which nobody looks at."""
    own = {"model": model, "prompt": ids, "prompt_logprobs": topk, "max_tokens": 1, "temperature": 0.0}
    return {**own, "add_special_tokens": False}


def score(
    client: ServerClient, model: str, ids: list[int], start: int, topk: int, vocabulary: int, server: int | None = None
) -> TokenScores:
    """
    Scores of the tokens from `start` on, each after all tokens before it.

    Args:
        client ([`ServerClient`]): Who asks.
        model (`str`): Name of the model on the server.
        ids (`list[int]`): Prompt and completion.
        start (`int`): Number of the first token that is scored, at least 1.
        topk (`int`): k.
        vocabulary (`int`): Tokens that the student has.
        server (`int`, *optional*): Number of the server, by default one after the other.

    Raises:
        ServerError: If there is no answer, or none of these tokens.
    """
    answer = client.ask("/v1/completions", request_body(model, ids, topk), server)
    try:
        positions = answer["choices"][0]["prompt_logprobs"]
        return _read(positions[start:], ids[start:], topk, vocabulary, whole=len(positions) == len(ids))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ServerError(
            f"A server of `teacher_model_server_url` answers /v1/completions without `prompt_logprobs` of the tokens "
            f"that were sent ({type(error).__name__}: {error}). It must be a vLLM server, and read token ids as they "
            "are."
        ) from None


def _read(positions: list[dict[str, Any]], labels: list[int], topk: int, vocabulary: int, whole: bool) -> TokenScores:
    if not whole:
        raise ValueError("it has another number of tokens")
    of_labels, ids, logps = [], [], []
    for entries, label in zip(positions, labels, strict=True):
        of_label = _logp(entries[str(label)])
        found = [(_logp(one), int(token)) for token, one in entries.items()]
        found = sorted((one for one in found if one[1] < vocabulary), key=lambda one: -one[0])[:topk]
        found += [(of_label, label)] * (topk - len(found))
        of_labels.append(of_label)
        ids.append([token for _, token in found])
        logps.append([value for value, _ in found])
    shape = len(labels), topk
    return TokenScores(
        torch.tensor(of_labels, dtype=torch.float32),
        torch.tensor(ids, dtype=torch.int32).view(shape),
        torch.tensor(logps, dtype=torch.float32).view(shape),
    )


def _logp(entry: dict[str, Any]) -> float:
    """A log-probability, -inf where vLLM stands in for it."""
    value = float(entry["logprob"])
    if math.isnan(value):
        raise ValueError("a log-probability is nan")
    return value if value > LOG_OF_ZERO else -math.inf


def check_log_probabilities(scores: TokenScores, url: str) -> None:
    """
    Check that scores are log-probabilities, and not all the same.

    Raises:
        ValueError: If they are logits, or those of a model without weights.
    """
    total = scores.logps.exp().sum(-1)
    if (scores.label_logps > MOST_SUM).any() or (total > 1 + MOST_SUM).any():
        raise ValueError(
            f"The teacher's server {url} gives scores that are no log-probabilities: start it without "
            "`--logprobs-mode raw_logits` or `processed_logits`."
        )
    if len(scores.label_logps) > 1 and (scores.label_logps.max() - scores.label_logps.min()) < 1e-6:
        raise ValueError(
            f"The teacher's server {url} finds every token equally likely, whatever it reads: its weights are not "
            "loaded, or were lost when it slept. Start it again."
        )
