# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Validation of an [`OPSDConfig`]: values and combinations of options.

The options of the loss itself are checked by [`~trl_opsd.losses.DivergenceSpec`], which the config builds.
"""

from dataclasses import fields
from typing import Any

from transformers.trainer_utils import HubStrategy
from trl import GRPOConfig

from trl_opsd.conflicts import COLUMN_OPTIONS, check_column_options, check_reward, check_template
from trl_opsd.losses import DivergenceSpec
from trl_opsd.methods.registry import method_of, options_of
from trl_opsd.monitoring.leaks import Phrases
from trl_opsd.options import check_fields, check_option
from trl_opsd.privileged.named import build_source
from trl_opsd.rollouts.view import PLACES_WITHOUT_POSITION
from trl_opsd.teacher.kinds import TEACHER_KINDS, dependent_options
from trl_opsd.turns.options import turn_options


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
    ("distillation_view_divergences", None, "distillation_mode", ("full_logits", "topk_logits")),
    *((option, default, "teacher_model_kind", kinds) for option, default, kinds in dependent_options()),
)

# `loss_type`s of GRPO whose gradient passes through the importance ratio alone; the others weigh log-probabilities
RATIO_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo")

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


def check_turns(config: Any) -> None:
    """Refuse turns that can't be dealt, and a method without the roles that it needs."""
    options = turn_options(config.turns)
    roles = () if config.method is None else method_of(config.method).roles
    missing = [role for role in roles if options is None or role not in options.slots]
    if missing:
        raise ValueError(
            f"The method {config.method!r} needs the role `{missing[0]}`: set `turns` with it among the `slots`, got "
            f"{None if options is None else options.slots}."
        )
    if options is None:
        return
    if config.distillation_weight == 0:
        raise ValueError("`turns` are dealt by a run that distils, and `distillation_weight` is 0: leave `turns` out.")
    if options.weights == "teacher" and config.teacher_model_kind == "live":
        raise ValueError(
            "`turns`: `weights: teacher` with `teacher_model_kind='live'` are the live ones: leave it out."
        )
    check_turn_sizes(config)


def check_turn_sizes(config: Any) -> None:
    """Refuse a number of slots by which rollouts can't be dealt; again once `num_generations` is resolved."""
    size = len(config.turns["slots"])
    rows = config.per_device_train_batch_size * config.steps_per_generation
    for name, value in (("num_generations", config.num_generations), ("the rollouts of a process", rows)):
        if value is not None and value % size:
            raise ValueError(
                f"`turns` deal rollouts in units of {size} `slots`, which must divide `num_generations` and the "
                "rollouts of a process in a generation batch (`per_device_train_batch_size` * "
                f"`steps_per_generation`), and {name} is {value}. Set it to a multiple of {size}."
            )


def check_policy_weight(config: Any, policy_weight: float) -> None:
    """
    Check the options that depend on the resolved weight of the policy term.

    Args:
        config ([`OPSDConfig`]): All options.
        policy_weight (`float`):
            `policy_weight`, or what `None` stands for once it is known whether there is a reward.
    """
    if config.method is not None:
        check_reward(config.method, method_of(config.method).needs_reward, policy_weight)
        if method_of(config.method).credit and policy_weight == 0 and config.distillation_mode != "sampled_token":
            raise ValueError(
                f"The method {config.method!r} gives credit to rollouts, which the policy term or "
                "`distillation_mode='sampled_token'` trains: leave `policy_weight` above 0."
            )
    if policy_weight == 0 and config.distillation_weight == 0:
        raise ValueError(
            "`policy_weight` and `distillation_weight` are both 0 (`policy_weight=None` counts as 0 without reward "
            "functions), so there is nothing to train. Pass `reward_funcs` or set one of the two weights."
        )
    if policy_weight != 0 and config.num_generations is not None and config.num_generations < 2:
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
    """Refuse an impossible value of an option by itself: of a kind or a range that its annotation excludes."""
    own = {item.name for item in fields(config)} - {item.name for item in fields(GRPOConfig)}
    elsewhere = {f"distillation_{item.name}" for item in fields(DivergenceSpec)} | {"privileged_source"}
    check_fields(config, own - elsewhere)
    for name in own & set(config._VALID_DICT_FIELDS) - {"privileged_source"}:  # text is JSON, read by transformers
        check_option(name, getattr(config, name), dict | None)
    if config.leak_phrases is not None:
        try:
            Phrases(config.leak_phrases)
        except ValueError as error:
            raise ValueError(f"`leak_phrases`: {error} Leave it out.") from None
    check_template("privileged_template", config.privileged_template)


