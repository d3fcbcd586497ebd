"""From text to batches, and the flat buffers, the optimizer and the schedules that use them."""

import numpy as np
import pytest

import ops  # noqa: F401  (Tensors need them)
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.datasets.text_cache import encode_documents, split_documents
from tinygrad2.datasets.token_files import MemoryTokens, TokenStream
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.module import Module, Parameter
from tinygrad2.optim import Adam, clip_scale, grad_norm, learning_rate
from tinygrad2.prng import permute
from tinygrad2.tokenizers.tokenizer import Tokenizer

TOKENS = np.arange(1000, dtype=np.int32)


# -- batches ---------------------------------------------------------------------------------------------------------


def positions(loader, n):
    """The positions of the first n batches."""
    places = [(0, 0)]
    for _ in range(n - 1):
        places.append(loader.after(places[-1]))
    return places


def test_the_target_of_a_token_is_the_token_that_follows():
    x, y = DataLoader(TOKENS, 2, 8).batch((0, 0))
    assert np.array_equal(x, [range(8), range(8, 16)]) and np.array_equal(y, x + 1)
    assert x.dtype == np.int64


def test_sequential_batches_go_on_where_the_last_one_ended_and_the_ring_closes():
    loader = DataLoader(TOKENS, 3, 7)
    batches = [loader.batch(position) for position in positions(loader, 100)]
    assert np.array_equal(np.concatenate([x.ravel() for x, _ in batches]), np.arange(2100) % 1000)
    assert np.array_equal(np.concatenate([y.ravel() for _, y in batches]), np.arange(1, 2101) % 1000)


def test_shuffled_epochs_hold_every_window_once_in_another_order_and_elsewhere_cut():
    loader = DataLoader(TOKENS, 3, 7, order="shuffled", seed=3)  # 142 windows, so epochs end inside batches
    rows = np.concatenate([loader.batch(position)[0] for position in positions(loader, 142)])  # three epochs
    assert np.array_equal(np.diff(rows, axis=1) % 1000, np.ones((426, 6)))
    firsts = rows[:, 0].reshape(3, 142)
    for epoch in firsts:
        assert len(set(epoch)) == 142 and len({first % 7 for first in np.sort((epoch - epoch[0]) % 1000)}) <= 2
        assert len(set(np.concatenate([np.arange(7) + first for first in epoch]) % 1000)) == 994  # no token twice
    assert not np.array_equal(np.argsort(firsts[0]), np.argsort(firsts[1]))
    assert len({tuple(np.sort(epoch)) for epoch in firsts}) == 3
    again = DataLoader(TOKENS, 3, 7, order="shuffled", seed=3)
    other = DataLoader(TOKENS, 3, 7, order="shuffled", seed=4)
    assert np.array_equal(again.batch((1, 5))[0], loader.batch((1, 5))[0])
    assert not np.array_equal(other.batch((1, 5))[0], loader.batch((1, 5))[0])


LLMC_READS = {  # the first tokens of batches of 4 x 8, as llm.c's own dataloader.h gives them: file ends, tokens
    (1000,): """
        928 384 864 480 960 256 576 736 512 192 800 320 64 896 160 128 704 0 96 448 224 416 32 768 640 352 288 832 672
        544 608 480 224 320 128 384 704 864 896 32 288 416 160 928 608 736 576 512 96 352 64 800 640 192 256 448 768
        """,
    (100, 501, 1000): """
        725 821 661 565 693 757 501 949 789 917 597 853 629 885 533 292 164 356 420 388 132 100 260 228 324 196 452 64
        32 0 64 32 0 501 821 725 757 949 693 533 789 597 565 917 885 853 661 629 164 100 228
        """,
}


@pytest.mark.parametrize("ends", LLMC_READS)
def test_llmcs_order_is_that_of_its_own_program(ends):
    files = [MemoryTokens(TOKENS[start:end]) for start, end in zip((0, *ends), ends)]
    loader = DataLoader(TokenStream(files), 4, 8, order="llmc")
    firsts = list(map(int, LLMC_READS[ends].split()))
    places = positions(loader, len(firsts))
    for position, first in zip(places, firsts):
        x, y = loader.batch(position)
        assert np.array_equal(x.ravel(), first + np.arange(32)) and np.array_equal(y, x + 1)
    assert places[-1][0] == len(firsts) // (30 if len(ends) > 1 else 31)
    for i in (40, 3, 35, 0):  # a resumed training begins anywhere
        assert loader.batch(places[i])[0][0, 0] == firsts[i]
        assert DataLoader(TokenStream(files), 4, 8, order="llmc").batch(places[i])[0][0, 0] == firsts[i]
    with pytest.raises(UserError, match="--order llmc: each file must have 801 tokens.*the shortest has [0-9]+;"):
        DataLoader(TokenStream(files).part(300, 1000), 100, 8, order="llmc")


