"""python -m tinygrad2 profile: what it reports is what the step does, adds up, and changes nothing."""

import contextlib
import gzip
import io
import json
import queue
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from marks import slow_but
from test_train import ROOT, SMALL, TEXT

import ops
import train_gpt2
from ops.kernels.cpu import linear_cross_entropy
from tinygrad2.commands import profile
from tinygrad2.commands.profile_tables import BETWEEN
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.clocks import clock_offset
from tinygrad2.distributed.mpirun import environment, find_mpirun, have_mpi
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.function import observe
from tinygrad2.monitor import op_costs
from tinygrad2.monitor.profiler import Profiler
from tinygrad2.monitor.trace import is_trace
from tinygrad2.system.threads import POOL
from tinygrad2.tensor import Tensor

MODEL = "--n-layer 2 --n-head 2 --n-embd 32 --block-size 24 --vocab-size 300 --batch-size 4".split()
VARIANTS = {
    "plain": [],
    "reference": ["--kernels", "reference", "--micro-batch-size", "2"],
    "recompute": ["--recompute", "--dropout", "0.1"],
    "micro-batches": ["--micro-batch-size", "1", "--no-tied-head", "--no-bias"],
}


@pytest.fixture(scope="module", params=slow_but(("plain", "recompute"), VARIANTS))
def profiled(request, tmp_path_factory):
    """(flags, the object that --json prints, the trace)"""
    flags, path = MODEL + VARIANTS[request.param], tmp_path_factory.mktemp("profile") / "trace.json"
    output = output_of(profile.main, [*flags, "--measure", "2", "--warm-up", "1", "--json", "--trace", str(path)])
    return flags, json.loads(output), json.loads(path.read_text(encoding="utf-8"))


