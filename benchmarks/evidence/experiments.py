# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Contenders and experiments on the lab model. A contender is a list of phases; most have one, a training."""

from dataclasses import dataclass
from typing import Any


Options = dict[str, Any]

REWARD, SHUFFLED = "correct", "shuffled_correct"
SOLUTION = " solution: {privileged_context}"
AGAIN = "{question} said: {attempt} solution: {privileged_context}"
CHECK = "{question} said: {attempt} check"
COLUMN: Options = {"column": {"column": "solution", "template": SOLUTION}}
WRONG: Options = {"column": {"column": "wrong", "template": SOLUTION}}
OTHER: Options = {"other_row": {"column": "solution", "template": SOLUTION}}
HINT: Options = {"feedback": {"template": " feedback: {privileged_context}"}}
ROWS = 32  # of a step, in every contender


@dataclass(frozen=True)
class Experiment:
    """
    Experiment.

    Args:
        question (`str`): What it asks.
        baseline (`str`): Contender with which the others are compared.
        contenders (`tuple[str, ...]`): The others.
    """

    question: str
    baseline: str
    contenders: tuple[str, ...]


def train(**options: Any) -> list[Options]:
    """One training. `reward` names a reward; a group has 8 rollouts with it and 1 without."""
    given = {"num_generations": 8 if "reward" in options else 1}
    return [{"run": "train", **given, **options}]


def opsd(source: Options = COLUMN, **options: Any) -> list[Options]:
    """Forward KL of the frozen start's distribution, the package's default, on the student's own first answers."""
    return train(privileged_source=source, **options)


def rltf_sd(source: Options, **options: Any) -> list[Options]:
    turns = {"slots": ["first", "distil"], "source": again(source), "when": "failed", "otherwise": "idle"}
    return train(method="rltf_sd", reward=REWARD, turns=turns, method_options={"coefficient": 1.0, **options})


def again(source: Options) -> Options:
    """Source of the second turn, which shows the attempt and another source's context."""
    name, own = next(iter(source.items()))
    return {"with_attempt": {"source": {name: {"column": own["column"]}}, "template": AGAIN}}


def trd(source: Options) -> list[Options]:
    turns = {"slots": ["distil"], "source": again(source), "weights": "teacher"}
    return train(method="trd", turns=turns)


def rltf_fm(source: Any, weight: float) -> list[Options]:
    turns = {
        "slots": ["first", "feedback"], "source": source, "when": "failed", "otherwise": "idle",
        "feedback_template": CHECK,
    }  # fmt: skip
    return train(method="rltf_fm", reward=REWARD, turns=turns, method_options={"feedback": weight})


def pi_distill(source: Options = COLUMN, **options: Any) -> list[Options]:
    turns = {"slots": ["second", "distil"], "source": source, "attempt": False, "otherwise": "idle"}
    return train(method="pi_distill", reward=REWARD, turns=turns, method_options=options)


def vpd(every: int, reward: str = REWARD) -> list[Options]:
    turns = {"slots": ["first", "reread"], "source": HINT, "every": every}
    return train(method="vpd", reward=reward, turns=turns)


def exposure(**options: Any) -> list[Options]:
    name = "exposure" if "share" in options else "adaptive_exposure"
    own = {"column": "solution", "separator": ",", "answer": "result", "template": SOLUTION}
    return train(method="atesd", privileged_source={name: {**own, **options}})


def sft(rows: int, steps: float, model: int | None = None) -> Options:
    """Fine-tuning on the rows of an earlier phase for a share of the steps."""
    return {"run": "sft", "rows": rows, "steps": steps} | ({} if model is None else {"model": model})


def collected(layouts: list[str], keep: list[str], **options: Any) -> Options:
    return {"run": "collect", "layouts": layouts, "keep": keep, **options}


REVISION: Options = {
    "method": "sd_zero", "reward": REWARD, "privileged_source": {"self_revision": {"right": "right", "wrong": "wrong"}},
}  # fmt: skip
RIGHT = ["succeeded", "not_truncated", "unique"]

