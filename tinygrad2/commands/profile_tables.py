"""What `python -m tinygrad2 profile` reports of the recorded steps of a rank: sums per op and per layer, tables."""

import re

BETWEEN = "between ops"
_PHASES = ("forward", "backward", "recompute")


def summarize(steps, optimizer_bytes, gradient_bytes):
    """A dict of JSON values: means per step over Recordings.

    step_ms        of the whole step
    rows           [{"name", "phase", "calls", "ms", "share", "gflop", "gb"}], which add up to step_ms, largest first.
                   The time of an op is its own, without that of ops inside it. "between ops" is what no row accounts
                   for: Python, the walk through the graph, the profiler.
    layers         {module: {phase: ms}} of the model's direct parts and of each block
    parts          the same for the parts of a block, all blocks together
    busy           {thread: share of the step in which it was computing parts of kernels}
    """
    n = len(steps)
    rows, layers, parts, busy = {}, {}, {}, {}
    for recording in steps:
        main = recording.step.thread
        for span in recording.spans:
            row = _row_of(span)
            if row is None or (span.thread != main and span.kind == "op"):
                continue
            if span.thread != main:
                row = f"{row[0]} (in another thread)", row[1]
            sums = rows.setdefault(row, {"calls": 0, "ms": 0.0, "gflop": 0.0, "gb": 0.0, "aside": span.thread != main})
            sums["calls"] += 1 / n
            sums["ms"] += 1e3 * span.own_seconds / n
            sums["gflop"] += span.flops / 1e9 / n
            sums["gb"] += span.bytes / 1e9 / n
            if span.kind == "op":
                for table, name in ((layers, _layer(span.layer)), (parts, _part(span.layer))):
                    times = table.setdefault(name, dict.fromkeys(_PHASES, 0.0))
                    times[span.phase] += 1e3 * span.own_seconds / n
        for name, share in _busy(recording).items():
            busy[name] = busy.get(name, 0.0) + share / n
    for name, size in (("optimizer", optimizer_bytes), ("gradient norm", gradient_bytes)):
        if (name, "") in rows:
            rows[name, ""]["gb"] = size / 1e9
    step_ms = sum(1e3 * recording.step.seconds for recording in steps) / n
    table = []
    for (name, phase), sums in rows.items():
        table.append({"name": name, "phase": phase, "share": sums["ms"] / step_ms, **sums})
    accounted = sum(row["ms"] for row in table if not row["aside"])
    table.append({"name": BETWEEN, "phase": "", "calls": 0, "ms": step_ms - accounted, "gflop": 0.0, "gb": 0.0,
                  "share": 1 - accounted / step_ms, "aside": False})  # fmt: skip
    table.sort(key=lambda row: -row["ms"])
    return {"step_ms": step_ms, "rows": table, "layers": layers, "parts": parts, "busy": busy}


def _row_of(span):
    """(name, phase) of the row to which a span's own time belongs; None: between ops."""
    if span.kind == "op":
        return span.name, span.phase
    if span.kind == "wait":
        return "waiting for other ranks", ""
    if span.kind == "comm":
        return "communication", ""
    if span.kind == "phase" and span.name not in ("micro-batch", "forward", "backward"):
        return span.name, ""
    return None


def _layer(name):
    """h.3.mlp -> h.3, ln_f -> ln_f; "" is the model itself."""
    found = re.match(r"h\.\d+|[^.]*", name)[0]
    return found or "model"


def _part(name):
    """h.3.attn.c_attn -> attn.c_attn; h.3 -> block; the parts of a block, or "" outside of blocks."""
    found = re.fullmatch(r"h\.\d+(?:\.(.+))?", name)
    return (found[1] or "block") if found else ""


def _busy(recording):
    """{thread: share of the step in which it was computing a part of a split}"""
    stretches, names, shares = {}, recording.thread_names(), {}
    for thread, _, begin, end in recording.parts:
        stretches.setdefault(thread, []).append((begin, end))
    for thread in filter(stretches.get, names):
        times = stretches[thread]
        total, until = 0.0, 0.0
        for begin, end in sorted(times):                          # a split within a part runs in the same thread
            total += max(0.0, end - max(begin, until))
            until = max(until, end)
        shares[names[thread]] = total / recording.step.seconds
    return shares


# -- tables ------------------------------------------------------------------------------------------------------------


def main_table(summary, peak, bandwidth):
    """Lines: the rows, with their speed as a share of the peaks (FLOP/s, bytes/s)."""
    yield (f"{'':32s}{'calls':>7s}{'ms':>10s}{'share':>8s}{'GFLOP':>9s}{'GFLOP/s':>9s}{'of peak':>8s}"
           f"{'GB/s':>8s}{'of peak':>8s}")  # fmt: skip
    for row in summary["rows"]:
        seconds = row["ms"] / 1e3
        calls = f"{row['calls']:,.0f}" if row["calls"] else ""
        line = f"{row['name']} {row['phase']}".strip()
        line = f"{line:32s}{calls:>7s}{row['ms']:10.2f}{'' if row['aside'] else format(row['share'], '.1%'):>8s}"
        if row["gflop"] and seconds:
            speed = 1e9 * row["gflop"] / seconds
            line += f"{row['gflop']:9.2f}{speed / 1e9:9.1f}{speed / peak:8.0%}"
        elif row["gb"] and seconds:
            speed = 1e9 * row["gb"] / seconds
            line += f"{'':26s}{speed / 1e9:8.1f}{speed / bandwidth:8.0%}"
        yield line.rstrip()


def layer_table(title, layers, step_ms):
    """Lines: milliseconds of each layer, forward and backward."""
    again = any(times["recompute"] for times in layers.values())
    phases = _PHASES if again else _PHASES[:2]
    yield f"{title:32s}" + "".join(f"{phase:>11s}" for phase in phases) + f"{'ms':>10s}{'share':>8s}"
    for name, times in layers.items():
        total = sum(times.values())
        yield f"{name:32s}" + "".join(f"{times[p]:11.2f}" for p in phases) + f"{total:10.2f}{total / step_ms:8.1%}"
