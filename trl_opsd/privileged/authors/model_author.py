# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Author that is another transformers model."""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import patch_environment
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from trl.trainer.utils import pad

from trl_opsd.engines.backend import shards_loaded_models
from trl_opsd.options import Count, check_fields
from trl_opsd.prompts.tokenizer import PromptTokenizer
from trl_opsd.rollouts.rollout import Messages


@dataclass
class ModelAuthor:
    """
    Frozen causal language model with its own tokenizer and chat template. Every process that has something to write
    loads a copy of its own, at the first prompt, onto the device that it trains on; it stays there.

    Args:
        name (`str`): Folder, or id on the Hub.
        batch_size (`int`, *optional*, defaults to `8`): Prompts of one generation.
        init_kwargs (`dict[str, Any]`, *optional*): Of `from_pretrained`, such as `{"dtype": "bfloat16"}`.
        chat_template_kwargs (`dict[str, Any]`, *optional*): Of its chat template, such as `{"enable_thinking": False}`.

    Raises:
        ValueError: If an option is out of range; when it writes, if it has no chat template for messages, or a prompt
            is too long for it.
    """

    name: str
    batch_size: Count = 8
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        self.model: PreTrainedModel | None = None

    def setup(self) -> None:
        """Refuse an engine that would take the model apart."""
        if shards_loaded_models():
            raise ValueError(
                "DeepSpeed ZeRO-3 shards every model that is loaded, and an `author.model` must be whole on each "
                "process. Serve it and use `author.endpoint`, or train with ZeRO-2."
            )

    def write(self, prompts: list[str | Messages], *, max_new_tokens: int, temperature: float) -> list[str]:
        """
        One text for each prompt, without special tokens.

        Args:
            prompts (`list`): Texts or chat messages, in which control tokens are plain text.
            max_new_tokens (`int`): Most tokens of a text.
            temperature (`float`): Of the sampling; `0.0` takes the likeliest token.
        """
        if prompts and self.model is None:
            self._load()
        ids = [self._ids(prompt, max_new_tokens) for prompt in prompts]
        # A config of ours alone: the model's own may ask for sampling
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            pad_token_id=self.tokenizer.pad_token_id if prompts else None,
            eos_token_id=self.model.generation_config.eos_token_id if prompts else None,
        )
        parts = [ids[start : start + self.batch_size] for start in range(0, len(ids), self.batch_size)]
        return [text for part in parts for text in self._texts(part, config)]

    def _load(self) -> None:
        device = PartialState().device
        # FSDP would read the weights on the first process only; and what is drawn for new weights is not the run's
        with (
            patch_environment(fsdp_cpu_ram_efficient_loading="false"),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            self.model = AutoModelForCausalLM.from_pretrained(self.name, **self.init_kwargs)
        self.model = self.model.requires_grad_(False).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self.init_kwargs.get("revision"))
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.prompts = PromptTokenizer(self.tokenizer, self.tokenizer, None)

    def _ids(self, prompt: str | Messages, max_new_tokens: int) -> list[int]:
        if not isinstance(prompt, str) and self.tokenizer.chat_template is None:
            raise ValueError(f"`author.model`: {self.name} has no chat template, and the prompts are chat messages.")
        ids, _ = self.prompts.encode(prompt, None, self.chat_template_kwargs, context=prompt)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"`author.model`: {self.name} reads {limit} tokens, and a prompt of {len(ids)} with `max_new_tokens` "
                f"{max_new_tokens} has more. Lower that, shorten the `examples`, or take another model."
            )
        return ids

    @torch.no_grad()
    def _texts(self, ids: list[list[int]], config: GenerationConfig) -> list[str]:
        rows = [torch.tensor(row) for row in ids]
        inputs = pad(rows, padding_value=config.pad_token_id, padding_side="left").to(self.model.device)
        mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left").to(self.model.device)
        output = self.model.generate(input_ids=inputs, attention_mask=mask, generation_config=config)
        written = output[:, inputs.shape[1] :].tolist()
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in written]
