"""The parts `steps` and `losses` of benchmarks.gpu: training steps of each side, in turns."""

import statistics

from benchmarks.gpu_settings import config_of, products_of, read_limits
from benchmarks.gpu_sides import Sides
from benchmarks.harness import installed, ratio_of

WARMUP = 3  # steps before the first turn: there PyTorch compiles, and ours finds a place for each array
SLOW = 300  # milliseconds of a step from which a turn has fewer of them


def steps(args, clock):
    """Rows of each side at each batch size. All sides with the same products run in turns; the next three follow."""
    peaks, config = read_limits(args.folder), config_of(args)
    sizes = list(map(int, args.batch_sizes.split(",")))
    cells = [(products, B) for products in args.products.split(",")
             for B in (sizes if products != "float16" else sizes[len(sizes) // 2 :][:1])]  # fmt: skip
    sides = None
    for i, (products, B) in enumerate(cells):
        if sides is None or products != cells[i - 1][0]:
            if sides:
                sides.close()
            sides = Sides("benchmarks.gpu_side", "steps", config)
        if clock.left() < 0:
            yield dict(part="steps", products=products, batch_size=B, errors="no time was left")
            continue
        names = ["ours"] if products == "float16" else ["ours", "ours-tuned"]
        names += filter(None, args.against.split(",") if installed("torch") else [])
        if products in ("bfloat16", "float16") and installed("cudnn"):
            names.insert(1, "ours-cudnn")                         # --gpu-attention cudnn
        names = [name if products == "float32" else f"{name}-{products}" for name in names]
        yield from cell(sides, names, B, config, args, peaks, clock, clock.left() / (len(cells) - i))
    sides.close()


def cell(sides, names, B, config, args, peaks, clock, seconds):
    """Rows of sides that run in turns at one batch size, for about so many seconds, two turns at least."""
    end = clock.left() - seconds
    ms, losses, memory, errors = {}, {}, {}, {}
    timed, compared, gelu = {}, {}, {}

    def ask(name, steps, ask_driver=False):
        answer = sides.ask(name, batch_size=B, steps=steps, ask_driver=ask_driver)
        if "error" in answer:
            errors[name] = answer["error"]
            ms.pop(name, None)
        else:
            losses.setdefault(name, []).extend(answer["losses"])
            gelu[name] = answer["gelu"]
            memory[name] = answer["peak"], answer["of_process"] or memory.get(name, (0, None))[1]
            compared[name] = answer["memory"]
        return answer

    for name in names:
        answer = ask(name, WARMUP)
        if "error" not in answer:
            ms[name], timed[name] = [], args.timed if answer["ms"][-1] < SLOW else min(2, args.timed)
    for turn in range(args.turns):
        if turn > 1 and clock.left() < end:
            break
        for name in list(ms):
            answer = ask(name, 1 + timed[name], turn == 0)        # the first step asks the device for its memory again
            if "error" not in answer:
                ms[name].append(answer["ms"][1:])
        print(f"B={B} turn {turn + 1}: " + ", ".join(f"{s} {statistics.median(ms[s][-1]):.1f} ms" for s in ms),
              flush=True)  # fmt: skip
    V = config["model"]["vocab_size"]
    flops = train_flops(config) * B * config["seq_len"]
    for name in names:
        if name in errors:
            yield dict(part="steps", side=name, batch_size=B, seq_len=config["seq_len"], vocab_size=V,
                       products=products_of(name), errors=errors[name])  # fmt: skip
        else:
            row = step_row(name, B, config["seq_len"], ms, losses, memory, flops, peaks) | dict(vocab_size=V)
            yield row | (dict(gelu=gelu[name]) if gelu[name] else {})
            if compared[name]:
                yield memory_row(name, B, compared[name], memory[name][0])


def train_flops(config):
    from models.config import GPTConfig

    return GPTConfig(**config["model"]).train_flops_per_token()


def step_row(name, B, T, ms, losses, memory, flops, peaks):
    """What one side took. `torch_over_ours`: its median over that of ours with the same products."""
    products = products_of(name)
    ours = ms.get("ours" if products == "float32" else f"ours-{products}")
    times = sum(ms[name], [])
    median = statistics.median(times)
    first = next(iter(losses))
    peak, of_process = memory[name]
    row = dict(part="steps", side=name, batch_size=B, seq_len=T, products=products,
               min_ms=round(min(times), 2), median_ms=round(median, 2), tokens_per_s=round(B * T / median * 1e3),
               peak_memory_mb=round(peak / 1e6),
               losses_apart=float(f"{max(abs(a - b) for a, b in zip(losses[name], losses[first])):.2g}"))  # fmt: skip
    if of_process:
        row["process_memory_mb"] = round(of_process / 1e6)
    if ours:
        ratio, low, high = ratio_of(ms[name], ours)
        row.update(torch_over_ours=round(ratio, 3), lowest=round(low, 3), highest=round(high, 3))
    for kind, peak in peaks.items():
        if kind == products:
            row[f"share_of_{kind}_peak"] = round(flops / median * 1e3 / peak, 3)
    return row


def memory_row(name, B, compared, peak):
    """The memory of ours in MB: the plan beside the facts."""
    row = dict(part="memory", side=name, batch_size=B, products=products_of(name), peak_memory_mb=round(peak / 1e6))
    return row | {f"{what}_mb": round(size / 1e6, 1) for what, size in compared.items()}


def losses(args, clock, n=200, B=4):
    """The losses of n steps on a text in each precision against those of ours in float32."""
    n = 3 if args.tiny else n
    config = config_of(args) | dict(text=True)
    names = ["ours", "ours-bfloat16", "ours-float16", "ours-tf32"]
    if installed("torch"):
        names[3:3] = ["torch-bfloat16", "torch"]
    found = {}
    for name in names:
        if clock.left() < 0:
            yield dict(part="losses", side=name, errors="no time was left")
            continue
        sides = Sides("benchmarks.gpu_side", "steps", config)
        answer = sides.ask(name, batch_size=B, steps=n)
        sides.close()
        row = dict(part="losses", side=name, batch_size=B, steps=n, products=products_of(name))
        if "error" in answer:
            yield row | dict(errors=answer["error"])
            continue
        found[name] = answer["losses"]
        yield row | losses_row(found[name], found.get("ours"))


def losses_row(these, those):
    row = dict(first_loss=round(these[0], 4), loss=round(these[-1], 4))
    if those:
        differences = [a - b for a, b in zip(these, those)]
        last = differences[-50:]
        row.update(losses_apart=float(f"{max(map(abs, differences)):.2g}"),
                   last_50_apart=float(f"{abs(sum(last) / len(last)):.2g}"))  # fmt: skip
    return row
