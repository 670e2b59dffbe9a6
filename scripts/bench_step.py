# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Time and memory of the training part of a step, on scripted rollouts: OPSDTrainer beside GRPOTrainer and TRL's
experimental self-distillation trainers:

python scripts/bench_step.py
"""

from bench.setting import machine, parse, parser, settings


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", action="append", help="folder of a causal language model; default: two models")
    args = parse(options)
    from bench import report, step, step_report

    rows = step.run(args)
    report.write_csv(args.output / "step.csv", rows)
    step_report.draw(rows, args.output / "step.png")
    report.put(args.output, {"machine": machine(args.device)} | step_report.blocks(rows, settings(args)))


if __name__ == "__main__":
    main()