CONTENDERS: dict[str, list[Options]] = {
    "grpo": train(reward=REWARD, distillation_weight=0.0),
    "opsd": opsd(),
    "opsd, wrong context": opsd(WRONG),
    "opsd, other row": opsd(OTHER),
    "opsd + reward": opsd(reward=REWARD),
    "opsd, hint": train(privileged_source=HINT, reward=REWARD, policy_weight=0.0),
    "rltf_sd": rltf_sd(COLUMN),
    "rltf_sd, wrong context": rltf_sd(WRONG),
    "rltf_sd, other row": rltf_sd(OTHER),
    "rltf_sd, SFT where right": rltf_sd(COLUMN, baseline="none"),
    "trd": trd(COLUMN),
    "trd, wrong context": trd(WRONG),
    "trd, other row": trd(OTHER),
    "rltf_fm": rltf_fm("feedback", 0.1),
    "rltf_fm, weight 1": rltf_fm("feedback", 1.0),
    "rltf_fm, weight 0": rltf_fm("feedback", 0.0),
    "rltf_fm, shuffled critiques": rltf_fm("benchmarks.evidence.rows.shuffled_feedback", 0.1),
    "rltf_fm, weight 1, shuffled critiques": rltf_fm("benchmarks.evidence.rows.shuffled_feedback", 1.0),
    "pi_distill": pi_distill(),
    "pi_distill, alpha 0": pi_distill(alpha=0.0),
    "pi_distill, alpha 1": pi_distill(alpha=1.0),
    "pi_distill, beta 0": pi_distill(beta=0.0),
    "pi_distill, other row": pi_distill(OTHER),
    "vpd": vpd(5),
    "vpd, no E-step": vpd(10**6),
    "vpd, shuffled labels": vpd(5, SHUFFLED),
    "atesd": exposure(),
    "atesd, share 0": exposure(share=0.0),
    "atesd, share 0.5": exposure(share=0.5),
    "atesd, share 1": exposure(share=1.0),
    "atesd, random share": exposure(share="random"),
    "rft": [
        collected(["answer"], RIGHT, reward=REWARD, privileged_source="none", num_generations=4),
        sft(1, 1.0),
    ],
    "sd_zero": [
        collected(["generation", "revision"], RIGHT, num_generations=4, **REVISION),
        sft(1, 0.5),
        {"run": "train", "model": 2, "num_generations": 1, "steps": 0.5, "max_completion_length": 96, **REVISION},
    ],
    "sd_zero, no first phase": train(**REVISION, num_generations=1),
    "sft_stabilised": [
        collected(["distil"], ["not_truncated", "unique"], privileged_source=COLUMN, num_generations=1),
        sft(1, 0.25),
        {"run": "train", "model": 2, "teacher": 0, "num_generations": 1, "privileged_source": COLUMN, "steps": 0.75},
    ],
    "rlvr_teacher": [
        {**train(reward=REWARD, distillation_weight=0.0)[0], "steps": 1.0},
        {"run": "train", "teacher": 1, "num_generations": 1, "privileged_source": COLUMN, "steps": 1.0},
    ],
}

EXPERIMENTS = {
    "turns": Experiment(
        "Do second turns teach the bare question more than first turns do?",
        "grpo",
        (
            "opsd", "opsd, wrong context", "opsd, other row", "rltf_sd", "rltf_sd, SFT where right",
            "rltf_sd, wrong context", "rltf_sd, other row", "trd", "trd, wrong context", "trd, other row",
        ),
    ),
    "feedback": Experiment(
        "Does learning to write feedback help, and is it learnt?",
        "rltf_fm, weight 0",
        (
            "grpo", "rltf_fm", "rltf_fm, weight 1", "rltf_fm, shuffled critiques",
            "rltf_fm, weight 1, shuffled critiques",
        ),
    ),
    "joint": Experiment(
        "Does a teacher that learns beside its student teach it more?",
        "grpo",
        (
            "opsd", "opsd + reward", "pi_distill", "pi_distill, alpha 0", "pi_distill, alpha 1", "pi_distill, beta 0",
            "pi_distill, other row",
        ),
    ),
    "variational": Experiment(
        "Does the E-step make a better teacher, and that a better student?",
        "vpd, no E-step",
        ("grpo", "opsd, hint", "vpd", "vpd, shuffled labels"),
    ),
    "exposure": Experiment(
        "Does it matter how much of the solution the teacher reads?",
        "atesd, share 1",
        ("atesd, share 0", "atesd, share 0.5", "atesd, random share", "atesd"),
    ),
    "phases": Experiment(
        "Do phases before the distillation, or a teacher with rewards behind it, help?",
        "opsd",
        ("grpo", "rft", "sd_zero", "sd_zero, no first phase", "sft_stabilised", "rlvr_teacher"),
    ),
}  # fmt: skip
