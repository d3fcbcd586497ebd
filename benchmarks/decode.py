"""Time of generation, token by token: ours in float32, bfloat16 and int8, and Hugging Face's transformers, in turns.

    python -m benchmarks.decode --model gpt2 --prompt-len 64 --new-tokens 64
    python -m benchmarks.decode --model gpt2 --texts 8              eight texts together; times per token of each
    python -m benchmarks.decode --perplexity trained_weights.bin data/dummy_data2.txt     perplexity in each dtype

The prompt is processed in one forward pass (prefill), timed separately; then each token is one pass over all weights.
The weights are random: the times do not depend on them.
"""

import argparse
import json
import math
import os
import statistics

from benchmarks.harness import Side, installed, load_average, memory_read, ratio_of, save
from tinygrad2.system.threads import available_cores

OURS = ("ours", "ours-bfloat16", "ours-int8")  # the latter two for a single text
BYTES = {"ours-bfloat16": 2, "ours-int8": 1}  # of a weight; others have 4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2", help="preset (default: gpt2)")
    parser.add_argument("--prompt-len", type=int, default=64, help="tokens of the prompt (default: 64)")
    parser.add_argument("--texts", type=int, default=1, help="texts generated together (default: 1)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens to generate (default: 64)")
    parser.add_argument("--against", default="transformers-generate,transformers",
                        help="transformers-generate: its generate(), as users call it; transformers: a bare loop over "
                             "its forward pass")
    parser.add_argument("--threads", type=int, default=len(available_cores()), help="default: all cores")
    parser.add_argument("--turns", type=int, default=5, help="turns per side (default: 5)")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--perplexity", nargs=2, metavar=("WEIGHTS", "TEXT"),
                        help="print the perplexity of a text in float32, bfloat16 and int8 instead")
    parser.add_argument("--save", action="store_true", help="add the rows to benchmarks/results")
    args = parser.parse_args()
    if args.perplexity:
        rows = perplexities(*args.perplexity)
        if args.save:
            save("int8_quality", rows)
    else:
        time_it(args)


def time_it(args):
    from models.config import GPTConfig

    model = GPTConfig.preset(args.model)
    config = json.dumps(dict(model=model.to_dict(), seed=args.seed, threads=args.threads))
    others = [name for name in args.against.split(",") if name]
    if others and not (installed("transformers") and installed("torch")):
        print("transformers is not installed and left out: pip install transformers torch==2.13.0")
        others = []
    ours = OURS if args.texts == 1 else OURS[:1]
    sides = [Side(name, "benchmarks.decode_side", name, config) for name in (*ours, *others)]
    prompts = [[(7 * i + 3 + 11 * n) % model.vocab_size for i in range(args.prompt_len)] for n in range(args.texts)]
    ms, prefill, limits = {s.name: [] for s in sides}, {s.name: [] for s in sides}, []
    for turn in range(-1, args.turns):                            # turn -1 warms up
        for side in sides:
            answer = side.ask(prompts=prompts, n=args.new_tokens)
            if turn >= 0:
                ms[side.name].append(answer["ms"])
                prefill[side.name].append(answer["prefill_ms"])
        if turn >= 0:
            limits.append(memory_read(args.threads))
    for side in sides:
        side.close()
    report(args, model, ms, prefill, max(limits))


def report(args, model, ms, prefill, bandwidth):
    C, L, V = model.n_embd, model.n_layer, model.vocab_size
    weights = 12 * L * C * C + V * C
    print(f"{args.model}, {args.texts} text(s), prompt {args.prompt_len}, {args.new_tokens} tokens, {args.threads} "
          f"thread(s); "
          f"memory is read at {bandwidth / 1e9:.1f} GB/s; load {load_average()}\n")
    rows = []
    for name, turns in ms.items():
        all_ms = sum(turns, [])
        median = statistics.median(all_ms)
        ratio, low, high = ratio_of(turns, ms["ours"])
        read = weights * BYTES.get(name, 4) / median * 1e3
        rows.append(dict(
            model=args.model, side=name, threads=args.threads, texts=args.texts, prompt=args.prompt_len,
            min_ms=round(min(all_ms), 2), median_ms=round(median, 2),
            tokens_per_s=round(args.texts * 1e3 / median, 1), times_ours=round(ratio, 3),
            lowest=round(low, 3), highest=round(high, 3), prefill_ms=round(statistics.median(prefill[name]), 1),
            weights_gb_s=round(read / 1e9, 1), share_of_memory=round(read / bandwidth, 2),
        ))  # fmt: skip
        rate = args.texts * 1e3 / median
        print(f"{name:21} min {min(all_ms):7.2f}  median {median:7.2f} ms a token  {rate:6.1f} tok/s  "
              f"x{ratio:.2f} ours ({low:.2f} .. {high:.2f})  prefill {rows[-1]['prefill_ms']:6.1f} ms  "
              f"{read / 1e9:5.1f} GB/s of weights, {100 * read / bandwidth:.0f}%")
    if args.save:
        save("decode", rows)


def perplexities(weights, path):
    """Returns rows of results: loss and perplexity of a text, in float32, bfloat16 and int8."""
    from models.pretrained import load_pretrained
    from models.quantize import LinearBfloat16, quantize
    from tinygrad2.mixed_precision import mixed_precision

    rows = []
    for side in ("float32", "bfloat16", "int8"):
        model, tokenizer, _ = load_pretrained(weights)
        if side == "int8":
            quantize(model)
        elif side == "bfloat16":
            quantize(model, LinearBfloat16)
        with mixed_precision("bfloat16" if side == "bfloat16" else "float32"):
            loss, tokens = mean_loss(model, tokenizer, path)
        rows.append(dict(weights=os.path.basename(weights), text=os.path.basename(path), side=side, tokens=tokens,
                         loss=round(loss, 5), perplexity=round(math.exp(loss), 4)))  # fmt: skip
        print(f"{side:8} loss {loss:.5f}  perplexity {math.exp(loss):.4f}  over {tokens:,} tokens")
    return rows


def mean_loss(model, tokenizer, path):
    """Returns (mean loss in nats per token, number of tokens) of a text, in windows of block_size without overlap."""
    import numpy as np

    import ops
    from tinygrad2.datasets.text_cache import encode_documents, split_documents
    from tinygrad2.io.files import read_bytes
    from tinygrad2.tensor import no_grad

    ids = np.asarray(encode_documents(split_documents(read_bytes(path)), tokenizer), np.int64)
    T = min(model.config.block_size, len(ids) - 1)
    total = count = 0
    for start in range(0, len(ids) - T, T):
        x, y = ids[None, start : start + T], ids[None, start + 1 : start + T + 1]
        with no_grad():
            total += ops.cross_entropy(model.logits(model.hidden(x)), y).item() * T
        count += T
    return total / count, count


if __name__ == "__main__":
    main()
