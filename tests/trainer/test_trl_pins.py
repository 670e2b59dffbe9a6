# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What this package relies on in TRL. A failure here names the hook that an upgrade moved, before anything else breaks.
"""

import inspect

import pytest
import trl.trainer.utils
from transformers import Trainer
from transformers.trainer_utils import sort_checkpoints
from trl import GRPOConfig, GRPOTrainer


# Every method of GRPOTrainer that OPSDTrainer overrides or calls, with its parameters
SIGNATURES = {
    "__init__": "self model reward_funcs args train_dataset eval_dataset processing_class reward_processing_classes "
    "callbacks optimizers quantization_config peft_config tools rollout_func environment_factory",
    "_set_signature_columns_if_needed": "self",
    "_tokenize_prompts": "self prompts",
    "_calculate_rewards": "self inputs prompts completions completion_ids_list",
    "_generate": "self prompts",
    "_generate_single_turn": "self prompt_ids images multimodal_fields num_generations has_tool_images",
    "_generate_and_score_completions": "self inputs",
    "_compute_loss": "self model inputs",
    "_get_per_token_logps_and_entropies": "self model input_ids attention_mask logits_to_keep batch_size "
    "compute_entropy compute_aux_loss pixel_values image_grid_thw num_images pixel_attention_mask spatial_shapes "
    "num_tiles image_sizes token_type_ids mm_token_type_ids image_position_ids",
    "_log_completion_extra": "self column values",
    "log": "self logs start_time",
    "create_model_card": "self model_name dataset_name tags",
    "train": "self resume_from_checkpoint trial ignore_keys_for_eval",
    "_get_output_dir": "self trial",
    "_get_train_sampler": "self dataset",
    "_remove_unused_columns": "self dataset description",
    "_run_epoch": "self model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
    "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",
    "_finalize_training": "self trial num_train_samples start_time",
    "_push_from_checkpoint": "self checkpoint_folder",
    "_save": "self output_dir state_dict",
    "_save_checkpoint": "self model trial",
    "_load_from_checkpoint": "self resume_from_checkpoint model",
    "_load_best_model": "self",
    "_load_optimizer_and_scheduler": "self checkpoint",
    "create_scheduler": "self num_training_steps optimizer",
    "evaluation_loop": "self dataloader description prediction_loss_only ignore_keys metric_key_prefix",
}

HELPERS = {
    "add_fused_lm_head": "model temperature cast_lm_head_to_fp32 outputs",
    "maybe_gather_lm_head_ctx": "params",
    "use_adapter": "model adapter_name",
    "pad": "tensors padding_value padding_side pad_to_multiple_of",
    "split_tensor_dict": "tensor_dict num_chunks",
    "create_model_from_path": "model_id architecture kwargs",
    "get_config_model_id": "config",
}

# What the bodies of TRL's methods do that the overrides count on: method, text in its source, why
BODIES = [
    ("_generate_and_score_completions", "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
     "the captured rollouts are the rows of the batch"),
    ("_generate_and_score_completions", "self._pending_extra_logs.clear()",
     "extra table columns are flushed after rewards"),
    ("_generate", "prompt_ids, images, multimodal_fields = self._tokenize_prompts(prompts)",
     "other prompts can be read in their place"),
    ("_generate", "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images",
     "what a rollout is made of, by its place"),
    ("_generate", "output = self.rollout_func(prompts, self)", "`turns` sample the rollouts, set after `__init__`"),
    ("_generate", 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}', "and give these"),
    ("_generate", 'tool_mask = extra_fields.pop("env_mask", None)', "with idle rows masked"),
    ("_generate_and_score_completions", "images = dataset_images  # restore dataset images",
     "rows of turns are trained with the dataset's images"),
    ("_generate_and_score_completions", "per_token_logps_diff = torch.nan_to_num(per_token_logps_diff, nan=0.0)",
     "a text that was not sampled under its prompt has the ratio 1"),
    ("_generate_and_score_completions", "unscorable_mask = torch.isnan(rewards_per_func).all(dim=1)",
     "roles without a reward are left out of a group's baseline"),
    ("_log_completion_extra", "self._pending_extra_logs[column].extend(values)",
     "what reward functions logged of the batch at hand, one value for each local rollout"),
    ("_generate_and_score_completions", "self.environments.append(pool[index])",
     "the environment of each local rollout, in their order"),
    ("_generate_and_score_completions", 'self._batch_environments = [x.get("environment") if',
     "the name of each rollout's environment"),
    ("_generate_and_score_completions", "for column in sorted(set(gather_object(list(self._pending_extra_logs)))):",
     "a column of this trainer's own is flushed with the others"),
    ("_tokenize_prompts", "tools=self._env_tools[name] or None", "the tools of each environment by its name"),
    ("__init__", "self.environments = None", "it is there without environments too"),
    ("__init__", "self._pending_extra_logs = defaultdict(list)", "so are the columns"),
    ("_save", "torch.save(self.args, os.path.join(output_dir, TRAINING_ARGS_NAME))",
     "what is saved of the arguments are those that the trainer has at the time"),
    ("_push_from_checkpoint", "torch.save(self.args, os.path.join(output_dir, TRAINING_ARGS_NAME))",
     "the same where it pushes"),
    ("_push_from_checkpoint", 'ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],',
     "what begins with an underscore is not pushed"),
    ("push_to_hub", 'ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],', "nor at the end"),
    ("_get_per_token_logps_and_entropies", "model(**model_inputs, labels=labels, fused_lm_head=True)",
     "the student's one forward is a plain call, to which a keyword can be added"),
    ("_compute_loss", "advantages = inputs[\"advantages\"]", "advantages are read from the batch, after the forward"),
    ("_compute_loss", "if advantages.dim() == 1:", "advantages of shape (B, T) are taken as they are"),
    ("_prepare_inputs", "shuffle_sequence_dict(generation_batch)", "added keys are shuffled with the rows"),
    ("_prepare_inputs", "if self._step % generate_every == 0 or self._buffered_inputs is None:",
     "a restored buffer is trained on, and a missing one is sampled anew"),
    ("_calculate_rewards", "rewards_per_func = gather(rewards_per_func)\n        return rewards_per_func",
     "a rank whose reward failed can join the others in the last thing they do"),
    ("_calculate_rewards", "for i, (reward_func, reward_processing_class, reward_func_name) in enumerate(",
     "the name of the reward function that failed"),
    ("_calculate_rewards", "async def _invoke_async(index, func, func_name):", "the same for an async one"),
    ("_inner_training_loop", "self._run_epoch(\n                model=model,", "arguments come by name"),
    ("_prepare_for_training", "self._load_optimizer_and_scheduler(resume_from_checkpoint)",
     "states are restored for every engine"),
    ("_maybe_log_save_evaluate", "/ (self.state.global_step - self._globalstep_last_logged)",
     "the logged loss is the mean since the last log"),
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
    source = inspect.getsource(getattr(GRPOTrainer, name))
    assert text in source, f"GRPOTrainer.{name} has changed: {why}"


def test_the_forward_comes_before_the_advantages():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    forward, advantages = source.index("_get_per_token_logps_and_entropies"), source.index('inputs["advantages"]')
    assert forward < advantages, "sampled_token mode sets the advantages in the forward, before TRL reads them"


def test_the_scheduler_is_made_between_wrapping_and_loading():
    source = inspect.getsource(GRPOTrainer._prepare_for_training)
    places = [source.index(text) for text in ("accelerator.prepare(", "self.create_scheduler(", "load_checkpoint(")]
    assert places == sorted(places), "a base teacher takes the start weights there, sharded and before a checkpoint"


@pytest.mark.parametrize("key", BATCH_KEYS)
def test_batch_key(key):
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert f'"{key}": ' in source, f"the batch of GRPOTrainer has no key {key} any more"


def test_the_fused_head_runs_without_triton():
    assert trl.trainer.utils._ChunkedLogProbFunction is not None, "as in trl 1.15, which runs on GPUs alone"


def test_rotation_comes_with_the_limit_of_the_arguments():
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "save_total_limit=self.args.save_total_limit" in source, "rotation is switched off by the option"
    parameters = list(inspect.signature(sort_checkpoints).parameters)
    assert parameters[:3] == ["output_dir", "checkpoint_prefix", "use_mtime"]


def test_the_loss_is_set_to_zero_before_the_epochs():
    source = inspect.getsource(Trainer._inner_training_loop)
    names = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")
    for name in names:
        assert 0 < source.index(f"self.{name} = ") < source.index("self._run_epoch("), name


def test_the_sampler_draws_one_permutation_an_epoch():
    source = inspect.getsource(trl.trainer.utils.RepeatSampler.__iter__)
    assert source.count("generator") == 2 and "torch.randperm(self.num_samples, generator=self.generator)" in source


def test_losses_are_not_scaled_for_accumulation_by_transformers():
    assert GRPOTrainer.loss_is_scaled_for_ga is True, "every term divides by its own normaliser"


def test_fused_output_fields():
    names = trl.trainer.utils.FusedCausalLMOutput.__dataclass_fields__
    assert {"log_probs", "entropy", "aux_loss"} <= names.keys()


def test_grpo_config_refuses_one_generation():
    with pytest.raises(ValueError, match="at least 2 generations"):
        GRPOConfig("out", num_generations=1, bf16=False)
