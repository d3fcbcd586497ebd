"""python -m tinygrad2 compare RUN: is my loss normal? The run compared with the reference curves of its preset.

RUN is a run's folder. Exit code 0: all steps are inside the band. 1: it left the band; the first step is printed. 2: it
cannot be compared, because flags on which the loss depends are not those of the reference; they are printed. Where the
curve of the demo is that of a known bug (python -m tinygrad2 bug), and clearly so, the bug is named.
"""

import math

from tinygrad2.bugs.signatures import looks_like
from tinygrad2.cli import Parser, PathAction, summary
from tinygrad2.datasets.dataset import is_same_data
from tinygrad2.errors import UserError
from tinygrad2.monitor.metrics import read_metrics, read_run_config
from tinygrad2.monitor.reference_curves import WIDTH, band_of, differences, first_outside, load_curves
from tinygrad2.system.shell import command_line


def main(argv):
    parser = Parser(prog="tinygrad2 compare", description=summary(__doc__))
    parser.add_argument("run", action=PathAction, role="input", metavar="RUN", help="a run's folder")
    parser.add_argument("--preset", metavar="NAME", help="compare with this preset (default: the run's own)")
    args = parser.parse_args(argv)
    config = read_run_config(args.run)
    if config["preset"] == "--init-from" and not args.preset:
        raise UserError(f"{args.run}: is a finetuning, and there are reference curves of the presets only; look at its "
                        f"own: {command_line('python -m tinygrad2 plot', args.run)}")
    reference = load_curves(args.preset or config["preset"])
    data = reference["config"]["data"]
    data = data if is_same_data(data, config["data"]) else config["data"]
    different = differences(reference, config["training"], config["model"], data)
    if different:
        only_steps = [line.split(":")[0] for line in different] == ["steps"]
        steps = reference["config"]["training"]["steps"]
        remedy = f"; train with --steps {steps}, and stop it with Ctrl-C where you like" if only_steps else ""
        raise UserError(f"{args.run}: cannot be compared with the curves of {reference['preset']}: "
                        + "; ".join(different) + remedy)
    curves = read_metrics(args.run)
    if "loss" not in curves:
        raise UserError(f"{args.run}: its metrics.jsonl has no 'loss'; it cannot be compared")
    steps, losses = curves["loss"]
    gap = next((i for i, step in enumerate(steps) if step != i), len(steps))
    losses = [value if math.isfinite(value) else math.inf for value in losses[:gap]]
    band = band_of(reference["losses"])
    compared = min(len(losses), len(band.mean))
    if not compared:
        first = f"begins at step {steps[0] + 1:,}" if len(steps) else "has no step"
        raise UserError(f"{args.run}: its metrics.jsonl {first}: nothing can be compared; give the folder of a run "
                        "that has its first steps")
    print(f"reference {reference['preset']}, seeds {', '.join(reference['losses'])}, {len(band.mean):,} steps, "
          f"{reference['machine']}, {reference['date']}")  # fmt: skip
    for step in sorted({0, *(compared * i // 5 - 1 for i in range(1, 6))} - {-1}):
        limits = f"{band.low[step]:7.4f} to {band.high[step]:7.4f}"
        print(f"    step {step + 1:6d}   loss {losses[step]:8.4f}   band {limits}")
    if compared < len(losses):
        print(f"note      steps after {compared:,} are not compared: the reference ends there")
    outside = first_outside(losses, band)
    if outside is None:
        print(f"inside the band, all {compared:,} steps (mean over {WIDTH} steps)")
        return 0
    step, value = outside
    print(f"OUTSIDE the band, first at step {step + 1:,}: the mean over {WIDTH} steps is {value:.4f}, the band there "
          f"{band.low[step]:.4f} to {band.high[step]:.4f}")
    if reference["preset"] == "demo":
        for patch, near, far in looks_like(losses, reference["losses"]):
            print(f"looks like {patch.title}")
            print(f"    ln(loss) is {near:.2f} from that of a training with this bug, {far:.2f} from the reference; "
                  f"python -m tinygrad2 bug hint {patch.number}")
    return 1
