"""python -m tinygrad2 plan [flags of train_gpt2.py]: how much memory and time would this training take?

--ranks 4 means that four ranks share this host; the table is rank 0's, which alone writes checkpoints.

Flags that a training refuses, such as --cuda-graph yes together with --read-every 1, are refused here as well.

Exit code 0 if it fits into the memory that is free now, 1 if it does not (then with what would help).
"""

import ops
import train_gpt2
from tinygrad2.backend import array_module
from tinygrad2.cli import explanation
from tinygrad2.errors import UserError
from tinygrad2.mixed_precision import table_lines
from tinygrad2.monitor.progress import duration
from tinygrad2.precision import precision_of
from tinygrad2.system.gemm_peak import gemm_peak
from tinygrad2.system.memory import megabytes
from tinygrad2.training.gpu_plan import plan_for
from tinygrad2.training.memory_plan import advice

_EFFICIENCY = 0.45, 0.9  # share of the peak of matrix products that trainings reach (docs/kernels.md)


def main(argv):
    if any(word in ("--help", "-h") for word in argv):
        print(explanation(__doc__))
        return 0
    config, model_config, preset = train_gpt2.parse(argv)
    if config.resume:
        raise UserError("--resume: a plan is made of flags; give those of the training, without --resume")
    ranks = config.ranks or 1
    compiles = ops.must_compile(config.kernels, precision_of(config), config.device)
    reference = ops.runs_reference(config.kernels, config.device)
    plan = plan_for(config).of(config, model_config, reference, compiles, ranks)
    tokens = config.batch_size * model_config.block_size            # per step
    name = config.init_from or preset
    print(f"model     {name}: {model_config.count_parameters():,} parameters: {model_config.describe()}")
    shared = f", on each of {ranks} ranks" if ranks > 1 else ""
    print(f"batch     {tokens:,} tokens per step, in micro-batches of {plan.rows} x {plan.length}{shared}\n")
    for line in plan.table():
        print(line)
    print("\nwhat one layer keeps for backward" + (", one at a time (--recompute)" if config.recompute else ""))
    for name, size in plan.layer.items():
        print(f"    {name:38s}{megabytes(size):>12s}")

    if config.dtype != "float32":
        print("\nwhat computes and waits in which dtype (--dtype bfloat16, or float16)")
        for line in table_lines():
            print("    " + line)

    available = plan.available()
    if config.device == "cpu" or available is not None:
        peak = gemm_peak(array_module(config.device))
        flops = model_config.train_flops_per_token() * tokens
        print(f"\ntime      {time_of(flops, peak, config.steps)}")
    else:
        print("\ntime      not estimated: there is no GPU here")
    if available is None:
        unknown = "this system does not report how much is free" if config.device == "cpu" else "there is no GPU here"
        print(f"memory    {megabytes(plan.total)} needed; {unknown}")
        return 0
    fits = plan.of_ranks(ranks) <= available
    others = f" ({megabytes(plan.of_ranks(ranks) + plan.base)} by {ranks} ranks)" if ranks > 1 else ""
    print(f"memory    {megabytes(plan.total)} needed{others}, {megabytes(available + plan.base)} free: "
          f"{'it fits' if fits else 'it does NOT fit; what helps:'}")  # fmt: skip
    if not fits:
        for line in advice(plan, available / ranks + plan.base):
            print(f"    {line}")
    return 0 if fits else 1


def time_of(flops, peak, steps):
    """What is known of the time, in words. flops: floating-point operations of a step; peak: of them per second."""
    if not flops:
        return "no matrix products: memory and the other operations take the time, and are not estimated"
    best, worst = (flops / peak / share for share in reversed(_EFFICIENCY))
    return (f"{flops / 1e9:,.0f} GFLOP a step at {peak / 1e9:.0f} GFLOP/s of this machine: {seconds(best)} to "
            f"{seconds(worst)}; {steps:,} steps: {duration(best * steps)} to {duration(worst * steps)}")  # fmt: skip


def seconds(s):
    """0.0123 -> "12 ms", 3.21 -> "3.2 s"."""
    return f"{1e3 * s:,.0f} ms" if s < 1 else f"{s:,.1f} s"
