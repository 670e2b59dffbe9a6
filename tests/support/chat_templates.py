# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Chat templates that models come with, as TRL ships them or in words of our own, on the tiny tokenizer."""

import re
from pathlib import Path

import trl.chat_template_utils
from transformers import PreTrainedTokenizerFast

import tiny


SHIPPED = {
    "Qwen2.5": "qwen2_5",
    "Qwen3": "qwen3",
    "Qwen3, 2507": "qwen3_instruct_2507",
    "Qwen3.5, thinking": "qwen3_5_think",
    "Llama 3": "llama3",
    "Llama 3.2": "llama3_2",
    "Gemma 2": "gemma",
    "Gemma 3": "gemma3",
    "Phi 3": "phi3",
    "Phi 3.5": "phi3_5",
    "DeepSeek-R1, distilled": "deepseek_r1_distill",
    "DeepSeek-V3": "deepseekv3",
    "GPT-OSS": "gptoss",
    "LFM2": "lfm2",
    "Cohere": "cohere",
}
# What they print, written anew: ChatML with a default system message; and instructions in brackets, whose system text
# goes into the first of them
OWN = {
    "SmolLM2": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a small model.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "Mistral": (
        "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = m.content ~ '\n\n' %}"
        "{% elif m.role == 'user' %}[INST] {{ ns.system }}{{ m.content }} [/INST]{% set ns.system = '' %}"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}
TEMPLATES = [*SHIPPED, *OWN]
_CONTROL = re.compile(r"<\|[^|<>]+\|>|<[｜][^<>]+[｜]>|<(?:start|end)_of_turn>|\[/?INST\]")


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with this template, its control tokens, and a BOS."""
    made = tiny.tokenizer()
    folder = Path(trl.chat_template_utils.__file__).parent / "chat_templates"
    made.chat_template = OWN.get(name) or (folder / f"{SHIPPED[name]}.jinja").read_text(encoding="utf-8")
    made.add_special_tokens({"additional_special_tokens": sorted(set(_CONTROL.findall(made.chat_template)))})
    made.add_special_tokens({"bos_token": "<bos>"})
    return made