def output_of(main, *arguments):
    """What it prints; it returns 0."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(*arguments) == 0
    return text.getvalue()


def a_trainer(flags):
    config, gpt_config, _ = train_gpt2.parse(flags)
    tokens = np.random.default_rng(1).integers(0, gpt_config.vocab_size, 5000)
    trainer = train_gpt2.Trainer(config, gpt_config, World())
    return trainer, DataLoader(tokens, config.batch_size, gpt_config.block_size, seed=config.seed, order=config.order)


def by_phase(result):
    return {(row["name"], row["phase"]): row for row in result["rows"] if row["phase"]}


def test_the_rows_add_up_to_the_step(profiled):
    _, result, _ = profiled
    assert sum(row["ms"] for row in result["rows"]) == pytest.approx(result["step_ms"], rel=1e-9)
    assert sum(row["share"] for row in result["rows"]) == pytest.approx(1, rel=1e-9)
    assert all(row["ms"] >= 0 for row in result["rows"])
    assert sum(result["profiled_ms"]) / 2 == pytest.approx(result["step_ms"]) and len(result["plain_ms"]) == 2
    names = {row["name"] for row in result["rows"]}
    assert {BETWEEN, "data", "optimizer", "gradient norm", "sum of gradients", "losses of all ranks"} <= names
    ops_ms = sum(row["ms"] for row in by_phase(result).values())
    for table in ("layers", "parts"):
        assert sum(sum(times.values()) for times in result[table].values()) == pytest.approx(ops_ms)
    assert set(result["layers"]) >= {"wte", "wpe", "h.0", "h.1", "ln_f", "model"}
    assert set(result["parts"]) >= {"ln_1", "attn.c_attn", "attn.head", "attn.c_proj", "mlp", "block"}


class Counter:
    """An observer that counts what is computed, in its own way."""

    def __init__(self):
        self.calls = {}

    def inside(self, module):
        return contextlib.nullcontext()

    def before(self, node):
        pass

    def count(self, node, phase):
        self.calls[node.name, phase] = self.calls.get((node.name, phase), 0) + 1

    def after_forward(self, node, arrays, results):
        self.count(node, "forward")

    def after_backward(self, node, dout, dinputs):
        self.count(node, "backward")

    def after_leaf(self, node, i, leaf, gradient):
        pass


def test_every_op_of_the_step_appears(profiled):
    flags, result, _ = profiled
    trainer, loader = a_trainer(flags)
    counter = Counter()
    with kernels(trainer.config.kernels), observe(counter):
        trainer.step(loader)
    reported = {}
    for (name, phase), row in by_phase(result).items():
        key = name, "forward" if phase == "recompute" else phase
        reported[key] = reported.get(key, 0) + row["calls"]
    assert reported == counter.calls


def test_products_are_those_of_the_formula(profiled):
    flags, result, _ = profiled
    config, gpt_config, _ = train_gpt2.parse(flags)
    c, tokens = gpt_config, config.batch_size * gpt_config.block_size
    vectors = c.count_parameters() - c.n_layer * 12 * c.n_embd**2 - c.vocab_size * c.n_embd * (2 - c.tied_head)
    per_token = c.train_flops_per_token() - 6 * (vectors - c.block_size * c.n_embd)     # of matrices only, and
    if not c.tied_head:
        per_token -= 6 * c.vocab_size * c.n_embd                                       # looked up, not multiplied
    per_token -= 6 * c.n_layer * c.n_embd * (c.block_size - 1)                         # without what the mask hides
    block = c.n_layer * (24 * c.n_embd**2 + 2 * c.n_embd * (c.block_size + 1))         # forward, of all blocks
    expected = tokens * (per_token + (block if config.recompute else 0)) / 1e9
    assert sum(row["gflop"] for row in result["rows"]) == pytest.approx(expected, rel=1e-12)
    forward = sum(row["gflop"] for (_, phase), row in by_phase(result).items() if phase == "forward")
    assert forward == pytest.approx(tokens * per_token / 3e9, rel=1e-12)


def test_losses_are_those_of_an_unprofiled_training():
    flags = [*MODEL, "--dropout", "0.1", "--micro-batch-size", "2"]
    (plain, loader), (profiled, other) = a_trainer(flags), a_trainer(flags)
    profiler = Profiler(profiled)
    for i in range(4):
        step = profiler.step if i % 2 else profiled.step
        assert plain.step(loader) == step(other)
    assert plain.flat.data.tobytes() == profiled.flat.data.tobytes() and len(profiler.steps) == 2
    for thing in (profiled, profiled.reducer, profiled.optimizer, profiled.model, other, POOL, profiled.world):
        assert not any(callable(value) and "<locals>" in value.__qualname__ for value in vars(thing).values()
                       if hasattr(value, "__qualname__"))  # fmt: skip


def test_the_losses_of_the_command_are_those_of_the_training(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL.split(), "--data", "text.txt", "--steps", "5"]
    losses = json.loads(output_of(profile.main, [*flags, "--measure", "2", "--warm-up", "1", "--json"]))["losses"]
    output_of(train_gpt2.main, World(), [*flags, "--sample-tokens", "1"])
    with open("run/metrics.jsonl", encoding="utf-8") as file:
        assert losses == [json.loads(line)["loss"] for line in file]


# -- operations and bytes ----------------------------------------------------------------------------------------------


class Collector(Counter):
    def after_forward(self, node, arrays, results):
        self.calls = op_costs.products(node, arrays, results), op_costs.forward_bytes(node, arrays, results)


def cost_of(function, *shapes):
    tensors = [Tensor(np.ones(shape, np.float32), requires_grad=True) for shape in shapes]
    with observe(Collector()) as collector:
        function(*tensors)
    return collector.calls


@pytest.mark.parametrize(
    "a, b, flops",
    [
        ((3, 4), (4, 5), 120),
        ((2, 3, 4), (4, 5), 240),
        ((2, 1, 3, 4), (7, 4, 5), 1680),
        ((4,), (4,), 8),
        ((4,), (4, 5), 40),
        ((3, 4), (4,), 24),
    ],
)
def test_operations_of_a_product(a, b, flops):
    assert cost_of(lambda x, y: x @ y, a, b)[0] == (flops, 2 * flops)


def test_operations_of_attention_with_a_cache():
    (forward, backward), _ = cost_of(ops.attention, (2, 3, 8), (2, 5, 8), (2, 5, 8))   # queries see 3, 4, 5 keys
    assert forward == 2 * (2 * 2 * (3 + 4 + 5) * 8) and backward == 2 * forward


def test_gradients_that_nobody_wants_are_not_counted():
    x, weight = Tensor(np.ones((4, 8), np.float32)), Tensor(np.ones((8, 2), np.float32), requires_grad=True)
    with observe(Collector()) as collector:
        ops.linear(x, weight, None)
    assert collector.calls[0] == (128, 128)


def test_bytes_are_each_array_once_and_views_are_free():
    assert cost_of(lambda x: x.exp(), (1000,)) == ((0, 0), 8000)
    assert cost_of(lambda x, y: x + y, (10, 100), (100,)) == ((0, 0), 2 * 4000 + 400)
    assert cost_of(lambda x: x.reshape(10, 100), (1000,))[1] == 0
    assert cost_of(lambda x: ops.embedding(x, np.array([1, 2, 2])), (50, 16))[1] == 2 * 3 * 64 + 24


@pytest.mark.skipif(not ops.have_cpu_kernels(), reason="there are no kernels")
def test_a_kernel_that_computes_gradients_in_forward_has_their_operations_there(monkeypatch):
    monkeypatch.setattr(linear_cross_entropy, "LOGITS_CHUNK", 4000)
    x, weight = (Tensor(np.ones(shape, np.float32), requires_grad=True) for shape in ((20, 8), (100, 8)))
    with observe(Collector()) as collector:
        ops.linear_cross_entropy(x, weight, np.zeros(20, np.int64))
    assert collector.calls[0] == (3 * 2 * 20 * 8 * 100, 0)


# -- the trace ---------------------------------------------------------------------------------------------------------


def check_nesting(trace):
    """Complete events of a track are disjoint or inside each other, to the 1 ns to which times are rounded."""
    tracks = {}
    for event in trace["traceEvents"]:
        assert event["ph"] in "XMC" and isinstance(event["pid"], int) and isinstance(event["name"], str)
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for events in tracks.values():
        stack = []
        for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
            while stack and stack[-1]["ts"] + stack[-1]["dur"] <= event["ts"] + 2e-3:
                stack.pop()
            if stack:
                assert event["ts"] + event["dur"] <= stack[-1]["ts"] + stack[-1]["dur"] + 4e-3, (event, stack[-1])
            stack.append(event)
    return tracks


def inside(event, other):
    return other["ts"] - 2e-3 <= event["ts"] and event["ts"] + event["dur"] <= other["ts"] + other["dur"] + 4e-3


def test_the_trace_nests_and_has_every_op(profiled):
    flags, result, trace = profiled
    tracks = check_nesting(trace)
    main = tracks[0, 0]
    (step,) = [event for event in main if event["cat"] == "step"]
    assert step["dur"] / 1e3 in [pytest.approx(ms, abs=1e-3) for ms in result["profiled_ms"]]
    assert all(inside(event, step) for event in main)
    for (name, phase), row in by_phase(result).items():
        shown = name if phase == "forward" else f"{name} ({phase})"
        events = [event for event in main if event["name"] == shown and event["cat"] == phase]
        assert len(events) == row["calls"], (name, phase)
        layers = [event["args"]["layer"] for event in events]
        for event, layer in zip(events, layers):  # every op is inside its layer's span
            assert not layer or any(e["cat"] == "layer" and e["name"] == layer and inside(event, e) for e in main)
    recorded = {name: e["args"]["name"] for e in trace["traceEvents"] if (name := e["name"]).endswith("_name")}
    assert recorded["process_name"].startswith("rank 0 on ")
    assert any(e["ph"] == "C" and e["args"]["MB"] > 1 for e in trace["traceEvents"])
    if "--kernels" not in flags and ops.have_cpu_kernels():
        assert any(event["cat"] == "part" for event in main)


def test_a_trace_may_be_compressed_and_the_report_is_readable(tmp_path):
    path = tmp_path / "trace.json.gz"
    text = output_of(profile.main, [*MODEL, "--measure", "1", "--warm-up", "0", "--trace", str(path)])
    check_nesting(json.loads(gzip.decompress(path.read_bytes())))
    for words in ("mlp backward", BETWEEN, "of peak", "overhead  steps without profiling take", "part of a block",
                  "GFLOP/s in matrix products", str(path)):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) < 200


def test_only_traces_are_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = [*MODEL, "--measure", "1", "--warm-up", "0"]
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    for flags in (["--trace", "text.txt"], ["--data", "text.txt", "--trace", "./text.txt"]):
        with pytest.raises(UserError, match="text.txt"):
            profile.main([*few, *flags])
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == TEXT * 40
    for name in ("a.json", "a.json.gz"):
        for _ in range(2):
            output_of(profile.main, [*few, "--trace", name])
        assert is_trace(tmp_path / name)
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"{}"))
    (tmp_path / "c.gz").write_bytes(b"\x1f\x8b damaged")
    assert not any(is_trace(tmp_path / name) for name in ("text.txt", "b.gz", "c.gz"))


# -- several ranks -----------------------------------------------------------------------------------------------------

RANKS = {"plain": [], "overlap": ["--overlap", "yes"], "zero": ["--zero", "1"]}


@pytest.mark.skipif(not have_mpi(), reason="there is no mpirun, or no mpi4py")
@pytest.mark.parametrize("name", slow_but(("plain",), RANKS))
def test_ranks_are_processes_of_one_trace(tmp_path, name):
    command = [find_mpirun(), "-n", "2", sys.executable, "-m", "tinygrad2", "profile", *MODEL, *RANKS[name]]
    command += ["--measure", "2", "--warm-up", "2", "--trace", str(tmp_path / "trace.json"), "--json"]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report, trace = json.loads(result.stdout), json.loads((tmp_path / "trace.json").read_text())
    assert sum(row["ms"] for row in report["rows"] if not row["aside"]) == pytest.approx(report["step_ms"])
    assert len(report["ranks"]) == 2 and report["ranks"][0]["step_ms"] == report["step_ms"]
    tracks = check_nesting(trace)
    assert {pid for pid, _ in tracks} == {0, 1}
    sums = []
    for rank in (0, 1):
        events = [event for (pid, _), track in tracks.items() if pid == rank for event in track]
        (done,) = [e for e in events if e["cat"] == "comm" and e["name"].startswith("gradients of step")]
        (waited,) = [e for e in events if e["cat"] == "wait" and e["name"].endswith(done["name"])]
        assert waited["ts"] + waited["dur"] <= done["ts"] + 2e-3
        sums.append(done)
    first, second = sorted(sums, key=lambda event: event["ts"])
    assert second["ts"] < first["ts"] + first["dur"] + 1e3  # at the same time, also by the aligned clocks


class Rank:
    """One of two ranks in threads, with clocks 100 s apart."""

    size = 2

    def __init__(self, rank, mailboxes, table):
        self.rank, self.mailboxes, self.table, self.transport = rank, mailboxes, table, self
        self.both = mailboxes["barrier"]

    def collective(self, name, moves_data=True):
        return contextlib.nullcontext()

    def send(self, array, rank):
        self.mailboxes[rank].put(array.copy())

    def receive(self, array, rank):
        array[...] = self.mailboxes[self.rank].get()

    def all_gather(self, array, name):
        self.table[self.rank] = array
        self.both.wait()
        return np.stack([self.table[0], self.table[1]])


def test_clocks_are_compared():
    mailboxes = {0: queue.Queue(), 1: queue.Queue(), "barrier": threading.Barrier(2)}
    table, results = {}, {}

    def run(rank):
        results[rank] = clock_offset(Rank(rank, mailboxes, table), lambda: time.perf_counter() + 100 * rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    offset, error = results[1]
    assert results[0] == (0, 0) and 0 < error < 10 and abs(offset - 100) <= error
    assert clock_offset(World()) == (0, 0)


# -- bad flags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--measure", "0"], "--measure must be at least 1, not 0"),
        (["--measure", "many"], "--measure: invalid int value: 'many'"),
        (["--warm-up", "-1"], "--warm-up must be at least 0, not -1"),
        (["--trace", ""], "--trace: the path is empty"),
        (["--trace="], "--trace: the path is empty"),
        (["--trace", "no/where.json"], "no"),
        (["--resume"], "--resume: a profile starts a training of its own"),
        (["--device", "cuda", "--cuda-graph", "yes"], "--cuda-graph yes: a profile times ops one by one"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--data", "nowhere"], "nowhere: "),
        (["--ranks", "3"], "--ranks 3: there are 1"),
        (["--lr", "1e30", *MODEL], "choose a lower --lr"),
        (["extra"], "unrecognized arguments: extra"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error, np.errstate(all="ignore"):
        profile.main(flags)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_flag(capsys):
    assert profile.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--measure", "--warm-up", "--json", "--trace"))
    assert profile.read_flags([])[0].measure == 10