@pytest.mark.parametrize("order", ["sequential", "shuffled", "llmc"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_share_a_batch_without_overlap(size, order):
    for position in ((0, 16), (2, 198)):  # the second one reaches into the next epoch
        whole = DataLoader(TOKENS, 8, 5, order=order).batch(position)
        parts = [DataLoader(TOKENS, 8, 5, rank, size, order).batch(position) for rank in range(size)]
        for i in (0, 1):
            assert np.array_equal(np.concatenate([part[i] for part in parts]), whole[i])


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_micro_batches_are_the_batch_in_pieces_with_their_row_numbers(rows):
    loader = DataLoader(TOKENS, 8, 5, rank=1, size=2)
    pieces = list(loader.micro_batches((0, 16), rows))
    assert [first for first, _, _ in pieces] == list(range(4, 8, rows))
    assert np.array_equal(np.concatenate([x for _, x, _ in pieces]), loader.batch((0, 16))[0])


def test_the_position_counts_windows_and_epochs():
    loader = DataLoader(TOKENS, 60, 5)
    assert positions(loader, 5) == [(0, 0), (0, 60), (0, 120), (0, 180), (1, 40)]
    assert DataLoader(TOKENS, 500, 5).after((0, 0)) == (2, 100)  # a batch of two epochs and a half


def test_a_short_text_is_repeated_until_a_batch_and_one_more_are_there():
    loader = DataLoader(np.array([1, 2, 3]), 2, 4)
    assert loader.repeats == 3
    x, y = loader.batch((0, 0))
    assert np.array_equal(x, [[1, 2, 3, 1], [2, 3, 1, 2]]) and np.array_equal(y, [[2, 3, 1, 2], [3, 1, 2, 3]])
    assert DataLoader(np.array([1, 2, 3]), 2, 4, order="shuffled").batch((5, 0))[0].shape == (2, 4)
    assert DataLoader(TOKENS, 2, 4).repeats == 1
    assert DataLoader(np.arange(9), 2, 4).repeats == 1 and DataLoader(np.arange(8), 2, 4).repeats == 2


def test_a_shuffle_without_a_table_is_a_shuffle():
    for n in (1, 2, 3, 4, 5, 16, 17, 1000, 4097):
        shuffled = permute(np.arange(n), n, key=9)
        assert np.array_equal(np.sort(shuffled), np.arange(n))
        assert n < 16 or np.mean(shuffled == np.arange(n)) < 0.3
    assert not np.array_equal(permute(np.arange(100), 100, 1), permute(np.arange(100), 100, 2))
    far = permute(np.array([0, 10**12 - 1]), 10**12, 5)
    assert far.min() >= 0 and far.max() < 10**12
    p = permute(np.arange(100_000), 100_000, 3)
    for other in (np.arange(100_000), np.roll(p, 1), np.roll(p, 2)):  # neighbours do not stay neighbours
        assert abs(np.corrcoef(p, other)[0, 1]) < 0.02
    went = np.array([permute(np.arange(10), 10, key)[0] for key in range(3000)])
    assert np.abs(np.bincount(went, minlength=10) - 300).max() < 5 * 300**0.5  # the first goes everywhere alike


def test_what_cannot_be_a_batch_is_refused():
    with pytest.raises(ValueError, match="1 tokens are too few"):
        DataLoader(np.array([5]), 1, 1)
    with pytest.raises(ValueError, match="3 ranks cannot share a batch of 4"):
        DataLoader(TOKENS, 4, 2, 0, 3)


def test_documents_are_split_at_the_mark_and_end_with_the_token():
    documents = split_documents(b"one\n<|endoftext|>\ntwo two\r\n<|endoftext|>\n\n<|endoftext|>")
    assert documents == [b"one", b"two two"]
    tokenizer = Tokenizer([])
    ids = encode_documents(documents, tokenizer)
    assert tokenizer.decode(ids.tolist()) == "one<|endoftext|>two two<|endoftext|>" and ids.dtype == np.int32
    assert list(ids).count(tokenizer.eot) == 2


# -- modules and flat buffers ----------------------------------------------------------------------------------------


class Part(Module):
    def __init__(self):
        self.weight = Parameter(np.ones((2, 3), np.float32))
        self.bias = Parameter(np.zeros(3, np.float32))


class Whole(Module):
    def __init__(self):
        self.first = Part()
        self.parts = [Part(), Part()]
        self.tied = self.first.weight
        self.scale = Parameter(np.full(5, 2.0, np.float32))


def test_parameters_are_named_by_their_path_each_once():
    names = [name for name, _ in Whole().named_parameters()]
    assert names == "tied scale first.bias parts.0.weight parts.0.bias parts.1.weight parts.1.bias".split()
    assert Whole().count_parameters() == 3 * 9 + 5


def test_train_and_eval_reach_the_whole_tree():
    whole = Whole().eval()
    assert not any(module.training for _, module in whole.named_modules())
    assert whole.train().parts[1].training


def test_parameters_and_gradients_are_views_of_two_buffers():
    whole = Whole()
    flat = FlatBuffers(whole)
    for name, parameter in whole.named_parameters():
        assert np.shares_memory(parameter.data, flat.data[flat.slices[name]])
        assert np.shares_memory(parameter.grad, flat.grad[flat.slices[name]])
        assert flat.slices[name].start % 16 == 0
    assert np.all(whole.scale.data == 2)
    (whole.first.weight * 3).sum().backward()
    assert flat.grad.sum() == 18
    flat.zero_grad()
    assert not whole.first.weight.grad.any()


def test_matrices_come_first_for_weight_decay():
    whole = Whole()
    flat = FlatBuffers(whole)
    for name, parameter in whole.named_parameters():
        assert (flat.slices[name].stop <= flat.n_decay) == (parameter.ndim >= 2)


def test_state_goes_in_place_and_problems_are_listed_before_anything_changes():
    whole = Whole()
    flat = FlatBuffers(whole)
    state = {name: array + 1 for name, array in whole.state_dict().items()}
    whole.load_state_dict(state)
    assert np.all(whole.scale.data == 3) and np.shares_memory(whole.scale.data, flat.data)
    bad = {**state, "scale": np.zeros(4, np.float32), "extra": np.zeros(1, np.float32)}
    del bad["parts.1.bias"]
    with pytest.raises(ValueError) as error:
        whole.load_state_dict({name: array * 0 for name, array in bad.items()})
    for problem in ("parts.1.bias is missing", "extra is not a parameter", "scale has shape (4,), the model's has (5,"):
        assert problem in str(error.value)
    assert np.all(whole.scale.data == 3)


# -- optimizer -------------------------------------------------------------------------------------------------------


def test_two_adam_steps_by_hand():
    whole = Whole()
    flat = FlatBuffers(whole)
    optimizer = Adam(flat, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5)
    p, m, v = 2.0, 0.0, 0.0
    for t, g in ((1, 3.0), (2, -1.0)):
        flat.grad.fill(g)
        optimizer.step(0.1)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        p -= 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)) ** 0.5 + 1e-8)  # a vector: no decay
        assert whole.scale.data == pytest.approx(p, rel=1e-6)
    assert optimizer.t == 2


