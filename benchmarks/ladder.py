"""The rungs of the matrix product, from three loops to tile registers: python -m benchmarks.ops gemm --ladder

One thread, all rungs and limits in turns in one process, in time that the thread had a core: what other programs take
of a shared machine is not counted, but they empty its caches. Each figure is the fastest of all runs. `of its peak`:
the speed of the same instruction on registers alone.
"""

import os
import time

from tinygrad2.system.threads import plan_threads

SHAPE = 256, 768, 3072  # M, K, N: the first product of GPT-2's MLP, for 256 tokens
FEW_ROWS = 16  # of A for three loops, which take seconds for all

# rung -> (the limit that it is compared with, FLOP for a byte that is loaded from the L1 cache or stored there)
RUNGS = {
    "three_loops": ("vector", 2 / 8),  # a number of a, one of b
    "blocked": ("vector", 2 / 12),  # a number of b and one of out, which is stored
    "packed": ("vector", 16 / 40),  # eight of b, and one of out
    "vector": ("vector", 2 * 4 * 16 / (4 * (4 + 16))),
    "avx512": ("avx512", 2 * 8 * 48 / (4 * (8 + 48))),
    "bf16": ("bf16", 4 * 8 * 48 / (4 * (8 + 48))),
    "amx": ("amx", 2 * 32 * 32 * 32 / 4096),
}


def measure(turns, seconds):
    """Returns (rows, limits): a dict per rung, and {name: FLOP/s or bytes/s}."""
    plan_threads(1)
    import numpy as np

    from benchmarks.ladder_limits import limits
    from ops.kernels.cpu.gemm import plain_loops
    from ops.kernels.cpu.gemm.product import product
    from ops.kernels.cpu.gemm.target import available
    from tinygrad2.system.bandwidth import bandwidth

    (M, K, N), rng = SHAPE, np.random.default_rng(0)
    a, b = rng.standard_normal((M, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
    exact, out = a.astype(np.float64) @ b, np.empty((M, N), np.float32)
    rows, work = [], {}
    for name, (limit, intensity) in RUNGS.items():
        if not hasattr(plain_loops, name) and not available(name):
            print(f"{name}: not on this processor")
            continue
        few = FEW_ROWS if name == "three_loops" else M
        if hasattr(plain_loops, name):
            run = getattr(plain_loops, name)
            work[name] = (lambda n, run=run, few=few: run(a[:few], b, out[:few])), 2 * few * K * N
        else:
            work[name] = (lambda n, name=name: product(a, b, out, kernel=name)), 2 * M * K * N
        work[name][0](1)
        error = np.sqrt(np.mean((out[:few] - exact[:few]) ** 2)) / exact.std()
        rows.append(dict(rung=name, limit=limit, intensity=round(intensity, 3), error=float(error)))
    work["NumPy"] = (lambda n: np.matmul(a, b, out=out)), 2 * M * K * N
    best = _fastest(work, limits(), turns, seconds)
    for row in rows:
        row["gflops"] = round(best[row["rung"]] / 1e9, 2)
        row["share"] = round(best[row["rung"]] / best[row["limit"] + " peak"], 4)
    found = {name: best[name] for name in best if name not in RUNGS}
    return rows, dict(found, memory=bandwidth(seconds))


def _fastest(work, limits, turns, seconds):
    """{name: the highest speed}; limits become "NAME peak" ("L1" stays)."""
    jobs = {name: (run, 1, amount) for name, (run, amount) in work.items()}
    for name, (run, amount) in limits.items():
        run(10)
        start = time.thread_time()
        run(1000)
        rounds = max(1000, int(1.0 / (time.thread_time() - start)))  # a millisecond
        jobs[name if name == "L1" else name + " peak"] = run, rounds, rounds * amount
    best = dict.fromkeys(jobs, 0.0)
    for _ in range(turns):
        for name, (run, rounds, amount) in jobs.items():
            begin = time.thread_time()
            while True:
                start = time.thread_time()
                run(rounds)
                now = time.thread_time()
                best[name] = max(best[name], amount / (now - start))
                if now - begin > seconds / len(jobs):
                    break
    return best


def main(turns, seconds, picture):
    """Measure, print the table, and write the roofline picture; returns (rows, limits)."""
    rows, limits = measure(turns, seconds)
    print(f"{'rung':12} {'GFLOP/s':>8} {'of its peak':>12} {'error':>9}   rows x depth x columns: {SHAPE}, one thread")
    for row in rows:
        print(f"{row['rung']:12} {row['gflops']:8.1f} {row['share']:12.1%} {row['error']:9.1e}")
    print(f"{'NumPy':12} {limits['NumPy'] / 1e9:8.1f}   (its BLAS)")
    peaks = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in limits.items() if name.endswith("peak"))
    print(f"limits: {peaks}; L1 cache {limits['L1'] / 1e9:.0f} GB/s, memory {limits['memory'] / 1e9:.1f} GB/s")
    if picture:
        from benchmarks.ladder_picture import write_roofline

        write_roofline(rows, limits, picture)
        print(f"picture   {os.path.relpath(picture)}")
    return rows, limits
