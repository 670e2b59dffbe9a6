# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sampler of turns: the `rollout_func` of a run with `turns`, by TRL's own generation."""

import math
from typing import Any

from accelerate import Accelerator

from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.privileged import Run, Source
from trl_opsd.prompts.length_limit import EncodedReading
from trl_opsd.prompts.view_encoder import ViewEncoder
from trl_opsd.rollouts.message_images import images_of
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.turns.asking import Asked, TurnSource
from trl_opsd.turns.options import TurnOptions
from trl_opsd.turns.texts import GivenTexts, without_text
from trl_opsd.turns.units import Row, Text, Unit


class Turns:
    """
    Samples the texts of a generation batch in two calls and deals them to its rows by their roles.

    An evaluation has no turns: all of its rollouts are first ones.

    Args:
        options ([`TurnOptions`]): Options of `turns`.
    """

    texts: GivenTexts  # set by `setup`

    def __init__(self, options: TurnOptions):
        self.options = options
        self.asking = None if options.source is None else TurnSource(options)
        self.units: list[Unit] = []  # of the latest generation batch, none in an evaluation
        self._dealt: list[Row] = []
        self._rows: list[dict[str, Any]] = []

    @property
    def source(self) -> Source | None:
        """Source of the second turns."""
        return None if self.asking is None else self.asking.source

    @property
    def columns(self) -> list[str]:
        """Dataset columns that the turns read, which TRL then keeps."""
        own = [] if self.options.given is None else [self.options.given]
        return own if self.source is None else [*own, *self.source.columns]

    def setup(self, args: Any, encoder: ViewEncoder, accelerator: Accelerator, run: Run, limit: int | None) -> None:
        """
        Prepare for training.

        Args:
            args ([`OPSDConfig`]): Options of the run.
            encoder ([`ViewEncoder`]): From contexts to prompts.
            accelerator (`Accelerator`): Tells of errors, and completes groups.
            run ([`~trl_opsd.privileged.Run`]): What the source is given.
            limit (`int`, *optional*): Most tokens that the student reads.
        """
        self.texts = GivenTexts(encoder, limit)
        if self.asking is not None:
            self.asking.setup(args, encoder, accelerator)
            self.asking.source.setup(run)

    def state(self) -> dict[str, Any]:
        """State of the source, empty if it has none."""
        return {} if self.source is None else self.source.state_dict() or {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what [`state`] returned."""
        if state:
            self.source.load_state_dict(state)

    def begin(self, rows: list[dict[str, Any]]) -> None:
        """Take the dataset rows of the generation batch that is about to be sampled."""
        self._rows, self._dealt, self.units = rows, [], []
        if self.asking is not None:
            self.asking.counts = {}

    def dressed(self, rollouts: list[Rollout]) -> list[Rollout]:
        """The captured rollouts of the generation batch in their roles."""
        if not self._dealt:
            return rollouts
        return [row.dressed(rollout) for row, rollout in zip(self._dealt, rollouts, strict=True)]

    def __call__(self, prompts: list[str | Messages], trainer: Any) -> dict[str, Any]:
        """TRL's dict of the prompts that the rows are trained under, and of their texts. A collective."""
        if not trainer.model.training:
            ids, images, fields = trainer._tokenize_prompts(prompts)
            texts, logps = trainer._generate_single_turn(ids, images, fields, trainer.num_generations_eval)
            return {"prompt_ids": ids, "completion_ids": texts, "logprobs": logps}
        asked, first = self._first_turns(prompts[:: self.options.size], trainer)
        self.units = self._units(asked, first, trainer)
        self._second_turns(trainer)
        self._dealt = [row for unit in self.units for row in unit.rows()]
        texts = [row.text for row in self._dealt]
        unknown = not trainer.use_vllm and all(text.logps is None for text in texts)
        return {
            "prompt_ids": [row.prompt_ids for row in self._dealt],
            "completion_ids": [text.ids for text in texts],
            # Where a text was not sampled under its prompt, TRL takes no ratio to the sampler: that of nan is 1
            "logprobs": None if unknown else [text.logps or [math.nan] * len(text.ids) for text in texts],
            "env_mask": [[int(row.role != "idle")] * len(row.text.ids) for row in self._dealt],
        }

    def _first_turns(self, prompts: list[str | Messages], trainer: Any) -> tuple[Asked, list[Text | None]]:
        """Attempts of the units with what their second turns read, and the texts of the first."""
        options, step = self.options, trainer.state.global_step
        rows, group_size = self._rows[:: options.size], trainer.num_generations // options.size
        with raise_on_all_ranks(trainer.accelerator, "the prompts", step):
            self._check_images(prompts, trainer)
            ids, images, fields = trainer._tokenize_prompts(prompts)
        goes_on = self.asking is not None and (step + 1) % options.every == 0
        texts: list[Text | None] = [None] * len(prompts)
        if options.attempt and (self.asking is not None or "first" in options.slots):
            texts = sampled(trainer, ids, images, fields)
        if goes_on and options.attempt:
            attempts = trainer.first_turns(rows, prompts, ids, [text.ids for text in texts], group_size)
        else:
            first = trainer.accelerator.process_index * len(prompts)
            attempts = without_text(rows, prompts, ids, group_size=group_size, first=first, step=step, wanted=goes_on)
        if not goes_on:
            return Asked(attempts, [None] * len(attempts)), texts
        return self.asking.ask(attempts, group_size, step), texts

    def _units(self, asked: Asked, first: list[Text | None], trainer: Any) -> list[Unit]:
        options, end = self.options, trainer._tokenizer.eos_token_id
        with raise_on_all_ranks(trainer.accelerator, "the texts of the turns", trainer.state.global_step):
            units = [
                Unit(options.slots, options.otherwise, attempt, text, context, end=end)
                for attempt, text, context in zip(asked.attempts, first, asked.contexts, strict=True)
            ]
            for unit in units:
                if options.given is not None:
                    unit.given = self.texts.given(unit.attempt, options.given)
                if "feedback" in options.slots and unit.goes_on:
                    view = unit.context.view
                    unit.feedback = self.texts.feedback(unit.attempt, view, options.feedback_template)
        return units

    def _second_turns(self, trainer: Any) -> None:
        """Write the second turns, and first turns for the slots that do not go on."""
        by_teacher = self.options.weights == "teacher"
        if by_teacher:
            self._by_teacher([unit for unit in self.units if unit.second_wanted], trainer)
        # Engines that serve several processes at once need as many prompts of each, whatever its units do
        equal = self.asking is not None and (trainer.use_vllm or trainer.teacher.backend.gathers_whole_modules)
        asked: list[tuple[Unit, EncodedReading | None]] = []
        for unit in self.units:
            own = [unit.context] if unit.second_wanted and not by_teacher else []
            fresh = unit.most_fresh - len(own) if equal else unit.fresh_wanted
            asked += [(unit, reading) for reading in [*own, *[None] * fresh]]
        with raise_on_all_ranks(trainer.accelerator, "the prompts of the second call", trainer.state.global_step):
            prompts = self._to_sample(asked, trainer)
        texts = sampled(trainer, *prompts) if asked else []
        for (unit, reading), text in zip(asked, texts, strict=True):
            if reading is not None:
                unit.second = text
            elif len(unit.fresh) < unit.fresh_wanted:
                unit.fresh.append(text)

    def _to_sample(
        self, asked: list[tuple[Unit, EncodedReading | None]], trainer: Any
    ) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Token ids of the prompts of the second call, with images and tensors as TRL's generation takes them."""
        ids = [unit.attempt.prompt_ids if reading is None else reading.ids for unit, reading in asked]
        if trainer.images is None or not asked:
            return ids, None, {}
        prompts = [unit.attempt.prompt if reading is None else unit.context_prompt for unit, reading in asked]
        rendered, images, fields = trainer._tokenize_prompts(prompts)
        if [list(one) for one in rendered] != [list(one) for one in ids]:
            raise ValueError(
                "`turns` of a model that sees read contexts within the prompt, as the chat template renders it for the "
                "student: leave `teacher_chat_template_kwargs` and places outside the prompt out."
            )
        return ids, images, fields

    def _by_teacher(self, units: list[Unit], trainer: Any) -> None:
        pixels = []
        if trainer.images is not None:
            tokenizer = trainer.collector.encoder.tokenizer
            read = [unit.context.seen or tokenizer.encode(unit.attempt.prompt, None, {})[1] for unit in units]
            pixels = [one.pixels for one in read]
        ids = [unit.context.ids for unit in units]
        texts = trainer.text_generator.answers(ids, "teacher", self.options.temperature, pixels)
        for unit, text in zip(units, texts, strict=True):
            unit.second = Text(text)

    def _check_images(self, prompts: list[str | Messages], trainer: Any) -> None:
        """Refuse images that TRL does not hand to the trained rows: it takes those of the dataset's columns, beside the
        tokens of the dataset's prompt."""
        if trainer.images is None or not any(images_of(prompt) for prompt in prompts):
            return
        if not {"image", "images"} & set(self._rows[0]):
            raise ValueError("`turns` take images from the column `image` or `images`, and not from the prompts.")
        under = [role for role in self.options.slots if role in ("second", "reread", "feedback")]
        if under:
            raise ValueError(
                f"The role `{under[0]}` of `turns` trains another prompt than the dataset's, and TRL reads images with "
                "that one alone: use the role `distil`, or leave the images out."
            )


def sampled(trainer: Any, ids: list[list[int]], images: Any, fields: dict[str, Any]) -> list[Text]:
    """Texts that the student writes to prompts, each of which is its own."""
    texts, logps = trainer._generate_single_turn(ids, images, fields, 1)
    return [Text(*pair) for pair in zip(texts, logps or [None] * len(texts), strict=True)]
