"""Products on a GPU whose algorithm was measured to be the fastest: which one is taken, and that it remains so. On the
stand-ins for CuPy and cuBLASLt, where each algorithm rounds differently, and the times are those of a table."""

import json
import os
import shutil
import warnings
from types import SimpleNamespace

import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running
from product_checks import BFLOAT16, FLOAT32, check, exact, numbers

import train_gpt2
from ops.kernels.cuda import cublaslt_problem, mlp, products, tuning
from ops.kernels.cuda.products import batched_gemm, gemm
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.gpu.choices import Choices, choices, choosing
from tinygrad2.io.files import read_record, write_record
from tinygrad2.training.config import TrainConfig
from tinygrad2.training.tuning import Tuning, is_tuning_record

HERE = {"gpu": "stand-in", "driver": 13000, "cublaslt": 130102}


@pytest.fixture
def cp(monkeypatch):
    return strict_cupy.install(monkeypatch)


@pytest.fixture
def lt(cp, monkeypatch):
    monkeypatch.setattr(tuning, "LEAST", 1)
    monkeypatch.setattr(cublaslt_problem, "_LARGEST_ALIGNMENT", 16)               # NumPy's; CuPy's is always 512
    return fake_cublaslt.install(monkeypatch)


@pytest.fixture
def times(monkeypatch, lt):
    """A dict of {number of an algorithm: its milliseconds}, 10 for those that are not in it; "measured" counts."""
    table = {"measured": 0}

    def milliseconds(xp, work):
        work()
        table["measured"] += 1
        return table.get(lt.fake_last_algorithm(), 10.0)

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    return table


def taken(lt, *args, **options):
    """(the number of the algorithm, the result) of a product."""
    out = gemm(*args, **options)
    return lt.fake_last_algorithm(), out.get()


# -- one product -------------------------------------------------------------------------------------------------------


def test_the_fastest_algorithm_is_taken_and_stays(cp, lt, times):
    a, b = cp.asarray(numbers((33, 130), FLOAT32)), cp.asarray(numbers((130, 18), FLOAT32, 1))
    first, plain = taken(lt, a, b)
    times[2] = 9.0
    found = Choices(measures=True)
    with choosing(found):
        number, tuned = taken(lt, a, b)
        measured = times["measured"]
        assert (first, number) == (0, 2) and measured == 4 * tuning.ROUNDS       # of 5 answers one cannot be used
        times[1] = 1.0
        assert taken(lt, a, b)[0] == 2 and times["measured"] == measured          # it is not measured again,
    with choosing(Choices(found.made, measures=True)):
        number, again = taken(lt, a, b)                                           # nor in the next start
    assert number == 2 and times["measured"] == measured and again.tobytes() == tuned.tobytes() != plain.tobytes()
    ((key, choice),) = found.made.items()
    assert key.startswith("out (33, 18) float32, ld 18 = a (33, 130)") and len(bytes.fromhex(choice)) == 64
    assert taken(lt, a, b)[0] == 0                                                # outside of the block


def test_a_gain_that_may_be_noise_is_none(cp, lt, times):
    a, b = cp.asarray(numbers((4, 5), FLOAT32)), cp.asarray(numbers((5, 6), FLOAT32, 1))
    times[4] = 9.8
    with choosing(Choices(measures=True)) as found:
        assert taken(lt, a, b)[0] == 0 and len(found.made) == 1                   # which is also remembered


def test_an_algorithm_that_fails_is_left_out(cp, lt, times):
    a, b = cp.asarray(numbers((4, 5), FLOAT32)), cp.asarray(numbers((5, 6), FLOAT32, 1))
    times.update({1: 2.0, 2: 1.0})
    lt.fake_refuse_algorithm(2)
    try:
        with choosing(Choices(measures=True)):
            assert taken(lt, a, b)[0] == 1
    finally:
        lt.fake_refuse_algorithm(-1)


@pytest.mark.parametrize("dtype, result", [(FLOAT32, FLOAT32), (BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16)], ids=str)
@pytest.mark.parametrize("apart", [0, 8])
def test_measuring_changes_no_result(cp, lt, times, dtype, result, apart):
    """A result that is added to is added to once, also among other numbers, and in batches."""
    times[1] = 1.0
    a, b, before = numbers((33, 130), dtype), numbers((130, 18), dtype, 1), numbers((33, 18 + apart), result, 2)
    size = exact(np.abs(a), np.abs(b)) + np.abs(before[:, :18].astype(np.float64))
    for accumulate in (True, False):
        out = cp.asarray(before)
        products.plan.cache_clear()
        with choosing(Choices(measures=True)) as found:
            gemm(cp.asarray(a), cp.asarray(b), out[:, :18], accumulate, scale=0.5)
        assert lt.fake_last_algorithm() == 1 and len(found.made) == 1
        check(out[:, :18], 0.5 * exact(a, b) + accumulate * before[:, :18].astype(np.float64), result, 4 * size)
        assert (out.get()[:, 18:] == before[:, 18:]).all()
    a, b, before = numbers((3, 4, 70), dtype), numbers((3, 70, 6), dtype, 1), numbers((3, 4, 6), result, 2)
    out = cp.asarray(before)
    with choosing(Choices(measures=True)):
        batched_gemm(cp.asarray(a), cp.asarray(b), out, accumulate=True)
    assert lt.fake_last_algorithm() == 1
    size = exact(np.abs(a), np.abs(b)) + np.abs(before.astype(np.float64))
    check(out, exact(a, b) + before.astype(np.float64), result, 4 * size)


