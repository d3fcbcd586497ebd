"""Several threads, tasks and generators in one process: each has its own settings, and computes what it computes alone.
"""

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import inference
import ops
import train_gpt2
from models import GPT, GPTConfig
from models.quantize import quantize
from models.sampling import Sampling
from models.text_generation import stream_texts
from tinygrad2 import Function, Tensor, no_grad
from tinygrad2.dispatch import kernel_mode, kernels, use_kernels
from tinygrad2.distributed.world import World
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import observe, observers
from tinygrad2.optim import Adam, clip_scale, grad_norm
from tinygrad2.precision import matmul_precision, precision
from tinygrad2.recompute import recompute
from tinygrad2.system.threads import POOL
from tinygrad2.tensor import apply, is_recording, recording
from tinygrad2.tokenizers.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def frequent_switches():
    """Python changes threads a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)
    assert is_recording() and not observers() and kernel_mode() == "auto" and precision() == "highest"


def in_threads(*functions):
    """What each function returns, called in a thread of its own, all at once. Raises what one raises."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block, outside, inside", [
    (no_grad, is_recording, (True, False)),
    (lambda: kernels("reference"), kernel_mode, ("auto", "reference")),
    (lambda: observe("me"), observers, ((), ("me",))),
    (lambda: matmul_precision("high"), precision, ("highest", "high")),
], ids=["no_grad", "kernels", "observe", "matmul_precision"])  # fmt: skip
class TestSettings:
    def test_threads_do_not_see_each_others_blocks(self, block, outside, inside):
        entered, looked = threading.Event(), threading.Event()

        def enter():
            with block():
                entered.set()
                assert looked.wait(20)
                return outside()

        def look():
            assert entered.wait(20)
            value = outside()
            looked.set()
            return value

        assert in_threads(enter, look) == [inside[1], inside[0]]

    def test_blocks_that_overlap_in_two_threads_leave_nothing(self, block, outside, inside):
        first, second = block(), block()
        thread = ThreadPoolExecutor(1)
        with first:
            thread.submit(second.__enter__).result()
        assert outside() == inside[0] and thread.submit(outside).result() == inside[1]
        thread.submit(second.__exit__, None, None, None).result()
        assert thread.submit(outside).result() == inside[0]

    def test_tasks_take_turns_in_their_own_blocks(self, block, outside, inside):
        async def task(enters):
            seen = set()
            with block() if enters else contextlib.nullcontext():
                for _ in range(5):
                    await asyncio.sleep(0)
                    seen.add(outside())
            return seen

        async def main():
            return await asyncio.gather(task(True), task(False), task(True))

        assert asyncio.run(main()) == [{inside[1]}, {inside[0]}, {inside[1]}]

    def test_a_task_has_the_block_that_it_was_made_in(self, block, outside, inside):
        async def look():
            return outside()

        async def main():
            with block():
                made, in_thread = asyncio.create_task(look()), asyncio.to_thread(outside)
                return await made, await in_thread

        assert asyncio.run(main()) == (inside[1], inside[1])

    def test_a_generator_keeps_its_block_from_its_consumer(self, block, outside, inside):
        def generator():
            with block():
                while True:
                    yield outside()

        texts = generator()
        for seen in itertools.islice(texts, 3):
            assert seen == inside[1] and outside() == inside[0]
        texts.close()
        assert outside() == inside[0]

    def test_generators_that_take_turns_and_end_in_any_order(self, block, outside, inside):
        def generator(n):
            with block():
                for _ in range(n):
                    yield outside()

        for seen in itertools.zip_longest(generator(1), generator(4), generator(2)):
            assert set(seen) <= {inside[1], None} and outside() == inside[0]
        with block():
            turns = generator(3), generator(5)
            next(turns[0]), next(turns[1])
            turns[0].close()
            assert outside() == inside[1] or block().value == "me"
        turns[1].close()
        assert outside() == inside[0]

    def test_a_generator_around_a_generator(self, block, outside, inside):
        def inner():
            yield outside()
            yield outside()

        def outer():
            with block():
                yield from inner()

        texts = outer()
        assert next(texts) == inside[1] and outside() == inside[0] and next(texts) == inside[1]
        del texts
        gc.collect()
        assert outside() == inside[0]

    def test_a_generator_that_ends_in_another_thread(self, block, outside, inside):
        def generator():
            with block():
                yield
                yield

        texts = generator()
        next(texts)
        ThreadPoolExecutor(1).submit(texts.close).result()
        assert outside() == inside[0]
        with block():
            pass
        assert outside() == inside[0]

    def test_an_asynchronous_generator(self, block, outside, inside):
        async def generator():
            with block():
                for _ in range(3):
                    await asyncio.sleep(0)
                    yield outside()

        async def main():
            async for seen in generator():
                assert seen == inside[1] and outside() == inside[0]

        asyncio.run(main())

    def test_context_managers_made_of_generators_are_blocks(self, block, outside, inside):
        @contextlib.contextmanager
        def manager():
            with block():
                yield

        @contextlib.asynccontextmanager
        async def asynchronous():
            with block():
                yield

        async def main():
            async with asynchronous():
                return outside()

        with manager():
            assert outside() == inside[1]
        with contextlib.ExitStack() as stack:
            stack.enter_context(block())
            assert outside() == inside[1]
        assert asyncio.run(main()) == inside[1]
        assert outside() == inside[0]

    def test_as_decorators(self, block, outside, inside):
        @block()
        def function():
            return outside()

        @block()
        def generator():
            yield outside()
            yield outside()

        @block()
        async def coroutine():
            await asyncio.sleep(0)
            return outside()

        assert function() == inside[1] and in_threads(function, outside) == [inside[1], inside[0]]
        for seen in generator():
            assert seen == inside[1] and outside() == inside[0]
        assert asyncio.run(coroutine()) == inside[1] and outside() == inside[0]


