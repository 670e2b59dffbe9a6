# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`OPSDConfig`: every option of on-policy self-distillation, checked when the config is built."""

import copy
import re
from dataclasses import dataclass, field, fields
from typing import Any

from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available
from trl import GRPOConfig

from trl_opsd.config.method_defaults import takes_method_defaults
from trl_opsd.config.validation import (
    CHOICES,
    check_combinations,
    check_method,
    check_policy_weight,
    check_values,
)
from trl_opsd.conflicts import NO_BF16
from trl_opsd.losses import DIVERGENCES, TARGETS, DivergenceSpec
from trl_opsd.losses.divergence_spec import ENTRY_CLIP_MODES, TOPK_SOURCES
from trl_opsd.methods.registry import method_of
from trl_opsd.options import Count, Index, NonNegative, Positive, Share
from trl_opsd.privileged.named import outline
from trl_opsd.rollouts.view import PLACEHOLDER


_GROUP = next(item.default for item in fields(GRPOConfig) if item.name == "num_generations")


class _SingleGeneration(int):
    """The number 1 while `GRPOConfig.__post_init__` runs: its `num_generations < 2` check guards group-relative
    advantages, which a run without the policy term does not compute."""

    def __lt__(self, other: int) -> bool:
        return False


# Options that may hold documents for a chat template, or a token for the Hub
_OF_THE_TEACHER = ("teacher_chat_template_kwargs", "teacher_model_init_kwargs")


def _without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else "[...]"


def _without_turn_texts(turns: dict[str, Any]) -> dict[str, Any]:
    """Options of `turns` with the name of their source alone, and without their texts."""
    hidden: dict[str, Any] = {}
    if turns.get("source") is not None:
        hidden["source"] = outline(turns["source"])
    if "feedback_template" in turns:
        hidden["feedback_template"] = "[...]"
    return {**turns, **hidden}


