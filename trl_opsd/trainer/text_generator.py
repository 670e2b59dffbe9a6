# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Lets the model write text on the side: a critique, a summary, a hint, an answer with the context in view."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import GenerationConfig
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad

from trl_opsd.batches.pixels import ImageCache, ImageTensors, Pixels
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.model.evaluation import without_dropout
from trl_opsd.prompts.tokenizer import PromptTokenizer
from trl_opsd.rollouts.rollout import Messages


class TextGenerator:
    """
    Writes with the weights of a run. A collective: every process calls it equally often, with as many prompts as it
    likes or none.

    Args:
        trainer (`GRPOTrainer`): Gives the model and the options of generation.
        tokenizer ([`PromptTokenizer`]): From prompts to token ids.
        teacher_forward (`Callable[[nn.Module], AbstractContextManager]`): Puts the teacher's weights in place.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        tokenizer: PromptTokenizer,
        teacher_forward: Callable[[nn.Module], AbstractContextManager[nn.Module]],
    ):
        self.trainer, self.tokenizer, self.teacher_forward = trainer, tokenizer, teacher_forward

    def __call__(
        self,
        prompts: list[str | Messages],
        *,
        weights: str = "live",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        chat_template_kwargs: dict[str, Any] | None = None,
        literal: bool = False,
    ) -> list[str]:
        """
        One text for each prompt, without special tokens.

        Args:
            prompts (`list`): Texts or chat messages. In messages control tokens are plain text.
            weights (`str`, *optional*, defaults to `"live"`): `"live"` for the student's as they are, `"teacher"` for
                those that read privileged contexts.
            max_new_tokens (`int`, *optional*, defaults to `256`): Most tokens of a text.
            temperature (`float`, *optional*, defaults to `0.0`): Of the sampling; `0.0` takes the likeliest token.
            chat_template_kwargs (`dict[str, Any]`, *optional*): On top of the student's.
            literal (`bool`, *optional*, defaults to `False`): Whether control tokens are plain text in texts too.

        Raises:
            ValueError: If a prompt of any process leaves no room for a text.
        """
        with raise_on_all_ranks(
            self.trainer.accelerator, "what the model was given to read", self.trainer.state.global_step
        ):
            kwargs, cache = chat_template_kwargs or {}, ImageCache()
            encoded = [self._encoded(prompt, kwargs, cache, literal) for prompt in prompts]
            ids, pixels = [own for own, _ in encoded], [seen.pixels for _, seen in encoded]
            filler, _ = self._encoded("." if not prompts else prompts[0], kwargs, cache, literal)
        how = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0, "temperature": temperature or None}
        self._check_lengths(ids, weights, max_new_tokens)
        rounds = max(gather_object([self._rounds(ids)]))  # the same on every process
        accelerator, step = self.trainer.accelerator, self.trainer.state.global_step
        if self._on_a_server(weights):
            with raise_on_all_ranks(accelerator, "the teacher's server", step):
                written = self._by_a_server(ids, pixels, how)
        else:
            written = self._continuations(ids, pixels, weights, how, rounds, filler)
        # One by one: `batch_decode` takes an empty list for one text
        return [self.trainer._tokenizer.decode(one, skip_special_tokens=True) for one in written]

    def answers(
        self, ids: list[list[int]], weights: str, temperature: float | None = None, pixels: Sequence[Pixels] = ()
    ) -> list[list[int]]:
        """
        Answers to encoded prompts, sampled as the student's are in training. No collective, so only for an engine that
        holds whole weights.

        Args:
            ids (`list[list[int]]`): Token ids of the prompts.
            weights (`str`): As above.
            temperature (`float`, *optional*): As above; `None` for that of training.
            pixels (`Sequence[dict[str, torch.Tensor]]`, *optional*): Pixel tensors of each, for a model that sees.

        Returns:
            `list[list[int]]`: Token ids of each answer, with the token that ends it.
        """
        trainer = self.trainer
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        how = {name: getattr(trainer, name) for name in names} | (trainer.args.generation_kwargs or {})
        how = {"max_new_tokens": trainer.max_completion_length, "do_sample": True, **how}
        if temperature == 0:
            how |= {"do_sample": False, **dict.fromkeys(names[:-1])}
        elif temperature is not None:
            how["temperature"] = temperature
        if self._on_a_server(weights):
            return self._by_a_server(ids, pixels, how)
        return self._continuations(ids, pixels, weights, how, self._rounds(ids), [])

    def _on_a_server(self, weights: str) -> bool:
        return weights == "teacher" and not self.trainer.teacher.is_local

    def _by_a_server(self, ids: list[list[int]], pixels: Sequence[Pixels], how: dict[str, Any]) -> list[list[int]]:
        if any(pixels):
            raise ValueError("A teacher on a server is sent token ids alone, and what it is to read has images.")
        ends = list(self.trainer.eos_token_ids)
        return [self._ended(row) for row in self.trainer.teacher.write(ids, how, ends)]

    def _rounds(self, ids: list[list[int]]) -> int:
        return -(-len(ids) // max(self.trainer.args.per_device_train_batch_size, 1))

    def _continuations(
        self,
        ids: list[list[int]],
        pixels: Sequence[Pixels],
        weights: str,
        how: dict[str, Any],
        rounds: int,
        filler: list[int],
    ) -> list[list[int]]:
        """Token ids that follow each prompt, in so many rounds; `filler` is what a round without prompts reads."""
        ends = {"pad_token_id": self.trainer._tokenizer.pad_token_id, "eos_token_id": self.trainer.eos_token_ids}
        config = GenerationConfig(**ends, **how)
        size = max(self.trainer.args.per_device_train_batch_size, 1)
        written: list[list[int]] = []
        with self._model(weights) as model:
            for start in range(0, rounds * size, size):
                part = ids[start : start + size]
                seen = pixels[start : start + size]
                written += self._generate(model, part or [filler], seen, config)[: len(part)]
        return written

    def _encoded(
        self, prompt: str | Messages, kwargs: dict[str, Any], cache: ImageCache, literal: bool = False
    ) -> tuple[list[int], ImageTensors]:
        own = {**self.trainer.chat_template_kwargs, **kwargs}
        context = prompt if literal or not isinstance(prompt, str) else None
        return self.tokenizer.encode(prompt, None, own, context, cache)

    @contextmanager
    def _model(self, weights: str) -> Iterator[nn.Module]:
        """The unwrapped model to generate with, its weights whole, without dropout."""
        if weights not in ("live", "teacher"):
            raise ValueError(f"`weights` must be 'live' or 'teacher', got {weights!r}.")
        trainer, model = self.trainer, self.trainer.model_wrapped
        whose = self.teacher_forward(model) if weights == "teacher" else nullcontext(model)
        with (
            torch.no_grad(),
            whose as model,
            unwrap_model_for_generation(
                model,
                trainer.accelerator,
                gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
            ) as unwrapped,
            trainer._dist.summon_full_params(model, recurse=False),
            without_dropout(unwrapped),
        ):
            yield unwrapped

    def _generate(
        self, model: nn.Module, ids: list[list[int]], pixels: Sequence[Pixels], config: GenerationConfig
    ) -> list[list[int]]:
        device = self.trainer.accelerator.device
        rows = [torch.tensor(row) for row in ids]
        inputs = pad(rows, padding_value=config.pad_token_id, padding_side="left").to(device)
        mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left").to(device)
        seen = self.trainer.images.model_inputs(pixels, inputs) if self.trainer.images else {}
        output = model.generate(input_ids=inputs, attention_mask=mask, generation_config=config, **seen)
        return [self._ended(row) for row in output[:, inputs.shape[1] :].tolist()]

    def _ended(self, ids: list[int]) -> list[int]:
        """The ids up to the first that ends a text: what follows is padding."""
        end = next((i for i, token in enumerate(ids) if token in self.trainer.eos_token_ids), len(ids))
        return ids[: end + 1]

    def _limit(self, weights: str) -> int | None:
        """Tokens that the weights read."""
        if self._on_a_server(weights):
            return self.trainer.teacher.max_length
        model = self.trainer.teacher.model if weights == "teacher" else self.trainer.model
        return getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def _check_lengths(self, ids: list[list[int]], weights: str, max_new_tokens: int) -> None:
        limit = self._limit(weights)
        longest = max(gather_object([max(map(len, ids), default=0)]))
        if longest and limit is not None and longest + max_new_tokens > limit:
            raise ValueError(
                f"The model reads {limit} tokens, and what it was asked to write about takes {longest}, to which "
                f"`max_new_tokens` adds {max_new_tokens}. Lower that, shorten the examples, or name another `author`."
            )