@pytest.fixture
def fixture_with_a_block():
    with no_grad():
        yield


def test_a_fixture_with_a_block_is_one(fixture_with_a_block):
    assert not is_recording()
    with recording():
        assert is_recording()
    assert not is_recording()
    with recording():  # for the check at the end of each test
        return


def test_use_kernels_holds_in_all_threads_that_say_nothing_else():
    def other():
        with kernels("auto"):
            return kernel_mode()

    use_kernels("reference")
    try:
        assert in_threads(kernel_mode, other) == ["reference", "auto"]
    finally:
        use_kernels("auto")


def test_settings_hold_in_the_parts_of_a_split():
    seen, before = [], POOL.threads
    POOL.resize(3)
    try:
        with no_grad(), np.errstate(over="ignore"):
            POOL.split(lambda lo, hi: seen.append((is_recording(), np.geterr()["over"])), 3)
    finally:
        POOL.resize(before)
    assert seen == [(False, "ignore")] * 3


def test_recompute_runs_as_forward_did_wherever_backward_is_called():
    modes = []

    class Noted(Function):
        def forward(self, x):
            modes.append(kernel_mode())
            return x * 1.0

        def backward(self, dout):
            return (dout,)

    x = Tensor([1.0, 2.0], requires_grad=True)
    with kernels("reference"):
        y = recompute(lambda x: apply(Noted, x), x).sum()
    with no_grad():
        ThreadPoolExecutor(1).submit(y.backward).result()
        z = recompute(lambda x: apply(Noted, x), x)
    assert not z.requires_grad
    assert modes == ["reference", "reference", "auto"] and x.grad.tolist() == [1.0, 1.0]


# -- computing ---------------------------------------------------------------------------------------------------------