def test_weight_decay_pulls_matrices_only():
    whole = Whole()
    flat = FlatBuffers(whole)
    Adam(flat, weight_decay=0.5).step(0.1)  # gradients are zero
    assert np.allclose(whole.first.weight.data, 0.95) and np.all(whole.scale.data == 2)


def test_the_first_step_has_the_length_of_the_learning_rate():
    whole = Whole()
    flat = FlatBuffers(whole)
    flat.grad[:] = np.random.default_rng(0).standard_normal(flat.size)
    before = flat.data.copy()
    Adam(flat).step(0.01)
    assert np.allclose(np.abs(flat.data - before), 0.01, rtol=1e-4)


def test_clipping_scales_the_complete_gradient_to_the_norm():
    grad = np.array([3.0, 4.0], np.float32)
    norm = grad_norm(grad)
    assert norm == 5 and np.linalg.norm(grad * clip_scale(norm, 1.0)) == pytest.approx(1, rel=1e-5)
    assert clip_scale(norm, 10.0) == 1 and clip_scale(norm, 0) == 1
    assert norm.dtype == np.float32


def test_a_clip_factor_given_to_the_step_equals_scaled_gradients():
    results = []
    for folded in (True, False):
        whole = Whole()
        flat = FlatBuffers(whole)
        flat.grad[:] = np.random.default_rng(0).standard_normal(flat.size)
        optimizer = Adam(flat)
        for _ in range(3):
            if folded:
                optimizer.step(0.1, np.float32(0.25))
            else:
                flat.grad *= np.float32(0.25)
                optimizer.step(0.1)
                flat.grad /= np.float32(0.25)
        results.append(flat.data)
    assert np.array_equal(*results)


def test_schedules_at_their_corners():
    def lr(step, schedule):
        return learning_rate(step, schedule, 1.0, 0.1, 10, 110)

    for schedule in ("constant", "linear", "cosine"):
        assert [lr(step, schedule) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [lr(s, "linear") for s in (60, 110, 500)] == pytest.approx([0.55, 0.1, 0.1])
    assert [lr(s, "cosine") for s in (35, 60, 110)] == pytest.approx([0.1 + 0.45 * (1 + 0.5**0.5), 0.55, 0.1])
    assert lr(109, "constant") == 1
    assert [lr(s, "wsd") for s in (0, 9, 10, 109)] == pytest.approx([0.1, 1.0, 1.0, 1.0])  # no decay
    wsd = [learning_rate(s, "wsd", 1.0, 0.1, 10, 110, decay=20) for s in (4, 50, 90, 91, 100, 109, 110)]
    assert wsd == pytest.approx([0.5, 1.0, 1.0, 0.955, 0.55, 0.145, 0.1])
    assert learning_rate(60, "wsd", 1.0, 0.1, 10, 110, decay=500) == lr(60, "linear")  # never before the warmup ends
    with pytest.raises(ValueError, match="must be one of constant, linear, cosine, wsd, not 'step'"):
        lr(50, "step")
