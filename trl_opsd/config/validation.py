# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Validation of an [`OPSDConfig`]: values and combinations of options.

The options of the loss itself are checked by [`~trl_opsd.losses.DivergenceSpec`], which the config builds.
"""

from typing import Any

from transformers.trainer_utils import HubStrategy

from trl_opsd.losses.divergence_spec import check_count, check_number
from trl_opsd.methods.registry import method_of, options_of
from trl_opsd.monitoring.leaks import Phrases
from trl_opsd.privileged.named import build_source
from trl_opsd.rollouts.view import PLACEHOLDER, PLACES_WITHOUT_POSITION
from trl_opsd.teacher.kinds import TEACHER_KINDS, dependent_options


CHOICES = {
    "distillation_mode": ("full_logits", "topk_logits", "sampled_token"),
    "distillation_reduction": ("token_mean", "sequence_mean", "joint_token_mean"),
    "teacher_model_kind": tuple(TEACHER_KINDS),
    "teacher_overlong": ("error", "drop_view", "shorten"),
    "teacher_generation_prompt": ("student", "own"),
    "privileged_place": PLACES_WITHOUT_POSITION,
    "privileged_on_error": ("error", "skip"),
}
# Options that only one other setting reads: (option, default, option that must have one of the values, values).
# Setting them elsewhere would silently do nothing, so it is refused.
DEPENDENT = (
    ("distillation_topk", None, "distillation_mode", ("topk_logits",)),
    ("distillation_topk_source", "student", "distillation_mode", ("topk_logits",)),
    ("distillation_add_tail", False, "distillation_mode", ("topk_logits",)),
    ("distillation_stop_gradient", False, "distillation_mode", ("topk_logits",)),
    ("distillation_target", None, "distillation_mode", ("full_logits", "topk_logits")),
    ("distillation_entry_clip", None, "distillation_mode", ("full_logits", "topk_logits")),
    ("distillation_token_clip", None, "distillation_mode", ("full_logits", "topk_logits")),
    ("distillation_temperature", None, "distillation_mode", ("full_logits", "topk_logits")),
    ("distillation_is_clip", None, "distillation_mode", ("full_logits", "topk_logits")),
    ("distillation_reduction", "token_mean", "distillation_mode", ("full_logits", "topk_logits")),
    *((option, default, "teacher_model_kind", kinds) for option, default, kinds in dependent_options()),
)

COLUMN_OPTIONS = (
    ("privileged_column", "privileged_context"),
    ("privileged_template", PLACEHOLDER),
    ("privileged_place", "after_user"),
)


# Functions of a method that change a divergence over the vocabulary
VOCABULARY_PARTS = ("target", "token_weight", "auxiliary_loss", "hidden_state_loss")


def check_method(config: Any) -> None:
    """Refuse a method beside options that it cannot work with."""
    if config.method is None:
        if config.method_options:
            raise ValueError("`method_options` belong to a `method`: name one, or leave them out.")
        return
    method = method_of(config.method)
    options_of(method, config.method, config.method_options)
    sampled = config.distillation_mode == "sampled_token"
    if method.advantages is not None and not sampled:
        raise ValueError(
            f"The method {config.method!r} makes advantages of the tokens, for which `distillation_mode` must be "
            f"'sampled_token', not {config.distillation_mode!r}."
        )
    parts = [name for name in VOCABULARY_PARTS if getattr(method, name) is not None]
    if parts and sampled:
        raise ValueError(
            f"The method {config.method!r} changes a divergence over the vocabulary ({', '.join(parts)}), for which "
            "`distillation_mode` must be 'full_logits' or 'topk_logits', not 'sampled_token'."
        )
    if method.target is not None and config.distillation_target is not None:
        raise ValueError(f"The method {config.method!r} has its own target: leave `distillation_target` out.")


def check_policy_weight(config: Any, policy_weight: float) -> None:
    """
    Check the options that depend on the resolved weight of the policy term.

    Args:
        config ([`OPSDConfig`]): All options.
        policy_weight (`float`):
            `policy_weight`, or what `None` stands for once it is known whether there is a reward.
    """
    if policy_weight == 0 and config.method is not None and method_of(config.method).needs_reward:
        raise ValueError(
            f"The method {config.method!r} learns from rewards: pass `reward_funcs`, and leave `policy_weight` above 0."
        )
    if policy_weight == 0 and config.distillation_weight == 0:
        raise ValueError(
            "`policy_weight` and `distillation_weight` are both 0 (`policy_weight=None` counts as 0 without reward "
            "functions), so there is nothing to train. Pass `reward_funcs` or set one of the two weights."
        )
    if policy_weight != 0 and config.num_generations < 2:
        raise ValueError(
            f"`num_generations={config.num_generations}` can't be combined with the policy term: GRPO compares the "
            "completions of one prompt. Set `num_generations` to at least 2, or `policy_weight=0.0` for pure "
            "self-distillation."
        )
    if policy_weight == 0 and config.distillation_mode != "sampled_token":
        for name in ("beta", "entropy_coef"):
            if getattr(config, name) != 0.0:
                raise ValueError(
                    f"`{name}={getattr(config, name)}` belongs to the policy term, which is off (`policy_weight` is "
                    f"0), so it would do nothing. Set `{name}=0.0`, or `policy_weight` above 0 with a reward."
                )


def check_values(config: Any) -> None:
    """Refuse an impossible value of an option by itself."""
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(config, name)!r}.")
    for name in ("policy_weight", "distillation_weight", "num_loss_tokens_to_skip", "leak_ngram_size"):
        check_number(name, getattr(config, name), above_zero=False)
    for name in ("distillation_chunk_size", "teacher_sync_steps", "teacher_max_length", "privileged_timeout"):
        check_number(name, getattr(config, name), above_zero=True)
    counts = ("distillation_chunk_size", "teacher_sync_steps", "teacher_max_length")
    for name in (*counts, "num_loss_tokens_to_skip", "leak_ngram_size"):
        check_count(name, getattr(config, name))
    if not 0.0 <= config.teacher_update_rate <= 1.0:
        raise ValueError(f"`teacher_update_rate` must lie between 0 and 1, got {config.teacher_update_rate!r}.")
    if config.leak_phrases is not None:
        if not isinstance(config.leak_phrases, list):
            raise ValueError(f"`leak_phrases` must be a list of texts, got {config.leak_phrases!r}.")
        try:
            Phrases(config.leak_phrases)
        except ValueError as error:
            raise ValueError(f"`leak_phrases`: {error} Leave it out.") from None
    if PLACEHOLDER not in config.privileged_template:
        raise ValueError(
            f"`privileged_template` must contain the placeholder {PLACEHOLDER}, or the teacher would never see the "
            f"privileged context; got {config.privileged_template!r}."
        )


def check_combinations(config: Any) -> None:
    """Refuse options that do nothing, or not what they say, beside others."""
    for name, default, owner, values in DEPENDENT:
        if getattr(config, name) != default and getattr(config, owner) not in values:
            expected = " or ".join(f"`{owner}={value!r}`" for value in values)
            raise ValueError(
                f"`{name}={getattr(config, name)!r}` is only read with {expected}, but `{owner}` is "
                f"{getattr(config, owner)!r}. Set `{owner}` to that, or leave `{name}` out."
            )
    check_divergence(config)
    check_teacher(config)
    check_hub(config)
    check_source(config)


def check_divergence(config: Any) -> None:
    """Build the spec of the loss, which checks its options, and refuse what does not fit the mode."""
    spec = config.divergence_spec
    if config.distillation_mode == "topk_logits" and config.distillation_topk is None:
        raise ValueError("`distillation_mode='topk_logits'` needs `distillation_topk`, the size of the set.")
    if config.distillation_mode == "sampled_token" and spec.divergence != "reverse_kl":
        raise ValueError(
            "`distillation_mode='sampled_token'` estimates the gradient of the reverse KL and of no other divergence, "
            "so it needs `distillation_alpha=1.0` or `distillation_divergence='reverse_kl'` (got "
            f"{config.distillation_alpha} and {config.distillation_divergence!r})."
        )
    temperature = config.distillation_temperature
    if config.distillation_is_clip is not None and temperature not in (None, config.temperature):
        raise ValueError(
            f"`distillation_is_clip` compares probabilities at the sampling `temperature` ({config.temperature}), so "
            f"it can't be combined with `distillation_temperature={temperature}`. Leave one of them out."
        )


def check_teacher(config: Any) -> None:
    """Refuse a kind of teacher without what makes it one."""
    synced = config.method is not None and method_of(config.method).should_sync_teacher is not None
    TEACHER_KINDS[config.teacher_model_kind].check(config, synced_by_method=synced)


def check_hub(config: Any) -> None:
    """Refuse to push privileged contexts to a public repository."""
    whole = config.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
    if config.push_to_hub and whole and not config.hub_private_repo and config.distillation_weight != 0:
        raise ValueError(
            f"`hub_strategy={config.hub_strategy.value!r}` pushes whole checkpoints, in which `_run_state_*.pt` and "
            "`_parts_*.json` hold what the teacher reads. Use `hub_strategy='every_save'`, or set "
            "`hub_private_repo=True` if the repository is a private one."
        )


def check_source(config: Any) -> None:
    """Refuse a source that cannot be built, or options of the column beside it."""
    if config.privileged_source is None:
        return
    build_source(config.privileged_source)
    for name, default in COLUMN_OPTIONS:
        if getattr(config, name) != default:
            raise ValueError(
                f"`{name}` belongs to the dataset column and `privileged_source` replaces it. Put the option into "
                "the source, without `privileged_`, or leave it out."
            )