def train(config, seed, steps, recompute=False, dropout=0.0):
    """A training of random tokens: the bytes of all losses, and of the weights."""
    from models.dropout import set_dropout

    model = GPT(GPTConfig(**config, dropout=dropout), seed=seed, recompute=recompute)
    flat, rng, losses = FlatBuffers(model), np.random.default_rng(seed), []
    optimizer = Adam(flat, weight_decay=0.1)
    for step in range(steps):
        batch = rng.integers(0, config["vocab_size"], (4, config["block_size"] + 1))
        flat.zero_grad()
        set_dropout(model, seed, step)
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step(1e-2, float(clip_scale(grad_norm(flat.grad), 1.0)))
        losses.append(loss.data.tobytes())
    return losses, flat.data.tobytes()


SMALL = dict(vocab_size=300, block_size=32, n_layer=2, n_head=2, n_embd=32)
WIDE = dict(vocab_size=9000, block_size=64, n_layer=1, n_head=4, n_embd=128)     # products of several parts
TOKENIZER = Tokenizer.train("the cat, the hat and the rat", vocab_size=260)


def write(model, seed, greedy):
    """Texts of `model` by models/text_generation, as (text, ids, log-probabilities)."""
    knobs = Sampling(0.0 if greedy else 0.9, top_p=0.95)
    prompts = [TOKENIZER.encode(f"the cat {seed}"), [seed], list(range(40))]
    pieces = stream_texts(model, TOKENIZER, prompts, 12, sampling=knobs, seed=seed, samples=[0, 1, 2],
                          batch_size=1 + seed % 3, logprobs=True)  # fmt: skip
    return [(piece.index, piece.text, piece.token, piece.logprob) for piece in pieces]


def serve_while_training(trainings, requests, seconds):
    """Each of `trainings` in a thread, over and over, and 8 threads that answer `requests`: all for some seconds, and
    each at least once. Every result must be that of the call alone."""
    alone = [call() for call in requests]
    trained_alone = [call() for call in trainings]
    deadline, counts = time.monotonic() + seconds, []

    def repeat(calls, expected, start):
        for n in itertools.count(start):
            if n >= start + len(calls) and time.monotonic() > deadline:
                return counts.append(n - start)
            assert calls[n % len(calls)]() == expected[n % len(calls)]

    servers = [lambda k=k: repeat(requests, alone, k) for k in range(8)]
    trainers = [lambda k=k: repeat([trainings[k]], [trained_alone[k]], 0) for k in range(len(trainings))]
    in_threads(*servers, *trainers)
    return counts


def requests_for(*models):
    return [lambda m=m, s=s, g=g: write(m, s, g) for m in models for s, g in ((1, True), (2, False), (5, False))]


@pytest.fixture(params=["auto", "reference"])
def mode(request):
    use_kernels(request.param)
    yield request.param
    use_kernels("auto")


def test_a_server_with_eight_threads_while_one_trains(mode):
    shapes = (SMALL, WIDE) if mode == "auto" else (SMALL,)
    trainings = [lambda: train(shapes[-1], 1, 4, dropout=0.1)]
    requests = requests_for(*(GPT(GPTConfig(**shape), seed=3).eval() for shape in shapes))
    assert len(serve_while_training(trainings, requests, 1.0)) == 9


@pytest.mark.skipif(not ops.have_cpu_kernels(), reason="both modes are the same without Numba")
def test_kernels_in_some_threads_and_reference_implementations_in_others():
    """Products of NumPy want all threads of BLAS, ours one: the bits of neither depend on the other."""
    def reference():
        with kernels("reference"):
            return train(WIDE, 1, 2)

    model = quantize(GPT(GPTConfig(**WIDE), seed=4).eval())  # its prompts go through NumPy, its tokens through a kernel
    trainings = [reference, lambda: train(WIDE, 2, 3), lambda: train(SMALL, 3, 8, recompute=True)]
    assert len(serve_while_training(trainings, requests_for(model), 1.0)) == 11