# docstyle-ignore
@takes_method_defaults
@dataclass
class OPSDConfig(GRPOConfig):
    r"""
    Configuration class for the [`OPSDTrainer`].

    It adds the options of the distillation term to [`~trl.GRPOConfig`]; everything else is inherited and means what it
    means there (`beta` stays the weight of the reference KL). Two defaults differ: `bf16` is true where the device
    computes in it, and `num_generations` is that of TRL with a reward alone.

    Parameters:
        num_generations (`int`, *optional*):
            Completions of a prompt. `None` means 8 with a reward, as in TRL, and 1 without: pure distillation learns
            from each completion by itself. It may be 1 when the policy term is off.

        > Parameters that control the method

        method (`str`, *optional*):
            A published method: its values take the place of the defaults below, and of those of [`~trl.GRPOConfig`],
            where none is given, and its functions become part of the loss. `trl-opsd methods` lists them,
            docs/methods.md describes them. Or the dotted path of a [`~trl_opsd.methods.Method`] of your own. Parse
            recipes with [`OPSDParser`]: any other parser gives every option, and the method then changes none.
        method_options (`dict[str, Any]`, *optional*):
            The method's own options, where they differ from its defaults.

        > Parameters that control the loss

        policy_weight (`float`, *optional*):
            Weight of TRL's GRPO loss. `None` means `1.0` when a reward is given (reward functions or an environment
            reward) and `0.0` otherwise. `0.0` skips its work. The balancing loss of experts (`router_aux_loss_coef`) is
            trained once, whatever the weights.
        distillation_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the distillation loss. `0.0` skips its work: the trainer is then [`~trl.GRPOTrainer`].
        distillation_divergence (`str`, *optional*):
            Divergence between the teacher q and the student p: `"forward_kl"` KL(q||p), `"reverse_kl"` KL(p||q),
            `"jsd"` the generalised Jensen-Shannon divergence, `"skew_kl"` KL(q||m) with m = (1 - alpha) p + alpha q.
            The last two need their parameter alpha in `distillation_alpha`. `None` means that `distillation_alpha`
            alone names the divergence.
        distillation_alpha (`float`, *optional*, defaults to `0.0`):
            Without `distillation_divergence`: `0.0` forward KL(q||p), `1.0` reverse KL(p||q), between them the
            generalised Jensen-Shannon divergence. Its end points are not continuous: near `0.0` it behaves like `alpha
            * KL(q||p)`, near `1.0` like `(1 - alpha) * KL(p||q)`. With it: the parameter of a divergence that has one.
        distillation_mode (`str`, *optional*, defaults to `"full_logits"`):
            `"full_logits"` compares the whole next-token distributions, `"topk_logits"` a top-k set of tokens, and
            `"sampled_token"` adds the gap log q(y_t) - log p(y_t) to the advantages of shape `(B, T)`, so that every
            `loss_type`, clip and importance weight of GRPO applies to it (its expected gradient is that of the reverse
            KL, which must be the divergence). One ratio for a whole completion (`importance_sampling_level="sequence"`)
            would give all its tokens the same credit, and is refused.
        distillation_topk (`int`, *optional*):
            Size k of the top-k set. Required by, and only for, `distillation_mode="topk_logits"`.
        distillation_topk_source (`str`, *optional*, defaults to `"student"`):
            Whose k most likely tokens form the set: `"student"`, `"teacher"`, or `"union"` for those of either.
        distillation_add_tail (`bool`, *optional*, defaults to `False`):
            Whether to add the rest of the vocabulary as one more class. Otherwise both sides are renormalised over the
            set.
        distillation_stop_gradient (`bool`, *optional*, defaults to `False`):
            Whether to leave both sides of the top-k set as they are and hold log(p/q) constant: sum over the set of p
            sg(log(p/q)), for the reverse KL (Many Faces of On-Policy Distillation, 2605.11182; see the method
            `stop_grad_topk`).
        distillation_target (`str`, *optional*):
            One target made of the views of a rollout, by their weights: their `"arithmetic"` or `"geometric"` mean.
            `None` means the mean of the divergences to each view.
        distillation_entry_clip (`float`, *optional*):
            Upper bound on the divergence of each vocabulary entry, before the sum over the vocabulary. Read the
            warnings in docs/defaults.md first.
        distillation_entry_clip_mode (`str`, *optional*, defaults to `"signed"`):
            `"signed"` clips q log(q/p) as the OPSD paper does; the clipped sum can be negative and can invert the
            objective. `"non_negative"` clips q log(q/p) - q + p, which sums to the same divergence and can't invert.
        distillation_token_clip (`float`, *optional*):
            Upper bound on the divergence of each token, after the sum over the vocabulary. Tokens beyond it have no
            gradient.
        distillation_is_clip (`float`, *optional*):
            Weigh each token by min(p/p_old, clip), with p_old the policy that sampled it. `None` applies no such
            weight. With vLLM, `vllm_importance_sampling_correction` multiplies the distillation loss by TRL's bounded
            ratio of trainer to vLLM in any case; p_old is then the trainer's policy at sampling time, and vLLM's when
            that correction is off.
        distillation_temperature (`float`, *optional*):
            Temperature of both distributions. `None` means the sampling `temperature`.
        distillation_teacher_temperature (`float`, *optional*):
            Temperature of the teacher's distribution. `None` means that of the student's; below it the teacher is
            sharper, and teaches something without any context too (TS-OPSD, 2606.00755).
        distillation_view_divergences (`dict[str, str]`, *optional*):
            Divergences of single views by name, such as `{"wrong": "reverse_kl"}`; the others have that of all. With a
            source that names its views by success, right and wrong rollouts are pulled in different ways.
        distillation_reduction (`str`, *optional*, defaults to `"token_mean"`):
            `"token_mean"` averages over all distilled tokens of the global batch, `"sequence_mean"` over the tokens of
            each completion and then over the completions that have a view, `"joint_token_mean"` divides by all tokens
            of the global batch, distilled or not, as the policy term does.
        num_loss_tokens_to_skip (`int`, *optional*, defaults to `0`):
            Number of model tokens at the start of each completion that are not distilled.
        distillation_chunk_size (`int`, *optional*):
            Most tokens whose logits are in memory at once, in every pass over a head but TRL's own for old and
            reference log-probabilities. `None` chooses it from the vocabulary. Lower it to save memory: it changes no
            result.

        > Parameters that control the teacher

        teacher_model_kind (`str`, *optional*, defaults to `"base"`):
            Whose weights read the privileged context: `"base"` the weights as they were at the start (no extra memory
            under PEFT, a frozen copy otherwise), `"live"` the current weights, `"ema"` a float32 moving average,
            `"snapshot"` a copy renewed every `teacher_sync_steps`, `"checkpoint"` other weights with the same
            vocabulary, `"adapters"` LoRA adapters on the student's base model, one for the views of each name,
            `"server"` a model with the same vocabulary on a vLLM server (docs/server_teacher.md). With the last three,
            a row without privileged context is taught from the student's own prompt. Under an adapter with virtual
            tokens (prefix tuning, cartridges, prompt tuning) `"base"` is the model without them.
        teacher_update_rate (`float`, *optional*, defaults to `0.05`):
            Rate r of the moving average: teacher = (1 - r) * teacher + r * student.
        teacher_sync_steps (`int`, *optional*, defaults to `1`):
            Optimizer steps between two updates of an `"ema"` or `"snapshot"` teacher.
        teacher_model_name_or_path (`str`, *optional*):
            Model of the `"checkpoint"` teacher.
        teacher_model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for loading the `"checkpoint"` teacher.
        teacher_adapters (`dict[str, str | dict]`, *optional*):
            LoRA adapters of the `"adapters"` teacher by the names of the views that they read: a folder, or `{"folder":
            ..., "scale": ...}` with a factor on what the adapter adds. They stand on the student's base model, without
            its own adapter.
        teacher_offload (`bool`, *optional*, defaults to `False`):
            Whether a teacher that is a copy (`"base"` of full weights, `"ema"`, `"snapshot"`) or another model
            (`"checkpoint"`) is in pinned host memory while it does not read. Results are the same to the last bit. It
            costs a transfer of the copy for each teacher forward: docs/scaling.md. Refused where there is no copy, and
            under ZeRO-3 and FSDP.
        teacher_model_server_url (`str` or `list[str]`, *optional*):
            Address of the `"server"` teacher, such as `http://localhost:8001`. Of several, which serve the same model,
            each is asked in turn.
        teacher_server_options (`dict[str, Any]`, *optional*):
            Options of the `"server"` teacher: `model`, `api_key_env`, `concurrency`, `timeout`, `retries`, `tolerance`
            and `live`, see [`~trl_opsd.teacher.server_client.ServerOptions`].
        teacher_self_test (`bool`, *optional*, defaults to `True`):
            Whether to check, before the first step, that the teacher has weights: those of the student, unless it is
            another checkpoint, and that its answers end in tokens that end the student's; of a server, that it scores
            the same tokens alike each time.
        teacher_max_length (`int`, *optional*):
            Most tokens of the teacher's prompt and the completion together. `None` means the model's context length.
        teacher_overlong (`str`, *optional*, defaults to `"error"`):
            What to do with a longer one: `"error"` stops, `"drop_view"` trains the row without its teacher and counts
            it in `self_distillation/dropped_views`, `"shorten"` keeps the first sentences of the context that fit,
            with `[...]` after them, and counts it in `self_distillation/shortened_views`.
        teacher_generation_prompt (`str`, *optional*, defaults to `"student"`):
            What the teacher reads between its prompt and the completion, where the chat template begins the two sides'
            answers differently (one opens a think block, the other closes it or has none): `"student"` the student's
            own beginning, which the completion was sampled after, `"own"` what the template gives the teacher.
        teacher_share_prefix (`bool`, *optional*, defaults to `True`):
            Whether rows of a micro-batch that share a teacher's prompt read it once, where that saves a fifth of the
            tokens or more. Results agree up to rounding, which the first such read is checked for; where it does not
            hold, a warning says so and each row reads its prompt. So it is from the start for readers with sliding
            windows, linear attention, `dynamic` or `longrope` rotary embeddings, a prompt-learning adapter that is
            on, or an attention kernel other than `sdpa` and `eager`.

        > Parameters that control the privileged context

        privileged_source (`str` or `dict`, *optional*):
            A source of contexts by name instead of the column, for example `{"sibling": {"choice": "shortest"}}`: see
            docs/privileged.md. The next three options belong to the column.
        privileged_column (`str`, *optional*, defaults to `"privileged_context"`):
            Dataset column with the privileged context: a string, chat messages, or `None` for a row without a teacher.
        privileged_template (`str`, *optional*, defaults to `"{privileged_context}"`):
            Text around a string context. Only the placeholder is replaced; the rest is taken literally. An empty line
            sets it apart from the prompt's text, unless it brings white space of its own on that side.
        privileged_place (`str`, *optional*, defaults to `"after_user"`):
            Where a string context goes: `"system"`, or `"before_user"` or `"after_user"`, the text of the last user
            message, or `"user_turn"`, `"prepend"` or `"prefill"`, for which see [`View`]. Chat messages always go
            before the prompt's own messages.
        success_reward_threshold (`float`, *optional*, defaults to `1.0`):
            Total reward from which a rollout counts as a success, for sources and conditions that ask, and score from
            which an answer passes in an evaluation (`pass@k`).
        eval_teacher_prompts (`int`, *optional*, defaults to `0`):
            Prompts of each evaluation set that the teacher answers too, with each view, `num_generations_eval` times as
            the student does, rounded up to whole batches. Its scores are `eval_teacher/VIEW/avg@k` and `pass@k`: how
            far the student can get. Each answer costs what one of the student's does with transformers.
        privileged_on_error (`str`, *optional*, defaults to `"error"`):
            What to do when a source raises, is late or returns what is no view: `"error"` stops on every process,
            `"skip"` trains those rollouts without views and counts them in `self_distillation/source_errors`.
        privileged_timeout (`float`, *optional*):
            Seconds that a source may take for a generation batch. `None` means any time.
        turns (`dict[str, Any]`, *optional*):
            Roles of the rollouts of a prompt, each of which says under which prompt which text is trained: first and
            second turns, see docs/turns.md. `None` means that every rollout is trained under the prompt that it
            answers.
        log_privileged_context (`bool`, *optional*, defaults to `False`):
            Whether to write down what the teacher reads: in the completions table (`log_completions`), and in
            `_privileged/*.jsonl` under `output_dir`, a folder that is not pushed to the Hub.
        log_tokens (`int`, *optional*, defaults to `0`):
            Rollouts of each logged step whose single tokens are recorded, in `_tokens/*.jsonl.gz` under `output_dir`,
            a folder that is not pushed to the Hub, as it holds contexts. `trl-opsd report` shows them.
        log_tokens_probe (`int`, *optional*, defaults to `0`):
            Steps between two records of the probe, `0` for none: the first `log_tokens` rollouts of the training, with
            the contexts that they had, are scored anew with the weights of then. The same tokens before the training,
            after each of these steps and after the last one show what has changed.
        leak_ngram_size (`int`, *optional*, defaults to `8`):
            Words in a row of the context that make a completion's quote of it (`self_distillation/leak/quotes`), where
            the student has not read them. A Chinese character, a kana or a Thai letter counts as a word. `0` looks for
            no quotes.
        leak_phrases (`list[str]`, *optional*):
            Phrases with which a completion gives the context away (`self_distillation/leak/phrases`): whole words, in
            any case, that the student has not read. `None` means [`~trl_opsd.monitoring.leaks.LEAK_PHRASES`], an empty
            list none.
        student_chat_template_kwargs (`dict[str, Any]`, *optional*):
            Chat template arguments of the student alone, on top of `chat_template_kwargs`.
        teacher_chat_template_kwargs (`dict[str, Any]`, *optional*):
            Chat template arguments of the teacher alone, on top of `chat_template_kwargs`, for example
            `{"enable_thinking": true}`.
    """

    _VALID_DICT_FIELDS = [
        *GRPOConfig._VALID_DICT_FIELDS,
        "method_options",
        "distillation_view_divergences",
        "teacher_model_init_kwargs",
        "teacher_adapters",
        "teacher_server_options",
        "privileged_source",
        "turns",
        "student_chat_template_kwargs",
        "teacher_chat_template_kwargs",
    ]

    # Parameters that control the method
    method: str | None = field(default=None, metadata={"help": "A published method, or the path of one's own."})
    method_options: dict[str, Any] | str | None = field(default=None, metadata={"help": "The method's own options."})

    # Parameters that control the loss
    num_generations: int | None = field(
        default=None,
        metadata={"help": "Completions of a prompt. `None`: 8 with a reward, 1 without."},
    )
    policy_weight: NonNegative | None = field(
        default=None,
        metadata={"help": "Weight of the GRPO loss. `None`: 1.0 when a reward is given, else 0.0."},
    )
    distillation_weight: NonNegative = field(
        default=1.0,
        metadata={"help": "Weight of the distillation loss. 0.0 makes the trainer a plain GRPOTrainer."},
    )
    distillation_divergence: str | None = field(
        default=None,
        metadata={
            "help": "Divergence of teacher and student. `None`: `distillation_alpha` names it.",
            "choices": list(DIVERGENCES),
        },
    )
    distillation_alpha: float = field(
        default=0.0,
        metadata={
            "help": "0.0: forward KL, 1.0: reverse KL, between: generalised Jensen-Shannon; or the parameter of "
            "`distillation_divergence`."
        },
    )
    distillation_mode: str = field(
        default="full_logits",
        metadata={"help": "What is compared.", "choices": list(CHOICES["distillation_mode"])},
    )
    distillation_topk: int | None = field(
        default=None, metadata={"help": "Size of the top-k set of `distillation_mode='topk_logits'`."}
    )
    distillation_topk_source: str = field(
        default="student",
        metadata={
            "help": "Whose most likely tokens form the top-k set.",
            "choices": list(TOPK_SOURCES),
        },
    )
    distillation_add_tail: bool = field(
        default=False, metadata={"help": "Add the rest of the vocabulary as one more class of the top-k set."}
    )
    distillation_stop_gradient: bool = field(
        default=False, metadata={"help": "Hold log(p/q) constant on the top-k set, which is not renormalised."}
    )
    distillation_target: str | None = field(
        default=None,
        metadata={
            "help": "One target made of the views, instead of the mean of the divergences.",
            "choices": list(TARGETS),
        },
    )
    distillation_entry_clip: float | None = field(
        default=None, metadata={"help": "Upper bound on each vocabulary entry of the divergence, before the sum."}
    )
    distillation_entry_clip_mode: str = field(
        default="signed",
        metadata={
            "help": "Form of the clipped entries: the paper's, or one that can't be negative.",
            "choices": list(ENTRY_CLIP_MODES),
        },
    )
    distillation_token_clip: float | None = field(
        default=None, metadata={"help": "Upper bound on each token's divergence, after the sum."}
    )
    distillation_is_clip: float | None = field(
        default=None, metadata={"help": "Upper bound of the importance weight p/p_old of each distilled token."}
    )
    distillation_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of both distributions. `None`: the sampling temperature."}
    )
    distillation_teacher_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of the teacher's distribution. `None`: that of the student's."}
    )
    distillation_view_divergences: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Divergences of single views by name; the others have that of all."}
    )
    distillation_reduction: str = field(
        default="token_mean",
        metadata={"help": "How tokens are averaged.", "choices": list(CHOICES["distillation_reduction"])},
    )
    num_loss_tokens_to_skip: Index = field(
        default=0, metadata={"help": "Model tokens at the start of each completion that are not distilled."}
    )
    distillation_chunk_size: Count | None = field(
        default=None, metadata={"help": "Most tokens whose logits are in memory at once."}
    )

    # Parameters that control the teacher
    teacher_model_kind: str = field(
        default="base",
        metadata={
            "help": "Whose weights read the privileged context.",
            "choices": list(CHOICES["teacher_model_kind"]),
        },
    )
    teacher_update_rate: Share = field(default=0.05, metadata={"help": "Rate of the `ema` teacher."})
    teacher_sync_steps: Count = field(
        default=1, metadata={"help": "Optimizer steps between two updates of an `ema` or `snapshot` teacher."}
    )
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model of the `checkpoint` teacher."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for loading the `checkpoint` teacher."}
    )
    teacher_adapters: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "LoRA adapters of the `adapters` teacher by the views that they read."}
    )
    teacher_offload: bool = field(
        default=False,
        metadata={"help": "Whether the teacher's copy is in host memory while it does not read."},
    )
    teacher_model_server_url: list[str] | None = field(
        default=None, metadata={"help": "Addresses of the vLLM servers of the `server` teacher."}
    )
    teacher_server_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the `server` teacher: `concurrency`, `timeout` and more."}
    )
    teacher_self_test: bool = field(
        default=True, metadata={"help": "Whether to check the teacher's weights before the first step."}
    )
    teacher_max_length: Count | None = field(
        default=None,
        metadata={"help": "Most tokens of teacher prompt and completion. `None`: the model's context length."},
    )
    teacher_overlong: str = field(
        default="error",
        metadata={"help": "What to do beyond `teacher_max_length`.", "choices": list(CHOICES["teacher_overlong"])},
    )
    teacher_generation_prompt: str = field(
        default="student",
        metadata={
            "help": "Whose generation prompt the teacher's prompt ends in.",
            "choices": list(CHOICES["teacher_generation_prompt"]),
        },
    )
    teacher_share_prefix: bool = field(
        default=True, metadata={"help": "Whether rows that share a teacher's prompt read it once, where that pays."}
    )

    # Parameters that control the privileged context
    privileged_source: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "A source of privileged contexts by name, instead of the column."}
    )
    privileged_column: str = field(
        default="privileged_context", metadata={"help": "Dataset column with the privileged context."}
    )
    privileged_template: str = field(
        default=PLACEHOLDER,
        metadata={"help": "Text around a string context, with the placeholder {privileged_context}."},
    )
    privileged_place: str = field(
        default="after_user",
        metadata={
            "help": "Where a string context goes in the teacher's prompt.",
            "choices": list(CHOICES["privileged_place"]),
        },
    )
    success_reward_threshold: float = field(
        default=1.0, metadata={"help": "Total reward from which a rollout counts as a success."}
    )
    eval_teacher_prompts: Index = field(
        default=0, metadata={"help": "Prompts of an evaluation set that the teacher answers too, to be scored."}
    )
    privileged_on_error: str = field(
        default="error",
        metadata={"help": "What to do when a source fails.", "choices": list(CHOICES["privileged_on_error"])},
    )
    privileged_timeout: Positive | None = field(
        default=None, metadata={"help": "Seconds that a source may take for a generation batch."}
    )
    turns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Roles of a prompt's rollouts, with second turns: `slots` and more."}
    )
    log_privileged_context: bool = field(
        default=False, metadata={"help": "Write down what the teacher reads, in the table and in JSONL files."}
    )
    log_tokens: Index = field(
        default=0, metadata={"help": "Rollouts of each logged step whose single tokens are recorded."}
    )
    log_tokens_probe: Index = field(
        default=0, metadata={"help": "Steps between two records of the same rollouts. 0: none."}
    )
    leak_ngram_size: Index = field(
        default=8, metadata={"help": "Words in a row of the context that make a quote. 0 looks for none."}
    )
    leak_phrases: list[str] | None = field(
        default=None, metadata={"help": "Phrases with which a completion gives the context away."}
    )
    student_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Chat template arguments of the student alone."}
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Chat template arguments of the teacher alone."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and not self.fp16:  # TRL's default is true everywhere
            self.bf16 = not self.use_cpu and (is_torch_bf16_gpu_available() or is_torch_xla_available())
        if self.policy_weight or self.distillation_weight == 0:
            self.resolve_num_generations(has_groups=True)
        # TRL has a default for the old name alone, and transformers warns of that one
        if getattr(self, "activation_checkpointing", True) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        # One divides every batch: where the reward is to decide, the trainer checks that once it knows
        given = self.num_generations
        if given in (None, 1):
            self.num_generations = _SingleGeneration(1)
            if given and self.num_generations_eval is None:
                self.num_generations_eval = 1
        try:
            super().__post_init__()
        except ValueError as error:
            if "bf16/gpu" not in str(error):
                raise
            raise ValueError(NO_BF16) from error
        self.num_generations = given
        if isinstance(self.teacher_model_server_url, str):
            self.teacher_model_server_url = [self.teacher_model_server_url]
        check_values(self)
        check_method(self)
        check_combinations(self)
        if self.policy_weight is not None:
            check_policy_weight(self, self.policy_weight)

    def resolve_num_generations(self, has_groups: bool) -> None:
        """
        Resolve `num_generations` where none is given.

        Args:
            has_groups (`bool`): Whether there is a reward, which compares the completions of a prompt.

        Raises:
            ValueError: If a batch does not hold whole groups.
        """
        if self.num_generations is not None:
            return
        self.num_generations = _GROUP if has_groups else 1
        evaluated = self.num_generations_eval or self.num_generations
        batches = [("generation_batch_size", self.generation_batch_size, self.num_generations)]
        if self.do_eval and self.eval_strategy != "no":
            batches.append(("per_device_eval_batch_size", self.per_device_eval_batch_size * self.world_size, evaluated))
        for name, size, group in batches:
            if size is not None and size % group:
                raise ValueError(
                    f"`num_generations` is {group} by default where there is a reward, and {size} completions of a "
                    f"batch (`{name}`) can't be dealt in groups of {group}. Set `num_generations`, or the batch size."
                )

    @property
    def divergence_spec(self) -> DivergenceSpec:
        """Options of the token-level loss, each under its name without `distillation_`. A new value at every call."""
        own = {item.name for item in fields(self)}
        names = [item.name for item in fields(DivergenceSpec) if f"distillation_{item.name}" in own]
        options = {name: getattr(self, f"distillation_{name}") for name in names}
        if options["temperature"] is None:
            options["temperature"] = self.temperature
            names.remove("temperature")
        # What a method sets for the divergence that it names is no parameter of another one that the user names
        of_method = {} if self.method is None else method_of(self.method).defaults
        chosen = DIVERGENCES.get(self.distillation_divergence)
        if chosen and chosen.alpha_range is None and self.distillation_alpha == of_method.get("distillation_alpha"):
            del options["alpha"]
        try:
            return DivergenceSpec(**options)
        except ValueError as error:
            # The error names the options as the spec calls them
            message = re.sub(rf"`({'|'.join(names)})\b", r"`distillation_\1", str(error))
            raise ValueError(message) from None

    def public(self) -> "OPSDConfig":
        """A copy for files and trackers that others read: it names the privileged source, without its texts, and shows
        `[...]` for those of `privileged_template` and of what the teacher alone is given."""
        shown = copy.copy(self)
        if self.privileged_source is not None:
            shown.privileged_source = outline(self.privileged_source)
        if self.turns is not None:
            shown.turns = _without_turn_texts(self.turns)
        shown.privileged_template = PLACEHOLDER.join(
            "[...]" if text else "" for text in self.privileged_template.split(PLACEHOLDER)
        )
        for name in _OF_THE_TEACHER:
            setattr(shown, name, _without_texts(getattr(self, name)))
        return shown

    def to_dict(self) -> dict[str, Any]:
        """Dict of [`public`], for trackers and JSON."""
        shown, names = self.public(), ("privileged_source", "privileged_template", "turns", *_OF_THE_TEACHER)
        return super().to_dict() | {name: getattr(shown, name) for name in names}
