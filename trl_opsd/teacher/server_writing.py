# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Texts by a teacher on a server: completions of token ids, sampled as transformers would."""

from typing import Any

from trl_opsd.teacher.server_client import ServerClient, ServerError


# Names of transformers, those of vLLM, and values that do nothing: without them vLLM takes the model's own
SAMPLING = {
    "max_new_tokens": ("max_tokens", 16),
    "temperature": ("temperature", 1.0),
    "top_p": ("top_p", 1.0),
    "top_k": ("top_k", 0),
    "min_p": ("min_p", 0.0),
    "repetition_penalty": ("repetition_penalty", 1.0),
}


def sampling(options: dict[str, Any]) -> dict[str, Any]:
    """
    Options of a request, from those of transformers' generation.

    Raises:
        ValueError: If one is not known there.
    """
    if unknown := options.keys() - SAMPLING.keys() - {"do_sample"}:
        raise ValueError(
            f"The teacher on a server can't write with `generation_kwargs` {sorted(unknown)}: it takes "
            f"{list(SAMPLING)}. Leave them out, or use another `teacher_model_kind`."
        )
    values = {new: default if options.get(old) is None else options[old] for old, (new, default) in SAMPLING.items()}
    return values if options.get("do_sample", True) else {**values, "temperature": 0.0}


def written(
    client: ServerClient, model: str, ids: list[int], options: dict[str, Any], ends: list[int], seed: int
) -> list[int]:
    """
    Token ids that the model writes after `ids`, with the one that ends them.

    Args:
        client ([`ServerClient`]): Who asks.
        model (`str`): Name of the model on the server.
        ids (`list[int]`): What is read.
        options (`dict[str, Any]`): From [`sampling`].
        ends (`list[int]`): Tokens that end a text.
        seed (`int`): Of the draws.

    Raises:
        ServerError: If there is no answer, or none with token ids.
    """
    own = {"model": model, "prompt": ids, "stop_token_ids": ends, "seed": seed, "return_token_ids": True}
    answer = client.ask("/v1/completions", {**own, "add_special_tokens": False, **options})
    try:
        return [int(token) for token in answer["choices"][0]["token_ids"]]
    except (LookupError, TypeError, ValueError) as error:
        raise ServerError(
            "A server of `teacher_model_server_url` answers /v1/completions without the `token_ids` of its text "
            f"({type(error).__name__}: {error}). It must be a vLLM server of version 0.27 or later."
        ) from None
