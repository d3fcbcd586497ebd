"""One side of benchmarks.decode, in its own process: python -m benchmarks.decode_side SIDE CONFIG_JSON."""

import json
import sys
import time

from benchmarks.harness import answer_requests, peak_rss


def our_generator(config, dtype):
    """Returns a function (prompts, n) -> (seconds of the prefill, [seconds of each further token], ids of text 0).

    Decoding is greedy.
    """
    import numpy as np

    from models import GPT, GPTConfig
    from models.generation import generate
    from models.kv_cache import KVCache
    from models.quantize import LinearBfloat16, quantize
    from tinygrad2.flat_buffers import FlatBuffers

    model = GPT(GPTConfig(**config["model"]), seed=config["seed"])
    FlatBuffers(model)
    model.eval()
    if dtype == "int8":
        quantize(model)
    elif dtype == "bfloat16":
        quantize(model, LinearBfloat16)
    cache = KVCache(model.config)

    def several_texts(prompts, n):
        steps, ids = [time.perf_counter()], []
        for step in generate(model, prompts, n, [None] * len(prompts), batch_size=len(prompts)):
            if step.text == 0:                                    # all texts have one more token
                steps.append(time.perf_counter())
                ids.append(step.token)
        seconds = np.diff(steps).tolist()
        return seconds[0], seconds[1:], ids

    def one_or_several(prompts, n):
        if len(prompts) > 1:
            return several_texts(prompts, n)
        (prompt,) = prompts
        cache.reset()
        start = time.perf_counter()
        ids = [int(np.argmax(model.next_logits([prompt], cache).numpy()))]
        prefill, seconds = time.perf_counter() - start, []
        for _ in range(n - 1):
            start = time.perf_counter()
            ids.append(int(np.argmax(model.next_logits([ids[-1:]], cache).numpy())))
            seconds.append(time.perf_counter() - start)
        return prefill, seconds, ids

    return one_or_several


def transformers_generator(config, use_generate):
    """The same with Hugging Face's GPT-2: its generate(), as users call it, or a bare loop over its forward pass."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(config["threads"])
    shape = config["model"]
    names = dict(n_positions=shape["block_size"], vocab_size=shape["vocab_size"], n_layer=shape["n_layer"],
                 n_head=shape["n_head"], n_embd=shape["n_embd"])  # fmt: skip
    device, dtype = config.get("device", "cpu"), getattr(torch, config.get("dtype", "float32"))
    model = GPT2LMHeadModel(GPT2Config(**names)).eval().to(device, dtype)

    @torch.inference_mode()
    def by_forward(prompts, n):
        start = time.perf_counter()
        out = model(torch.tensor(prompts, device=device), use_cache=True)
        new = out.logits[:, -1:].argmax(-1)
        ids = [int(new[0])]
        prefill, seconds = time.perf_counter() - start, []
        for _ in range(n - 1):
            start = time.perf_counter()
            out = model(new, past_key_values=out.past_key_values, use_cache=True)
            new = out.logits[:, -1:].argmax(-1)
            ids.append(int(new[0]))
            seconds.append(time.perf_counter() - start)
        return prefill, seconds, ids

    @torch.inference_mode()
    def by_generate(prompts, n):
        def run(n):
            start, ids = time.perf_counter(), torch.tensor(prompts, device=device)
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n,
                                 do_sample=False, use_cache=True, pad_token_id=0)  # fmt: skip
            return time.perf_counter() - start, out[0, ids.shape[1] :].tolist()

        prefill, _ = run(1)
        total, ids = run(n)
        return prefill, [(total - prefill) / (n - 1)] * (n - 1), ids

    return by_generate if use_generate else by_forward


def main():
    side, config = sys.argv[1], json.loads(sys.argv[2])
    if side.startswith("transformers"):
        generate = transformers_generator(config, use_generate=side.endswith("generate"))
    else:
        from tinygrad2.precision import use_matmul_precision
        from tinygrad2.system.threads import plan_threads

        plan_threads(config["threads"])
        dtype = side.partition("-")[2]
        use_matmul_precision("bfloat16" if dtype == "bfloat16" else "highest")
        generate = our_generator(config, dtype)

    def handle(prompts, n):
        prefill, seconds, ids = generate(prompts, n)
        return dict(prefill_ms=prefill * 1e3, ms=[s * 1e3 for s in seconds], ids=ids, peak_rss=peak_rss())

    answer_requests(handle)


if __name__ == "__main__":
    main()