def test_nothing_is_measured_where_that_would_cost_or_cannot_be(cp, lt, times, monkeypatch):
    a, b = cp.asarray(numbers((4, 5), FLOAT32)), cp.asarray(numbers((5, 6), FLOAT32, 1))
    with choosing(Choices()), strict_cupy.no_sync():
        gemm(a, b)                                                                # not asked for
    stream = cp.cuda.get_current_stream()
    with choosing(Choices(measures=True)), strict_cupy.no_sync():
        stream.begin_capture()
        gemm(a, b)
        stream.end_capture()
        monkeypatch.setattr(tuning, "LEAST", 4 * 5 * 6 + 1)                       # too small
        gemm(a, b)
        assert times["measured"] == 0 and choices().made == {}
        monkeypatch.setattr(tuning, "LEAST", 4 * 5 * 6)
    with choosing(Choices(measures=True)):
        gemm(a, b)
        assert times["measured"] > 0


@needs_compiler
def test_without_memory_to_measure_in_the_first_way_is_the_choice(cp, lt, times, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    times[1], possible = 1.0, tuning._if_possible
    a, b, out = (cp.asarray(numbers(shape, FLOAT32)) for shape in ((4, 5), (5, 6), (4, 6)))
    before = out.get()
    with choosing(Choices(measures=True)) as found:
        gemm(a, b)                                                                # the workspace is there
        monkeypatch.setattr(tuning, "_if_possible", lambda allocate: possible(full))
        gemm(a, b, out, accumulate=True)                                          # the same plan
        products.plan.cache_clear()
        found.made.clear()
        gemm(a, b, out, accumulate=True)
        assert lt.fake_last_algorithm() == 0 and len(found.made) == 1
        check(out, 2 * exact(a.get(), b.get()) + before, FLOAT32, 8 * exact(np.abs(a.get()), np.abs(b.get())) + 1)
        node = mlp.MLPCUDA(cp, (True,) * 5)
        with running(check=False):
            node.forward(*(cp.asarray(numbers(shape, FLOAT32)) for shape in ((6, 5), (5, 16), (16,), (16, 9), (9,))))
    assert [choice for key, choice in found.made.items() if key.startswith("GELU")] == ["separate"]


def test_events_of_the_gpu_measure(cp, lt):
    a, b = cp.asarray(numbers((4, 5), FLOAT32)), cp.asarray(numbers((5, 6), FLOAT32, 1))
    before = lt.fake_products()
    assert tuning.milliseconds(cp, lambda: gemm(a, b)) > 0 and lt.fake_products() == before + tuning.CALLS


def test_a_stored_algorithm_is_checked(cp, lt, times):
    a, b, wide = (cp.asarray(numbers(shape, FLOAT32)) for shape in ((4, 5), (5, 6), (5, 7)))
    times[1] = 1.0
    with choosing(Choices(measures=True)) as found:
        gemm(a, b)
        gemm(a, wide)
    one, other = found.made
    wrong = Choices({one: found.made[other]})
    with choosing(wrong), pytest.warns(RuntimeWarning, match="stored algorithm is none for"):
        assert taken(lt, a, b)[0] == 0                                            # it is one of another product
    with choosing(Choices({one: "00" * 64}, measures=True)) as again, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert taken(lt, a, b)[0] == 1 and again.made[one] == found.made[one]     # measured again


# -- GELU in products --------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("faster, way", [("fused", "fused"), ("separate", "separate"), ("neither", "separate")])
def test_gelu_goes_into_the_product_where_that_is_faster(cp, lt, monkeypatch, faster, way):
    """In each direction by its own measurement; results and gradients are the same as without measuring."""
    epilogues, plan = [], products.plan
    noted = lambda problem, made: (epilogues.append(problem.epilogue), plan(problem, made))[1]  # noqa: E731
    monkeypatch.setattr(products, "plan", noted)

    def milliseconds(xp, work):
        epilogues.clear()
        work()
        is_fused = bool({"GELU_AUX_BIAS", "DGELU"} & set(epilogues))
        return 5.0 if faster == ("fused" if is_fused else "separate") else 6.0 if faster != "neither" else 5.0

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    arrays = [numbers(shape, FLOAT32, i) for i, shape in enumerate(((3, 7, 5), (5, 24), (24,), (24, 9), (9,)))]
    dout, found = numbers((3, 7, 9), FLOAT32, 9), {}
    for measures in (False, True):
        node = mlp.MLPCUDA(cp, (True,) * 5)
        with running(check=False), choosing(Choices(measures=measures)) as chosen:
            out = node.forward(*map(cp.asarray, arrays))
            gradients = node.backward(cp.asarray(dout))
            found[measures] = [out.get(), *((g.copy() if hasattr(g, "write_to") else g).get() for g in gradients)]
    assert all(np.allclose(one, other, rtol=1e-5, atol=1e-5) for one, other in zip(found[False], found[True]))
    ways = {key.split(":")[0]: choice for key, choice in chosen.made.items() if key.startswith("GELU")}
    assert ways == {"GELU forward": way, "GELU backward": way}
    epilogues.clear()
    with running(check=False), choosing(Choices(chosen.made)):
        node.backward(mlp.MLPCUDA.forward(node, *map(cp.asarray, arrays)))
    assert ({"GELU_AUX_BIAS", "DGELU"} <= set(epilogues)) == (way == "fused")


# -- the file ----------------------------------------------------------------------------------------------------------

MADE = {"out (1, 2) ...": "0123456789abcdef" * 8, "GELU forward: ...": "fused"}


class Ranks:
    """One rank of several, which all are the same."""

    def __init__(self, size=1):
        self.size, self.lines = size, []

    def print(self, line):
        self.lines.append(line)

    def on_rank_0(self, what, fn, *args):
        return fn(*args)

    def broadcast_object(self, value):
        return value

    def all_gather_object(self, value, what):
        return [value] * self.size


def tuning_of(mode, begun=None, world=None, here=HERE, **flags):
    flags = dict(steps=1, batch_size=1, lr=1.0, device="cuda", tune_products=mode) | flags
    return Tuning(TrainConfig(**flags), here, begun or {}, world or Ranks())


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tinygrad2"


def test_what_was_measured_is_there_in_the_next_start(cache):
    first = tuning_of("yes")
    assert first.choices.made == {} and first.choices.measures and str(cache) in first.describe()
    for key, choice in MADE.items():
        first.choices.add(key, choice)
    assert first.record == {"for": HERE, "made": MADE} and is_tuning_record(first.record)
    (path,) = cache.iterdir()
    assert read_record(path) == first.record
    second = tuning_of("auto")
    assert second.choices.made == MADE and not second.choices.measures and second.describe().startswith("2 choices")
    assert tuning_of("yes").choices.made == MADE and tuning_of("no").choices.made == {}
    for name in HERE:
        assert tuning_of("auto", here=HERE | {name: "another"}).choices.made == {}
    several = tuning_of("yes", world=Ranks(2))
    assert several.choices.made == MADE and not several.choices.measures and "several ranks" in several.describe()
    assert tuning_of("auto", here=HERE | {"gpu": "another"}).describe().endswith("(--tune-products yes measures)")


def test_a_rank_with_another_gpu_takes_no_choices(cache):
    tuning_of("yes").choices.add(*MADE.popitem())

    class Second(Ranks):
        def all_gather_object(self, value, what):
            return [HERE, value]

    assert tuning_of("auto", world=Second(2)).choices.made
    assert tuning_of("auto", world=Second(2), here=HERE | {"gpu": "another"}).choices.made == {}


def test_a_resumed_training_makes_the_choices_that_it_began_with(cache):
    began = tuning_of("auto")                                                     # nothing was known
    assert tuning_of("auto", began.record).choices.made == {}
    measuring = tuning_of("yes")
    measuring.choices.add("out (1, 2) ...", "11" * 64)
    stopped = json.loads(json.dumps(measuring.record))
    measuring.choices.add("out (3, 4) ...", "22" * 64)                            # after the last checkpoint
    assert tuning_of("auto", began.record).choices.made == {}                     # whatever was measured since
    assert tuning_of("auto", stopped).choices.made == {"out (1, 2) ...": "11" * 64}
    assert tuning_of("yes", stopped).choices.made == measuring.choices.made
    other = tuning_of("yes", {"for": HERE, "made": {"out (1, 2) ...": "33" * 64}})
    assert other.choices.made["out (1, 2) ..."] == "33" * 64                      # its own before the file's
    assert tuning_of("auto", {"for": HERE | {"driver": 1}, "made": MADE}).choices.made == measuring.choices.made


def test_two_trainings_that_measure_keep_what_both_found(cache):
    one, other = tuning_of("yes"), tuning_of("yes")
    one.choices.add("out (1, 2) ...", "11" * 64)
    other.choices.add("out (3, 4) ...", "22" * 64)
    assert len(tuning_of("auto").choices.made) == 2


@pytest.mark.parametrize("damage", [
    b"", b"{}", b"\0" * 100, '{"for": "é'.encode(), {"for": HERE}, {"for": HERE, "made": {"out": "fused"}},
    {"for": HERE, "made": {"out": "AB" * 64}}, {"for": HERE, "made": {"out": "ab" * 63}}, {"for": HERE, "made": []},
    {"for": HERE, "made": {"GELU": "maybe"}}, {"for": HERE, "made": {"out": 3}}, {"for": {}, "made": MADE},
], ids=str)  # fmt: skip
def test_a_damaged_file_is_one_line_and_measured_again(cache, damage):
    tuning_of("yes").choices.add("out", "ab" * 64)
    (path,) = cache.iterdir()
    path.write_bytes(damage) if isinstance(damage, bytes) else write_record(path, damage)
    world = Ranks()
    assert tuning_of("auto", world=world).choices.made == {}
    assert world.lines == [f"note      {path} is damaged: it is not used; --tune-products yes measures again"]
    tuning_of("yes").choices.add("out", "cd" * 64)
    assert tuning_of("auto").choices.made == {"out": "cd" * 64}
    assert not is_tuning_record({"for": HERE, "made": {"out": "fused"}}) and not is_tuning_record([])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_one_line(cache):
    cache.parent.mkdir()
    cache.parent.chmod(0o500)
    check_one_line(tuning_of("yes"))
    cache.parent.chmod(0o700)


def test_a_file_in_place_of_the_folder_is_one_line(cache):
    cache.parent.write_text("")
    check_one_line(tuning_of("yes"))


def check_one_line(measuring):
    for n in range(3):
        measuring.choices.add(f"out {n}", "ab" * 64)
    (line,) = measuring.world.lines
    assert line.startswith("note      measurements of products are not kept: ") and len(measuring.choices.made) == 3


@pytest.mark.parametrize("flags, here", [(dict(device="cpu"), None), (dict(kernels="reference"), None), ({}, None)])
def test_where_there_is_nothing_to_choose(cache, flags, here):
    assert tuning_of("auto", here=here, **flags).describe() == ""
    with pytest.raises(UserError, match="^--tune-products yes: cuBLASLt cannot be loaded here; use "):
        tuning_of("yes", here=here, **flags)


# -- trainings ---------------------------------------------------------------------------------------------------------

FLAGS = ("--device cuda --dtype bfloat16 --n-layer 1 --n-head 2 --n-embd 32 --block-size 16 --vocab-size 270 "
         "--batch-size 4 --warmup-steps 1 --lr 1e-2 --eval-every 0 --sample-every 0 --sample-tokens 0")  # fmt: skip


@needs_compiler
def test_a_training_has_the_same_bits_once_its_choices_are_made(lt, times, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_gpt2, "gemm_peak", lambda xp: 1e12)
    (tmp_path / "text.txt").write_text("The cat sat on the mat. The dog sat on the cat.\n" * 20)
    times.update({1: 3.0, 2: 5.0})

    def train(flags, folder="run"):
        argv = f"--data text.txt {FLAGS} --run-dir {folder} {flags}".split()
        with running(check=False):
            assert train_gpt2.main(World(), argv) == 0
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [(record["loss"], record["grad_norm"]) for record in lines], capsys.readouterr().out

    plain, printed = train("--steps 4 --checkpoint-every 2", "plain")
    assert "tuning    cuBLASLt's first algorithms (--tune-products yes measures)" in printed
    assert times["measured"] == 0 and not cache.exists()
    tuned, printed = train("--steps 4 --tune-products yes --checkpoint-every 2", "tuned")
    assert "others are measured when they are needed first, and kept in" in printed
    measured = times["measured"]
    assert measured > 0 and plain != tuned and np.allclose(plain, tuned, rtol=1e-2)
    times.clear()
    times.update({"measured": 0, 2: 1.0})                                         # another one would win now
    assert train("--steps 4", "again")[0] == train("--steps 4 --cuda-graph yes", "graph")[0] == tuned
    assert train("--steps 4 --tune-products no", "no")[0] == plain and times["measured"] == 0
    for folder, expected in (("plain", plain), ("tuned", tuned)):
        shutil.rmtree(tmp_path / folder / "checkpoints" / "step_00000004")        # it goes on from step 2
        assert train("--resume", folder)[0] == expected + expected[2:]
    assert times["measured"] == 0


def test_the_default_knows_no_choices():
    assert choices().made == {} and not choices().measures and choices().get("out") is None
    assert SimpleNamespace(**vars(choices())).keep is None