@pytest.mark.parametrize("seconds", [pytest.param(5, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.long)])
def test_a_server_for_a_while(seconds):
    small, wide = GPT(GPTConfig(**SMALL), seed=3).eval(), GPT(GPTConfig(**WIDE), seed=4).eval()
    serve_while_training([lambda: train(WIDE, 1, 4, dropout=0.1)], requests_for(small, wide), seconds)


def test_a_text_whose_tokens_are_asked_for_by_different_threads():
    """As web frameworks do with a generator: each next() in another thread, in a copy of the request's context."""
    model = GPT(GPTConfig(**SMALL), seed=3).eval()

    async def request(seed):
        knobs = dict(sampling=Sampling(0.9), seed=seed, samples=[0])
        stream, pieces = stream_texts(model, TOKENIZER, [[seed]], 12, **knobs), []
        while (piece := await asyncio.to_thread(next, stream, None)) is not None:
            pieces.append(piece.text)
        return "".join(pieces)

    async def requests():
        return await asyncio.gather(*map(request, range(6)))

    alone = [asyncio.run(request(seed)) for seed in range(6)]
    assert asyncio.run(requests()) == alone and len(set(alone)) == 6


def test_a_tokenizer_that_many_threads_use(monkeypatch):
    """Its cache is cleared all the time."""
    monkeypatch.setattr("tinygrad2.tokenizers.tokenizer.MAX_CACHE", 5)
    words = [f"word{n}" for n in range(40)]
    tokenizer = Tokenizer.train(" ".join(words * 3), vocab_size=320)
    texts = [" ".join(words[n:] + words[:n]) for n in range(8)]
    alone = [Tokenizer(list(tokenizer.merges)).encode(text) for text in texts]
    together = in_threads(*(lambda text=text: [tokenizer.encode(text) for _ in range(30)] for text in texts))
    assert together == [[ids] * 30 for ids in alone]


