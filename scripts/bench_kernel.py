# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Time and memory of the head and the divergence, beside full logits, GKD's formula, Liger's and TRL's chunked losses:

python scripts/bench_kernel.py
python scripts/bench_kernel.py --allocator tuned --repeats 2
"""

from bench.setting import machine, parse, parser, settings


def main() -> None:
    args = parse(parser(__doc__))
    from bench import kernel, kernel_report, report

    rows = kernel.run(args)
    suffix = "" if args.allocator == "default" else "_tuned"
    report.write_csv(args.output / f"kernel{suffix}.csv", rows)
    if not suffix:
        kernel_report.draw(rows, args.output / "kernel.png")
    report.put(args.output, {"machine": machine(args.device)} | kernel_report.blocks(rows, suffix, settings(args)))


if __name__ == "__main__":
    main()