def check_combinations(config: Any) -> None:
    """Refuse options that do nothing, or not what they say, beside others."""
    for name, default, owner, values in DEPENDENT:
        if getattr(config, name) != default and getattr(config, owner) not in values:
            expected = " or ".join(f"`{owner}={value!r}`" for value in values)
            raise ValueError(
                f"`{name}={getattr(config, name)!r}` is only read with {expected}, but `{owner}` is "
                f"{getattr(config, owner)!r}. Set `{owner}` to that, or leave `{name}` out."
            )
    skipped, most = config.num_loss_tokens_to_skip, config.max_completion_length
    if config.distillation_weight != 0 and most is not None and skipped >= most:
        raise ValueError(
            f"`num_loss_tokens_to_skip={skipped}` leaves no token to distil: completions have at most "
            f"`max_completion_length={most}` tokens. Lower the former, or raise the latter."
        )
    for name in ("eval_teacher_prompts", "log_tokens"):
        if config.distillation_weight == 0 and getattr(config, name):
            raise ValueError(
                f"`{name}={getattr(config, name)}` lets the teacher score, which a run with `distillation_weight=0` "
                "does not have. Leave it out."
            )
    if config.log_tokens_probe and not config.log_tokens:
        raise ValueError(
            f"`log_tokens_probe={config.log_tokens_probe}` scores the first `log_tokens` rollouts anew, and that is 0. "
            "Set `log_tokens` to some, such as 4."
        )
    check_divergence(config)
    check_credit(config)
    check_teacher(config)
    check_hub(config)
    check_source(config)
    check_turns(config)


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


def check_credit(config: Any) -> None:
    """Refuse advantages of single tokens under one ratio for a completion, which gives all its tokens their mean."""
    sampled = config.distillation_mode == "sampled_token" and config.distillation_weight != 0
    if sampled and config.importance_sampling_level == "sequence" and config.loss_type in RATIO_LOSS_TYPES:
        raise ValueError(
            "`distillation_mode='sampled_token'` gives each token an advantage of its own, and the one ratio of a "
            f"completion under `importance_sampling_level='sequence'` with `loss_type={config.loss_type!r}` would "
            "train every token by their mean. Set `importance_sampling_level='token'`, or another `distillation_mode`."
        )


def check_teacher(config: Any) -> None:
    """Refuse a kind of teacher without what makes it one."""
    synced = config.method is not None and method_of(config.method).should_sync_teacher is not None
    kind = TEACHER_KINDS[config.teacher_model_kind]
    kind.check(config, synced_by_method=synced)
    if not kind.is_local:
        check_remote_teacher(config)


def check_remote_teacher(config: Any) -> None:
    """Refuse what needs more of a teacher on a server than the scores that it gives."""
    kind = f"`teacher_model_kind={config.teacher_model_kind!r}`"
    method = None if config.method is None else method_of(config.method)
    parts = [name for name in ("target", "auxiliary_loss", "hidden_state_loss") if getattr(method, name, None)]
    if parts or (method is not None and method.reads_teacher_entropy):
        what = "entropy" if not parts else f"whole distribution or hidden states ({', '.join(parts)})"
        raise ValueError(
            f"The method {config.method!r} reads the teacher's {what}, and with {kind} only the log-probabilities of "
            "single tokens are known. Use another `teacher_model_kind`, such as 'checkpoint'."
        )


def check_hub(config: Any) -> None:
    """Refuse to push privileged contexts to a public repository."""
    if config.distillation_weight == 0:
        return
    whole = config.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
    if config.push_to_hub and whole and not config.hub_private_repo:
        raise ValueError(
            f"`hub_strategy={config.hub_strategy.value!r}` pushes whole checkpoints, in which `_run_state_*.pt` and "
            "`_parts_*.json` hold what the teacher reads. Use `hub_strategy='every_save'`, or set "
            "`hub_private_repo=True` if the repository is a private one."
        )
    spaces = "trackio" in (config.report_to or ()) and (config.trackio_space_id or config.trackio_bucket_id)
    targets = {
        "push_to_hub": config.push_to_hub,
        "log_completions_hub_repo": config.log_completions_hub_repo,
        "report_to": spaces and "trackio, to a Space",
    }
    for name, value in targets.items():
        if value:
            check_contexts_stay(config, f"`{name}={value!r}`", config.hub_private_repo)


def check_contexts_stay(config: Any, what: str, private: bool | None) -> None:
    """
    Refuse to push the table of completions to where others read, if it shows privileged contexts.

    Args:
        config ([`~trl.GRPOConfig`]): Options.
        what (`str`): What pushes it, for the error.
        private (`bool`, *optional*): Whether the repository is private.

    Raises:
        ValueError: If it does, and the repository is not.
    """
    if getattr(config, "log_privileged_context", False) and config.log_completions and not private:
        raise ValueError(
            f"{what} pushes the table of completions, in which `log_privileged_context=True` shows what the teacher "
            "reads. Leave `log_privileged_context` or `log_completions` out, or set `hub_private_repo=True` if the "
            "repository is a private one."
        )


def check_source(config: Any) -> None:
    """Refuse a source that cannot be built, or options of the column beside it."""
    if config.privileged_source is None:
        return
    build_source(config.privileged_source)
    of_method = {} if config.method is None else method_of(config.method).defaults
    own = config.privileged_source == of_method.get("privileged_source")
    values = {name: getattr(config, name) for name, _ in COLUMN_OPTIONS}
    check_column_options(values, config.method if own else None)