def wait_for(child, seconds=60):
    """The exit status of a child process; it is killed if it takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return ended[1]
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: a process with threads
def test_a_fork_while_threads_compute():
    """Neither the child nor a thread of the parent waits for threads that the fork has ended."""
    model, x = GPT(GPTConfig(**WIDE), seed=4).eval(), np.arange(64).reshape(1, 64)
    with no_grad():
        expected = model.loss(x, x).item()
    done, status = threading.Event(), []

    def compute():
        n = 0
        while not done.is_set() or not n:
            write(model, 1, True)
            n += 1
        return n

    def fork():
        for _ in range(3):
            time.sleep(0.05)
            if (child := os.fork()) == 0:
                with no_grad():
                    os._exit(model.loss(x, x).item() != expected)
            status.append(wait_for(child))
        done.set()

    in_threads(compute, compute, fork)
    assert status == [0, 0, 0]


def test_leases_of_two_threads_are_never_the_same_memory():
    workspace = pytest.importorskip("ops.kernels.cpu.workspace")
    deadline = time.monotonic() + 1.0

    def work(k):
        n = 0
        while time.monotonic() < deadline:
            lease = workspace.Lease(1000 + 100 * (n % 3))
            lease.array[:] = k
            time.sleep(0)
            assert (lease.array == k).all()
            n += 1
        return n

    assert all(in_threads(*(lambda k=k: work(k) for k in range(4))))
    assert len(workspace._kept) <= workspace._MOST


def test_the_switch_of_blas_keeps_both_kinds_apart_and_lets_all_run():
    blas_threads = pytest.importorskip("ops.kernels.cpu.blas_threads")
    all_ = POOL.threads or 1
    now, deadline = [all_], time.monotonic() + 1.0
    switch = blas_threads.ThreadSwitch(now.append)
    inside = {switch.one: set(), switch.all: set()}

    def work(side):
        n, me = 0, object()
        while time.monotonic() < deadline:
            with side:
                inside[side].add(me)
                time.sleep(0)
                assert not inside[side.other] and now[-1] == (1 if side is switch.one else all_)
                inside[side].remove(me)
            n += 1
        return n

    counts = in_threads(*(lambda side=side: work(side) for side in [switch.one, switch.all] * 3))
    assert min(counts) > max(counts) / 10
    assert not switch.inside and switch.now is switch.all and now[-1] == all_


def test_parts_of_a_split_may_call_kernels():
    """Also while other threads want the pool, and BLAS for themselves."""
    model, x = GPT(GPTConfig(**SMALL), seed=3).eval(), np.arange(64).reshape(2, 32)
    with no_grad():
        expected = model.loss(x, x).item()
    before = POOL.threads
    POOL.resize(2)

    def split():
        losses = []
        for _ in range(20):
            POOL.split(lambda lo, hi: losses.append(model.loss(x, x).item()), 2)
        return set(losses)

    def reference():
        with kernels("reference"):
            return {round(model.loss(x, x).item(), 4) for _ in range(20)}

    try:
        assert in_threads(split, split, reference, reference) == [{expected}] * 2 + [{round(expected, 4)}] * 2
    finally:
        POOL.resize(before)


# -- programs ----------------------------------------------------------------------------------------------------------

TEXT = "Tom had a red ball. Anna had a blue boat. They went to the big park, and it was fun. " * 60
FLAGS = ["--n-head", "1", "--n-embd", "16", "--block-size", "16", "--vocab-size", "300", "--steps", "4",
         "--batch-size", "4", "--sample-tokens", "5", "--checkpoint-every", "2"]  # fmt: skip


def run_training(folder, *flags):
    """train_gpt2.main in the calling thread; the bytes of the weights it has written."""
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT)
    paths = ["--data", folder / "text.txt", "--run-dir", folder / "run", "--weights-out", folder / "weights.bin"]
    argv = [*map(str, paths), *FLAGS, *flags]
    assert train_gpt2.main(World(), argv) == 0
    _, metrics = None, (folder / "run" / "metrics.jsonl").read_text()
    weights = load(folder / "weights.bin")
    return weights, [line.split('"loss"')[1].split(",")[0] for line in metrics.splitlines() if '"loss"' in line]


def load(path):
    from tinygrad2.io.weights import load_weights

    return {name: array.tobytes() for name, array in load_weights(str(path)).tensors.items()}


def test_two_trainings_in_two_threads(tmp_path):
    """With different models, flags and kernels: each writes what it writes alone."""
    kinds = [("--n-layer", "1", "--seed", "1"), ("--n-layer", "2", "--seed", "2", "--kernels", "reference"),
             ("--n-layer", "1", "--dropout", "0.1", "--recompute")]  # fmt: skip
    alone = [run_training(tmp_path / f"alone{k}", *kind) for k, kind in enumerate(kinds)]
    together = in_threads(*(lambda k=k: run_training(tmp_path / f"thread{k}", *kinds[k]) for k in range(len(kinds))))
    assert together == alone


def test_inference_main_in_threads(tmp_path, capfdbinary):
    """One that generates with each kind of kernels, while a training runs."""
    run_training(tmp_path / "model")
    weights = str(tmp_path / "model" / "weights.bin")
    flags = ["--weights", weights, "--prompt", "Tom", "--greedy", "--max-new-tokens", "8", "--json"]
    capfdbinary.readouterr()
    assert inference.main(flags) == 0
    line = capfdbinary.readouterr().out
    runs = [lambda mode=mode: inference.main([*flags, "--kernels", mode]) for mode in ("auto", "reference") * 2]
    assert in_threads(lambda: len(train(SMALL, 1, 10)), *runs) == [2, 0, 0, 0, 0]
    texts = capfdbinary.readouterr().out.splitlines()
    assert [text.split(b'"logprobs"')[0] for text in texts] == [line.split(b'"logprobs"')[0]] * 4
