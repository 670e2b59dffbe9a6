# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Check of a teacher's servers before training: model, vocabulary, context length, and answers that stay the same."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from trl_opsd.teacher.server_client import ServerClient, ServerError
from trl_opsd.teacher.server_scores import check_log_probabilities, score


# Several scripts, numbers, code and white space, on which tokenizers differ
PROBE = (
    "The answer to 123 + 4567 is 4690.\n\ndef f(x):\n    return x ** 2  # naïve\n\tÜber Größe, 数学の答え, "
    "Ответ: да. 😀 <b>HTML</b> don't e.g. 3.14159\r\n"
)
SPREAD = 256  # tokens of the vocabulary that are compared as text
BEYOND = 8  # ids after the student's last one


@dataclass(frozen=True)
class ServerFacts:
    """
    Findings of a check.

    Args:
        model (`str`): Name of the model on the servers.
        max_length (`int`, *optional*): Tokens of prompt and completion that the servers read; `None` if unknown.
        probe_logps (`list[float]`): Log-probabilities of the probe's tokens.
        spread (`float`): Largest difference between two answers to it, in nats.
    """

    model: str
    max_length: int | None
    probe_logps: list[float]
    spread: float


def check_servers(
    client: ServerClient, tokenizer: PreTrainedTokenizerBase, topk: int, vocabulary: int, same_twice: bool = True
) -> ServerFacts:
    """
    Ask each server what it serves, compare its vocabulary, and let it score a probe several times.

    Args:
        client ([`ServerClient`]): Who asks.
        tokenizer (`PreTrainedTokenizerBase`): The student's.
        topk (`int`): Likeliest tokens that will be asked for.
        vocabulary (`int`): Tokens that the student's head has.
        same_twice (`bool`): Whether to compare answers (`teacher_self_test`).

    Raises:
        ValueError: If a server can't be reached, has another vocabulary, or answers that can't be used or differ.
    """
    try:
        found = [_model_of(client, server) for server in range(len(client.urls))]
    except ServerError as error:
        raise ValueError(f"A teacher's server can't be reached: {error}") from None
    model = found[0][0]
    for server, url in enumerate(client.urls):
        _check_vocabulary(client, server, url, model, tokenizer)
    lengths = [length for _, length in found if length is not None]
    most = min(lengths) - 1 if lengths else None  # as one more is generated
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"][:most]
    answers = _answers(client, model, ids, topk, vocabulary, 3 if same_twice else 1)
    # nan where two are infinitely unlikely alike
    spread = torch.stack([(one - answers[0]).abs().nan_to_num(0.0).max() for one in answers]).max().item()
    tolerance = client.options.tolerance
    if spread > tolerance:
        raise ValueError(
            f"The teacher's servers score the same tokens by {spread:.3g} nats differently from one answer to the "
            f"next, and `tolerance` of `teacher_server_options` allows {tolerance:g}. Do all servers serve the same "
            "weights, in the same precision? Half precision alone explains some tenths: raise `tolerance` then."
        )
    return ServerFacts(model, most, answers[0].tolist(), spread)


def _model_of(client: ServerClient, server: int) -> tuple[str, int | None]:
    """Name of the model, and tokens that it reads."""
    listed = client.ask("/v1/models", server=server)
    try:
        models = {one["id"]: one.get("max_model_len") for one in listed["data"]}
    except (LookupError, TypeError, AttributeError):
        models = {}
    wanted = client.options.model or next(iter(models), None)
    if wanted not in models:
        raise ValueError(
            f"The teacher's server {client.urls[server]} serves {list(models)}, and not {wanted!r}: set `model` of "
            "`teacher_server_options` to a name that it serves."
        )
    return wanted, models[wanted]


def _check_vocabulary(
    client: ServerClient, server: int, url: str, model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    try:
        given = client.ask("/tokenize", {"model": model, "prompt": PROBE, "add_special_tokens": False}, server)
        own = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        size, room = len(tokenizer), given.get("max_model_len") or SPREAD + BEYOND
        spread = list(range(size - 1, -1, -max(size // min(SPREAD, room - BEYOND), 1)))[: room - BEYOND]
        spread += range(size, size + BEYOND)
        text = client.ask("/detokenize", {"model": model, "tokens": spread}, server).get("prompt")
    except ServerError as error:
        raise ValueError(
            f"The vocabulary of the teacher's server {url} can't be compared with the student's, for which a vLLM "
            f"server has /tokenize and /detokenize: {error}"
        ) from None
    if given.get("tokens") != own or text != tokenizer.decode(spread):
        raise ValueError(
            f"The teacher's server {url} has another vocabulary than the student ({size} tokens): the same text has "
            "other token ids there, or an id another text, so their distributions can't be compared token by token. "
            "Serve a model of the same family."
        )


def _answers(
    client: ServerClient, model: str, ids: list[int], topk: int, vocabulary: int, times: int
) -> list[torch.Tensor]:
    """Log-probabilities of the probe from each server: alone, and together with others, which batch it otherwise."""
    arguments = client, model, ids, 1, topk, vocabulary
    try:
        alone = [score(*arguments, server) for server in range(len(client.urls))]
        beside = range(1, times)
        asked = [client.submit(score, *arguments, server) for server in range(len(client.urls)) for _ in beside]
        others = [one.result() for one in asked]
    except ServerError as error:
        raise ValueError(_advice(str(error), topk)) from None
    for url, one in zip(client.urls, alone, strict=True):
        check_log_probabilities(one, url)
    return [one.label_logps for one in [*alone, *others]]


def _advice(problem: str, topk: int) -> str:
    if "max allowed" in problem or "max_logprobs" in problem:
        return f"{problem} Start the server with `--max-logprobs {topk}`, or lower `distillation_topk`."
    return problem
