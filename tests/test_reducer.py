"""The sum over micro-batches: its order, its buffers, bfloat16. Several ranks: test_distributed.py."""

import numpy as np
import pytest

from tinygrad2.bfloat16 import pack_bfloat16, unpack_bfloat16
from tinygrad2.distributed.reducer import BUCKET, OVERLAP_BUCKET, Reducer
from tinygrad2.distributed.world import World
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.module import Module, Parameter
from tinygrad2.optim import NORM_BLOCK, Adam, block_square_sums, grad_norm, norm_of
from tinygrad2.training.memory_plan import _twos


class Weights(Module):
    def __init__(self, sizes=(1000, 37)):
        self.weights = [Parameter(np.zeros(size, np.float32)) for size in sizes]


def gradients(count, size):
    """Values of very different magnitude, so that the sum depends on their order."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(size).astype(np.float32) * np.float32(10.0 ** rng.integers(0, 6)) for _ in range(count)]


def tree(parts):
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


def reduce(parts, **options):
    flat = FlatBuffers(Weights())
    reducer = Reducer(flat, World(), len(parts), **options)
    for _ in range(2):  # the second time with buffers that have been used
        reducer.begin()
        for part in parts:
            with reducer.micro_batch():
                for parameter, own in zip(flat.parameters, flat.slices.values()):
                    parameter.add_to_grad(part[own])
        reducer.finish()
    return flat, reducer


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 64])
def test_micro_batches_are_summed_in_a_binary_tree(count):
    flat = FlatBuffers(Weights())
    parts = gradients(count, flat.size)
    flat, reducer = reduce(parts)
    expected, got = tree(parts), flat.grad
    for part in flat.slices.values():
        assert got[part].tobytes() == expected[part].tobytes()
    assert reducer.grad_norm().tobytes() == grad_norm(got).tobytes()
    assert len(reducer._spare) == _twos(count)  # the memory plan relies on it
    if count > 4:
        plain = reduce(parts, order="plain")[0].grad
        assert plain.tobytes() != got.tobytes() and np.allclose(plain, got, rtol=1e-3, atol=1)


@pytest.mark.parametrize("count, per_leaf", [(3, 3), (6, 3), (12, 3), (20, 5)])
def test_an_odd_number_of_micro_batches_is_summed_one_after_the_other(count, per_leaf):
    flat = FlatBuffers(Weights())
    parts = gradients(count, flat.size)
    leaves = []
    for i in range(0, count, per_leaf):
        total = np.zeros(flat.size, np.float32)
        for part in parts[i : i + per_leaf]:
            total += part
        leaves.append(total)
    expected, got = tree(leaves), reduce(parts)[0].grad
    assert all(got[part].tobytes() == expected[part].tobytes() for part in flat.slices.values())


def test_an_interrupted_step_leaves_no_gradients():
    flat = FlatBuffers(Weights())
    parts = gradients(4, flat.size)
    reducer = Reducer(flat, World(), 4)
    reducer.begin()
    for part in parts[:3]:
        with reducer.micro_batch():
            flat.parameters[0].add_to_grad(part[:1000])
    reducer.begin()
    for part in parts:
        with reducer.micro_batch():
            flat.parameters[0].add_to_grad(part[:1000])
    reducer.finish()
    assert flat.grad[:1000].tobytes() == tree(parts)[:1000].tobytes()
    assert not flat.grad[1000:].any()


@pytest.mark.parametrize("size", [1, 100, NORM_BLOCK, NORM_BLOCK + 1, 3 * NORM_BLOCK + 5, BUCKET + 7, 3 * BUCKET])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_parts_of_all_ranks_cover_the_buffer_once_and_begin_at_blocks(size, ranks, overlap):
    class Ranks(World):
        pass

    world = Ranks()
    world.size = ranks

    class Flat:
        parameters, slices = [], {}

    Flat.size = size
    reducer = Reducer(Flat, world, 1, shard=True, overlap=overlap)
    assert reducer.buckets[0].stop == min(size, OVERLAP_BUCKET if overlap else BUCKET)
    seen = np.zeros(size, int)
    for rank in range(ranks):
        for part in reducer.shards.parts_of(rank):
            seen[part] += 1
            assert part.start == part.stop or part.start % NORM_BLOCK == 0
    assert (seen == 1).all()


def test_norms_of_parts_combine_to_the_norm_of_all():
    grad = np.random.default_rng(0).standard_normal(5 * NORM_BLOCK + 99).astype(np.float32)
    whole = block_square_sums(grad)
    parts = [block_square_sums(grad[:NORM_BLOCK]), block_square_sums(grad[NORM_BLOCK : 3 * NORM_BLOCK])]
    parts.append(block_square_sums(grad[3 * NORM_BLOCK :]))
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert norm_of(whole, np.float32) == grad_norm(grad) == pytest.approx(np.linalg.norm(grad.astype(float)), rel=1e-6)
    assert block_square_sums(grad[:5]).shape == (1,) and grad_norm(grad[:5].astype(np.float64)).dtype == np.float64


def test_adam_on_parts_equals_adam_on_all():
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(1072).astype(np.float32) for _ in range(3)]

    class Mixed(Module):
        def __init__(self):
            self.matrix, self.vector = Parameter(np.ones((30, 33), np.float32)), Parameter(np.ones(40, np.float32))

    whole = FlatBuffers(Mixed())
    adam = Adam(whole, weight_decay=0.1)
    shared = FlatBuffers(Mixed())
    borders = [0, 500, 1000, 1016, whole.size]
    parts = [slice(a, b) for a, b in zip(borders, borders[1:])]
    sharers = [Adam(shared, weight_decay=0.1, parts=parts[::2]), Adam(shared, weight_decay=0.1, parts=parts[1::2])]
    for grad in grads:
        for flat in (whole, shared):
            flat.grad = grad[: flat.size]
        adam.step(0.01, 0.5)
        for sharer in sharers:
            sharer.step(0.01, 0.5)
    assert whole.data.tobytes() == shared.data.tobytes()
    assert sum(sharer.m.size for sharer in sharers) == whole.size
    m, v = np.empty_like(whole.data), np.empty_like(whole.data)
    for sharer in sharers:
        end = 0
        for part in sharer.parts:
            n = part.stop - part.start
            m[part], v[part] = sharer.m[end : end + n], sharer.v[end : end + n]
            end += n
    state = {f"{letter}.{name}": view for letter, array in (("m", m), ("v", v))
             for name, view in whole.named_views(array).items()}  # fmt: skip
    again = Adam(FlatBuffers(Mixed()), parts=parts[::2])
    again.load_state_dict(state, 3)
    for name, part in whole.slices.items():  # the gaps between parameters belong to none
        assert np.array_equal(m[part], adam.m[part]), name
    assert again.t == 3 and np.array_equal(again.m[:500], adam.m[:500])


def test_bfloat16_is_rounded_to_nearest_even():
    values = np.array([0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8 + 2**-20), 3e38, np.inf, -np.inf, 1e-30],
                      np.float32)  # fmt: skip
    expected = [0.0, -0.0, 1.0, 1.0, 1 + 2**-6, -(1 + 2**-7), 3e38, np.inf, -np.inf, 1e-30]
    got = unpack_bfloat16(pack_bfloat16(values))
    assert np.allclose(got, np.array(expected, np.float32), rtol=2**-8, atol=0)
    assert got[3] == 1.0 and got[4] == 1 + 2**-6
    assert np.signbit(got[1]) and got[5] == -(1 + 2**-7)
    assert np.isnan(unpack_bfloat16(pack_bfloat16(np.array([np.nan, -np.nan], np.float32)))).all()
    weird = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFF8000], np.uint32).view(np.float32)  # NaNs that rounding could lose
    assert np.isnan(unpack_bfloat16(pack_bfloat16(weird))).all()


def test_bfloat16_equals_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    values = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    theirs = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert unpack_bfloat16(pack_bfloat16(values)).tobytes() == theirs.tobytes()
