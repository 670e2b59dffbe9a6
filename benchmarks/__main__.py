# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Runner of all benchmarks; each has a name and options of its own:

python -m benchmarks kernel
python -m benchmarks kernel --allocator tuned --repeats 2
python -m benchmarks step --methods
python -m benchmarks scaling
python -m benchmarks compare opsd rlsd opsd+no_pi opsd+wrong_pi grpo --task addition --seeds 1 2
python -m benchmarks key_lookup
python -m benchmarks lab
python -m benchmarks evidence turns --seeds 1 2 3
python -m benchmarks tokens --seed 1
python -m benchmarks agents --config smollm2_calculator_hint -- --seed 1
python -m benchmarks score demo/models/smollm2-135m --problems 64
python -m benchmarks revision --seeds 1 2 3
python -m benchmarks unlearning --seeds 1 2 3
python -m benchmarks error_rates
python -m benchmarks trace_step
python -m benchmarks gpu --tiny
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks import environment
from benchmarks.environment import ROOT
from benchmarks.gpu import run as gpu


PAGES = ROOT / "docs" / "benchmarks"


def timed_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmarks that measure time and memory."""
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the order of the contenders turns with each")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--allocator", default="default", choices=["default", "tuned"], help="glibc's malloc")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--output", type=Path, default=PAGES, help="folder of the CSV files and pictures; the tables "
                        "go into performance.md beside it")  # fmt: skip


def step_options(parser: argparse.ArgumentParser) -> None:
    timed_options(parser)
    parser.add_argument("--model", action="append", help="folder of a causal language model; default: two models")
    parser.add_argument("--methods", action="store_true", help="the published methods instead, on the first model")


def scaling_options(parser: argparse.ArgumentParser) -> None:
    timed_options(parser)
    parser.add_argument("--model", help="folder of a causal language model; default: SmolLM2-135M")


def compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("contenders", nargs="*", help="methods, plain settings, or either with +no_pi or +wrong_pi")
    parser.add_argument("--task", choices=["addition", "json"], default="addition")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--max_steps", type=int, default=25)
    parser.add_argument("--eval_steps", type=int, default=5)
    parser.add_argument("--eval_rows", type=int, help="held-out rows; default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "compare")
    parser.add_argument("--model", type=Path, help="another model than SmolLM2, with --data")
    parser.add_argument("--data", type=Path, help="folder of the task's rows for it")


def key_lookup_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("contenders", nargs="*", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max_steps", type=int, default=60)
    parser.add_argument("--copying", type=int, default=300, help="steps that teach the model to copy a context")


def lab_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of weights and texts")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps, of 32 texts")
    parser.add_argument("--problems", type=int, default=128, help="held-out questions of each task and context")
    parser.add_argument("--table", action="store_true", help="make no model, and show what the one there does")
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "lab" / "model")


def evidence_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiments", nargs="*", help="names of experiments; default: all")
    parser.add_argument("--contenders", nargs="+", help="those whose names begin so; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--task", default="sum", choices=["sum", "product", "sort", "rewriting"])
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a run")
    parser.add_argument("--problems", type=int, default=256, help="held-out questions")
    parser.add_argument("--table", action="store_true", help="print the runs so far and do none")
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "lab" / "model")
    parser.add_argument("--output", type=Path, default=PAGES / "lab", help="folder of the results, one file a run")


def tokens_options(parser: argparse.ArgumentParser) -> None:
    methods = ["self-distillation", "GRPO"]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--target", type=float, default=0.6, help="score at which a run ends")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max_steps", type=int, default=60)
    parser.add_argument("--eval_steps", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the runs so far and do none")


def agents_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="smollm2_calculator_hint", help="recipe with tools, by name or file")
    parser.add_argument("--rows", type=int, default=48, help="held-out tasks")
    parser.add_argument("options", nargs="*", help="after `--`: options of the recipe, which win over it")


def trace_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=15, help="pairs of files to print, the most frequent first")


def error_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=2000, help="pre-flights of each kind")


def score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", help="folders of causal language models")
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--max_tokens", type=int, default=72, help="most tokens of an answer")
    parser.add_argument("--text", type=Path, default=ROOT / "docs" / "privileged.md", help="text for the nats a token")


def revision_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--start", type=float, default=0.3, help="share of right answers at which the start is taken")
    parser.add_argument("--rows", type=int, default=512, help="prompts that are sampled, four times each")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each training, of 64 rows")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of GRPO and of the second phase")
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "revision")


def unlearning_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", help="default: all")
    parser.add_argument("--learning_steps", type=int, default=30, help="steps that teach the facts")
    parser.add_argument("--max_steps", type=int, default=30, help="steps of forgetting, of the ten texts each")
    parser.add_argument("--rate", type=float, default=2e-5, help="learning rate of forgetting")
    parser.add_argument("--problems", type=int, default=64, help="sums that nobody trained on")
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "unlearning")


def gpu_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=500.0, help="time for all parts together")
    parser.add_argument("--only", nargs="+", choices=gpu.PARTS, help="these parts alone")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU: shows that it runs")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "gpu", help="folder of the results")
    parser.add_argument("--publish", action="store_true", help="run nothing, but put the results that are in the "
                        "output folder into docs/benchmarks/gpu and docs/performance.md")  # fmt: skip


BENCHMARKS = {
    "kernel": (timed_options, "time and memory of head and divergence, beside full logits, GKD, Liger and TRL"),
    "step": (step_options, "time and memory of the training part of a step, beside GRPO, SDFT and SDPO"),
    "scaling": (scaling_options, "growth with tokens, context, views, vocabulary and processes"),
    "compare": (compare_options, "scores of methods on one task with one budget, with controls"),
    "key_lookup": (key_lookup_options, "methods of turns on a made-up task, with a tiny model and controls"),
    "lab": (lab_options, "the lab model: a small model trained from nothing, and what it does with contexts"),
    "evidence": (evidence_options, "experiments on the lab model: contenders and controls on several seeds"),
    "tokens": (tokens_options, "sampled tokens to a score, by self-distillation and by GRPO"),
    "agents": (agents_options, "errors of tool calls on held-out tasks, before and after a recipe"),
    "score": (score_options, "greedy answers of models to unseen sums, and nats of a text"),
    "revision": (revision_options, "SD-Zero and its controls on a tiny model that half knows how to add"),
    "unlearning": (unlearning_options, "SHRED and its controls: facts that SmolLM2 learnt are forgotten"),
    "error_rates": (error_options, "verdicts of the pre-flight on simulated scores, without a gap and with one"),
    "trace_step": (trace_options, "files of the package that one training step enters, and moves between them"),
    "gpu": (gpu_options, "check on one GPU: values, loss, step, resuming, DDP and FSDP2, with targets"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="benchmark", required=True, metavar="NAME")
    for name, (add_options, text) in BENCHMARKS.items():
        add_options(names.add_parser(name, help=text, description=text))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    environment.prepare(args)
    by_methods = args.benchmark == "step" and args.methods
    importlib.import_module(f"benchmarks.{'methods' if by_methods else args.benchmark}").main(args)


if __name__ == "__main__":
    main()
