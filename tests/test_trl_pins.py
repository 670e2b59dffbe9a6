# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What this package relies on in TRL. A failure here names the hook that an upgrade moved, before anything else breaks.
"""

import inspect

import pytest
import trl.trainer.utils
from trl import GRPOConfig, GRPOTrainer


# Every method of GRPOTrainer that OPSDTrainer overrides or calls, with its parameters
SIGNATURES = {
    "__init__": "self model reward_funcs args train_dataset eval_dataset processing_class reward_processing_classes "
    "callbacks optimizers quantization_config peft_config tools rollout_func environment_factory",
    "_set_signature_columns_if_needed": "self",
    "_tokenize_prompts": "self prompts",
    "_calculate_rewards": "self inputs prompts completions completion_ids_list",
    "_generate_single_turn": "self prompt_ids images multimodal_fields num_generations has_tool_images",
    "_generate_and_score_completions": "self inputs",
    "_compute_loss": "self model inputs",
    "_get_per_token_logps_and_entropies": "self model input_ids attention_mask logits_to_keep batch_size "
    "compute_entropy compute_aux_loss pixel_values image_grid_thw num_images pixel_attention_mask spatial_shapes "
    "num_tiles image_sizes token_type_ids mm_token_type_ids image_position_ids",
    "_log_completion_extra": "self column values",
    "log": "self logs start_time",
    "create_model_card": "self model_name dataset_name tags",
    "_save_checkpoint": "self model trial",
    "_load_optimizer_and_scheduler": "self checkpoint",
}

HELPERS = {
    "add_fused_lm_head": "model temperature cast_lm_head_to_fp32 outputs",
    "maybe_gather_lm_head_ctx": "params",
    "use_adapter": "model adapter_name",
    "pad": "tensors padding_value padding_side pad_to_multiple_of",
    "create_model_from_path": "model_id architecture kwargs",
    "get_config_model_id": "config",
}

# What the bodies of TRL's methods do that the overrides count on: method, text in its source, why
BODIES = [
    ("_generate_and_score_completions", "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
     "the captured rollouts are the rows of the batch"),
    ("_generate_and_score_completions", "self._pending_extra_logs.clear()",
     "extra table columns are flushed after rewards"),
    ("_get_per_token_logps_and_entropies", "model(**model_inputs, labels=labels, fused_lm_head=True)",
     "the student's one forward is a plain call, to which a keyword can be added"),
    ("_compute_loss", "advantages = inputs[\"advantages\"]", "advantages are read from the batch, after the forward"),
    ("_compute_loss", "if advantages.dim() == 1:", "advantages of shape (B, T) are taken as they are"),
    ("_prepare_inputs", "shuffle_sequence_dict(generation_batch)", "added keys are shuffled with the rows"),
    ("_generate_and_score_completions", '"importance_sampling_ratio"] = vllm_importance_sampling_ratio',
     "the ratio of trainer to vLLM, which the distillation term applies too"),
    ("_compute_loss", 'per_token_loss * inputs["importance_sampling_ratio"]',
     "the policy loss, and with it sampled_token mode, applies that ratio itself"),
    ("_tokenize_prompts", "**self.chat_template_kwargs", "template arguments are read at each call"),
]  # fmt: skip

BATCH_KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")


@pytest.mark.parametrize("name", SIGNATURES)
def test_method(name):
    parameters = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    assert parameters == SIGNATURES[name].split(), f"trl changed the parameters of GRPOTrainer.{name}"


@pytest.mark.parametrize("name", HELPERS)
def test_helper(name):
    parameters = list(inspect.signature(getattr(trl.trainer.utils, name)).parameters)
    assert parameters == HELPERS[name].split(), f"trl changed the parameters of trl.trainer.utils.{name}"


@pytest.mark.parametrize(("name", "text", "why"), BODIES, ids=lambda value: value[:40])
def test_body(name, text, why):
    assert text in inspect.getsource(getattr(GRPOTrainer, name)), f"GRPOTrainer.{name} has changed: {why}"


def test_the_forward_comes_before_the_advantages():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    forward, advantages = source.index("_get_per_token_logps_and_entropies"), source.index('inputs["advantages"]')
    assert forward < advantages, "sampled_token mode sets the advantages in the forward, before TRL reads them"


@pytest.mark.parametrize("key", BATCH_KEYS)
def test_batch_key(key):
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert f'"{key}": ' in source, f"the batch of GRPOTrainer has no key {key} any more"


def test_losses_are_not_scaled_for_accumulation_by_transformers():
    assert GRPOTrainer.loss_is_scaled_for_ga is True, "every term divides by its own normaliser"


def test_fused_output_fields():
    names = trl.trainer.utils.FusedCausalLMOutput.__dataclass_fields__
    assert {"log_probs", "entropy", "aux_loss"} <= names.keys()


def test_grpo_config_refuses_one_generation():
    with pytest.raises(ValueError, match="at least 2 generations"):
        GRPOConfig("out", num_generations=1, bf16=False)
