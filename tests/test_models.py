"""The model: its sizes, what a token may see, what its parts are made of, how it generates."""

import gc
import math
import tracemalloc
import weakref

import numpy as np
import pytest

import ops
from models import GPT, GPTConfig
from models.dropout import Dropout, set_dropout
from models.head import Head
from models.multihead_attention import MultiHeadAttention
from models.sampling import sample
from ops.dropout import keep_mask
from tinygrad2 import Tensor, no_grad
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam, clip_scale, grad_norm

TINY = {"block_size": 12, "vocab_size": 30, "n_layer": 2, "n_head": 2, "n_embd": 16}


def tiny(seed=1, scale=1.0, **changes):
    model = GPT(GPTConfig(**{**TINY, **changes}), seed=seed)
    for parameter in model.parameters():
        parameter.data *= scale
    return model


def tokens(B=2, T=12, seed=0, V=30):
    return np.random.default_rng(seed).integers(0, V, (B, T))


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, count",
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_parameter_counts_of_the_released_models(name, count):
    config = GPTConfig.preset(name)
    assert config.count_parameters() == count
    if count < 2e8:  # test_memory.py compares the count with models of other shapes
        assert GPT(config).count_parameters() == count


def test_an_untied_head_has_parameters_of_its_own():
    assert tiny(tied_head=False).count_parameters() - tiny().count_parameters() == 30 * 16


def test_parameter_names_are_those_of_the_released_files():
    names = [name for name, _ in tiny(n_layer=1).named_parameters()]
    parts = "ln_1 attn.c_attn attn.c_proj ln_2 mlp.c_fc mlp.c_proj".split()
    block = [f"h.0.{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    assert names == ["wte.weight", "wpe.weight", *block, "ln_f.weight", "ln_f.bias"]


def test_without_biases_there_are_none():
    assert not [name for name, _ in tiny(bias=False).named_parameters() if name.endswith("bias")]


def test_initial_weights_are_gpt2s():
    model = GPT(GPTConfig(block_size=64, vocab_size=500, n_layer=6, n_head=4, n_embd=128), seed=0)
    for name, p in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert p.data.std() == pytest.approx(0.02 / math.sqrt(12), rel=0.03)
        elif p.ndim == 2:
            assert p.data.std() == pytest.approx(0.02, rel=0.03) and abs(p.data.mean()) < 5e-4
            assert (np.abs(p.data) < 0.02).mean() == pytest.approx(0.683, abs=0.01)  # as of a normal distribution
        else:
            assert np.all(p.data == (1 if name.endswith("weight") else 0))


def test_the_seed_fixes_the_weights():
    a, b, c = (GPT(GPTConfig(**TINY), seed=s).wte.weight.data for s in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_head": 3}, "n_head = 3 does not divide n_embd = 16"),
        *[({name: 0}, f"{name} must be at least 1, not 0") for name in TINY],
        *[({name: 2.5}, f"{name} must be of type int, not 2.5") for name in TINY],
        ({"n_layer": True}, "n_layer must be of type int, not True"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), not -0.1"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\), not nan"),
        ({"dropout": "0.1"}, "dropout must be of type float, not '0.1'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"activation": "relu"}, "activation must be one of gelu, gelu_erf, not 'relu'"),
        ({"bias": "yes"}, "bias must be of type bool, not 'yes'"),
        ({"tied_head": 1}, "tied_head must be of type bool, not 1"),
    ],
)
def test_impossible_configs_name_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**TINY, **changes})


def test_configs_from_files_are_checked():
    values = GPTConfig(**TINY).to_dict()
    assert GPTConfig.from_dict(values) == GPTConfig(**TINY)
    with pytest.raises(ValueError, match="w.bin: unknown config field 'rope'"):
        GPTConfig.from_dict({**values, "rope": True}, "w.bin")
    with pytest.raises(ValueError, match="w.bin: config field 'n_head' is missing"):
        GPTConfig.from_dict({k: v for k, v in values.items() if k != "n_head"}, "w.bin")
    with pytest.raises(ValueError, match="the presets are block, demo, baby, gpt2"):
        GPTConfig.preset("gpt5")


# -- what a token may see --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4], ids=["ordinary", "scores of 1e6", "scores of 1e14"])
def test_no_token_sees_the_future(scale):
    model = tiny(scale=scale)
    x = tokens()
    before, _ = model(x)
    for t in (1, 6, 11):
        changed = x.copy()
        changed[:, t] = (changed[:, t] + 1) % 30
        after, _ = model(changed)
        assert np.array_equal(before.numpy()[:, :t], after.numpy()[:, :t])
        assert not np.array_equal(before.numpy()[:, t], after.numpy()[:, t])


def test_no_gradient_comes_back_from_the_past():
    """What is written at position t does not depend on later positions, so it teaches them nothing: exactly nothing."""
    model = tiny(tied_head=False)
    logits, _ = model(tokens())
    logits[:, :7].sum().backward()
    learned = np.abs(model.wpe.weight.grad).max(-1) > 0
    assert learned.tolist() == [True] * 7 + [False] * 5


def test_every_token_sees_the_whole_past():
    model = tiny(scale=5.0)
    x = tokens(B=1)
    before, _ = model(x)
    x[0, 0] = (x[0, 0] + 1) % 30
    after, _ = model(x)
    assert np.all(np.abs(before.numpy() - after.numpy()).max(-1) > 0)


def test_sequences_of_a_batch_do_not_see_each_other():
    model = tiny(scale=5.0)
    x = tokens(B=3)
    together, _ = model(x)
    alone, _ = model(x[1:2])
    assert np.allclose(together.numpy()[1:2], alone.numpy(), rtol=1e-4, atol=1e-4)


def test_the_first_loss_is_about_ln_V():
    _, loss = tiny(vocab_size=1000)(tokens(V=1000), tokens(seed=1, V=1000))
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)


def test_without_targets_there_is_no_loss():
    logits, loss = tiny()(tokens(T=5))
    assert logits.shape == (2, 5, 30) and loss is None


def test_too_long_a_text_and_foreign_ids_are_named():
    with pytest.raises(ValueError, match="13 tokens are more than this model's block_size of 12"):
        tiny()(tokens(T=13))
    with pytest.raises(IndexError, match="token id 30 is outside the vocabulary of 30"):
        tiny()(np.full((1, 2), 30))
    with pytest.raises(IndexError, match="token id -5"):
        tiny()(tokens(), np.full((2, 12), -5))


@pytest.mark.parametrize("shape", [(3, 2), (1, 1), (2, 1), (2, 2)], ids=str)
def test_targets_of_another_shape_than_the_tokens_are_refused(shape):
    """Also where their number happens to fit, or to broadcast: the loss would be of something else."""
    with pytest.raises(ValueError, match=r"targets.*\({}, {}\)".format(*shape)):
        tiny()(tokens(T=3), np.zeros(shape, int))


# -- what its parts are made of --------------------------------------------------------------------------------------


@pytest.mark.parametrize("Tq, Tk", [(5, 5), (2, 5), (1, 1)])
@pytest.mark.parametrize("dropped", [False, True], ids=["", "with dropout"])
def test_attention_equals_its_composition_of_small_ops(Tq, Tk, dropped):
    """Rung 2 against rung 1: one op with a derived backward, and softmax(q kT scale + mask) v out of small ones."""
    rng = np.random.default_rng(0)
    data = [rng.standard_normal((2, 3, T, 4)) for T in (Tq, Tk, Tk)]
    dout = rng.standard_normal((2, 3, Tq, 4))
    mask = np.where(np.tri(Tq, Tk, Tk - Tq, dtype=bool), 0.0, -np.inf)
    dropout = (0.5, 11, 77) if dropped else (0.0, 0, 0)
    keep = keep_mask(np, (2, 3, Tq, Tk), *dropout, np.float64)
    results = []
    for composed in (False, True):
        q, k, v = (Tensor(a, requires_grad=True) for a in data)
        if composed:
            w = ops.softmax(q @ k.transpose(0, 1, 3, 2) * (1 / math.sqrt(4)) + mask)
            out = (w * keep) @ v
        else:
            out = ops.attention(q, k, v, *dropout)
        out.backward(dout)
        results.append([out.numpy(), q.grad, k.grad, v.grad])
    for one, other in zip(*results):
        assert np.allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n_head", [1, 2, 4, 16])
def test_multihead_attention_equals_a_loop_over_single_heads(n_head):
    """Forward and gradients, in float64; the loop takes each head's columns of c_attn by hand."""
    attention = MultiHeadAttention(GPTConfig(**{**TINY, "n_head": n_head}))
    rng = np.random.default_rng(0)
    for p in attention.parameters():
        p.data = rng.standard_normal(p.shape)
    values, dout = rng.standard_normal((2, 5, 16)), rng.standard_normal((2, 5, 16))

    def loop(x):
        heads, hs = [], 16 // n_head
        for i in range(n_head):
            columns = [slice(part * 16 + i * hs, part * 16 + (i + 1) * hs) for part in range(3)]
            q, k, v = (x @ attention.c_attn.weight[:, c] + attention.c_attn.bias[c] for c in columns)
            heads.append(Head()(q, k, v))
        return ops.concatenate(heads, axis=-1) @ attention.c_proj.weight + attention.c_proj.bias

    results = []
    for function in (attention, loop):
        x = Tensor(values, requires_grad=True)
        out = function(x)
        out.backward(dout)
        results.append([out.numpy(), x.grad, *(p.grad for p in attention.parameters())])
        for p in attention.parameters():
            p.grad = None
    for one, other in zip(*results):
        assert np.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_queries_at_the_end_attend_as_they_would_in_the_whole():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 6, 4)) for _ in range(3))
    full = ops.attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    last = ops.attention(Tensor(q[:, -2:]), Tensor(k), Tensor(v)).numpy()
    assert np.allclose(full[:, -2:], last, rtol=1e-12)


def test_a_tied_weight_gets_the_gradients_of_both_uses():
    tied, untied = tiny(), tiny(tied_head=False)
    state = tied.state_dict()
    untied.load_state_dict({**state, "lm_head.weight": state["wte.weight"].T})
    x, y = tokens(), tokens(seed=1)
    for model in (tied, untied):
        model(x, y)[1].backward()
    as_table, as_head = untied.wte.weight.grad, untied.lm_head.weight.grad.T
    assert np.abs(as_table).max() > 1e-3 and np.abs(as_head).max() > 1e-3  # neither is lost in the tolerance
    assert np.allclose(tied.wte.weight.grad, as_table + as_head, rtol=1e-5, atol=1e-7)


def test_a_tied_weight_is_one_view_of_the_flat_buffer():
    model = tiny()
    flat = FlatBuffers(model)
    assert "lm_head.weight" not in flat.slices
    flat.data[flat.slices["wte.weight"]] = 0
    logits, _ = model(tokens())
    assert not logits.numpy().any()  # the head was changed with the embedding


# -- learning --------------------------------------------------------------------------------------------------------


def overfit(steps):
    """Losses of training on one batch, over and over."""
    model = tiny(seed=7)
    flat = FlatBuffers(model)
    optimizer = Adam(flat, betas=(0.9, 0.95))
    x, y = tokens(seed=2), tokens(seed=3)
    losses = []
    for _ in range(steps):
        flat.zero_grad()
        _, loss = model(x, y)
        loss.backward()
        optimizer.step(1e-2, clip_scale(grad_norm(flat.grad), 1.0))
        losses.append(loss.item())
    return losses


# Recorded on 2026-11-20. PyTorch computes the same (test_torch_gpt.py).
TEN_LOSSES = [3.397905, 3.249511, 3.120436, 2.985042, 2.853897, 2.731515, 2.603670, 2.478878, 2.352103, 2.221543]


def test_one_batch_is_learned_by_heart_with_the_recorded_losses():
    losses = overfit(120)
    assert losses[:10] == pytest.approx(TEN_LOSSES, abs=1e-4)
    assert losses[-1] < 0.1


# -- memory: by reference count alone --------------------------------------------------------------------------------


def held_by(make):
    """What `make()` returns, and how many bytes of arrays stay allocated while it lives."""
    tracemalloc.start()
    result = make()
    arrays = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)])
    tracemalloc.stop()
    return result, sum(trace.size for trace in arrays.traces)


def test_a_loss_that_is_dropped_takes_its_graph_along(no_collector):
    model = tiny()
    hidden = model.hidden(tokens())
    refs = [weakref.ref(hidden), weakref.ref(hidden.node)]
    loss = model.logits(hidden).sum()
    del hidden
    assert refs[0]() is None and refs[1]() is not None  # the node is needed for backward, the Tensor is not
    del loss
    assert refs[1]() is None


def test_after_backward_a_loss_that_is_kept_keeps_no_activations(no_collector):
    model = tiny()
    FlatBuffers(model)  # holds the gradients from the start
    x, y = tokens(), tokens(seed=1)

    def step():
        _, loss = model(x, y)
        loss.backward()
        return loss

    step()
    loss, kept = held_by(step)
    assert loss.node is not None and kept < 1000  # one (B, T, C) is 1,536


def test_a_forward_pass_without_gradients_keeps_the_logits_only(no_collector):
    model = tiny(n_layer=6)
    x, y = tokens(B=8), tokens(B=8, seed=1)
    _, with_graph = held_by(lambda: model(x, y))
    with no_grad():
        (logits, _), without = held_by(lambda: model(x, y))
    assert logits.data.nbytes <= without < 1.1 * logits.data.nbytes and with_graph > 10 * without


def training(model):
    """A function that trains it for some steps."""
    flat = FlatBuffers(model)
    optimizer = Adam(flat, weight_decay=0.1)
    x, y = tokens(), tokens(seed=1)

    def train(steps):
        for step in range(steps):
            set_dropout(model, seed=1, step=step)
            flat.zero_grad()
            model(x, y)[1].backward()
            optimizer.step(1e-3, clip_scale(grad_norm(flat.grad), 1.0))

    return train


def test_50_training_steps_keep_no_array(no_collector):
    train = training(tiny(dropout=0.1))
    train(5)
    _, kept = held_by(lambda: train(50))
    assert kept < 20_000  # one (B, T, C) per step would be 77,000


def test_training_leaves_nothing_to_the_collector(no_collector):
    train = training(tiny(dropout=0.1))
    train(5)
    gc.collect()
    train(50)
    assert gc.collect() == 0


# -- dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_acts_in_training_only():
    model = tiny(dropout=0.5)
    x = tokens()
    set_dropout(model, seed=1, step=0)
    trained, _ = model(x)
    model.eval()
    a, _ = model(x)
    b, _ = model(x)
    assert np.array_equal(a.numpy(), b.numpy()) and not np.array_equal(a.numpy(), trained.numpy())


def test_evaluation_does_not_ask_for_the_step():
    logits, _ = tiny(dropout=0.1).eval()(tokens())
    assert np.array_equal(logits.numpy(), tiny()(tokens())[0].numpy())


def test_dropout_keeps_the_mean():
    """Of what a layer passes on, and of the masks it passes to attention."""
    layer = Dropout(0.3)
    set_dropout(layer, seed=1, step=0)
    x = Tensor(np.full((50, 40, 50), 2.0, np.float32))
    out = layer(x).numpy()
    assert out.mean() == pytest.approx(2.0, abs=0.02) and (out == 0).mean() == pytest.approx(0.3, abs=0.01)
    mask = keep_mask(np, (50, 40, 40), *layer.inside(1600), np.float32)
    assert mask.mean() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    "path", ["drop", "h.0.attn.head.attn_dropout", "h.1.attn.resid_dropout", "h.1.mlp.resid_dropout"]
)
def test_each_dropout_layer_acts(path):
    model = tiny()
    before, _ = model(tokens())
    dict(model.named_modules())[path].p = 0.5
    set_dropout(model, seed=1, step=0)
    after, _ = model(tokens())
    assert not np.allclose(before.numpy(), after.numpy(), atol=1e-4)


def test_dropout_is_in_embedding_attention_and_residual():
    layers = [name for name, module in tiny(dropout=0.1).named_modules() if isinstance(module, Dropout)]
    assert layers[:4] == ["drop", "h.0.attn.head.attn_dropout", "h.0.attn.resid_dropout", "h.0.mlp.resid_dropout"]
    assert len(layers) == 1 + 2 * 3


def test_masks_depend_on_the_sequence_not_on_how_the_batch_is_cut():
    model = tiny(dropout=0.3)
    x = tokens(B=4)
    set_dropout(model, seed=1, step=5)
    full, _ = model(x)
    set_dropout(model, seed=1, step=5, first_sequence=2)
    half, _ = model(x[2:])
    assert np.allclose(full.numpy()[2:], half.numpy(), atol=1e-5)


def test_masks_of_a_part_are_a_part_of_the_masks():
    """Rows 2 and 3 alone have, bit for bit, the masks of rows 2 and 3 of the batch."""
    shape = (4, 2, 6, 6)
    model = tiny(dropout=0.3)
    layers = [module for _, module in model.named_modules() if isinstance(module, Dropout)]
    for layer in layers:
        set_dropout(model, seed=1, step=5)
        full = keep_mask(np, shape, *layer.inside(72), np.float32)
        passed = layer(Tensor(np.ones(shape, np.float32))).numpy()
        set_dropout(model, seed=1, step=5, first_sequence=2)
        assert np.array_equal(keep_mask(np, (2, *shape[1:]), *layer.inside(72), np.float32), full[2:])
        assert np.array_equal(layer(Tensor(np.ones((2, *shape[1:]), np.float32))).numpy(), passed[2:])
        assert np.array_equal(passed, full) and not np.array_equal(full[2:], full[:2])


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 6}, {"first_sequence": 1}], ids=["seed", "step", "sequence"])
def test_another_seed_step_or_sequence_has_other_masks(change):
    model = tiny(dropout=0.3)
    texts = []
    for changes in ({}, change, {}):
        set_dropout(model, **{"seed": 1, "step": 5, **changes})
        texts.append(model(tokens())[0].numpy())
    assert not np.allclose(texts[0], texts[1], atol=1e-3) and np.array_equal(texts[0], texts[2])


def test_layers_have_masks_of_their_own():
    model = tiny(dropout=0.5)
    set_dropout(model, seed=1, step=0)
    keys = [module.key for _, module in model.named_modules() if isinstance(module, Dropout)]
    assert len(set(keys)) == len(keys)


def test_training_with_dropout_needs_to_know_the_step():
    with pytest.raises(RuntimeError, match="set_dropout"):
        tiny(dropout=0.1)(tokens())


# -- writing ---------------------------------------------------------------------------------------------------------


def test_greedy_generation_is_the_argmax_of_the_full_forward_pass():
    model = tiny(scale=5.0)
    text = [1, 2, 3]
    for token in model.generate([1, 2, 3], 6):
        logits, _ = model(np.array([text]))
        assert token == int(np.argmax(logits.numpy()[0, -1]))
        text.append(token)
    assert len(text) == 9


def test_past_the_context_the_window_slides():
    """Each new token is the likeliest after the last 12, whatever stood before them."""
    model = tiny(seed=3, scale=30.0)
    text = [1, 2, 3]
    for token in model.generate([1, 2, 3], 40):
        logits, _ = model(np.array([text[-12:]]))
        assert token == int(np.argmax(logits.numpy()[0, -1]))
        text.append(token)
    assert len(text) == 43 and len(set(text[12:])) > 10  # a varied text, or a wrong window would not show


def test_a_beginning_longer_than_the_context_counts_with_its_end():
    model = tiny(seed=3, scale=30.0)
    prompt = [int(i) for i in tokens(B=1, T=20, seed=4)[0]]
    assert list(model.generate(prompt, 5)) == list(model.generate(prompt[-12:], 5))


def test_generation_stops_at_the_stop_token_and_does_not_yield_it():
    model = tiny(scale=5.0)
    first = list(model.generate([1], 8))
    assert list(model.generate([1], 8, stop=first[3])) == first[: first.index(first[3])]


def test_only_ids_below_n_vocab_are_written():
    model = tiny(scale=5.0)
    assert max(model.generate([1], 60, np.random.default_rng(0), temperature=5.0)) >= 7
    assert max(model.generate([1], 60, np.random.default_rng(0), temperature=5.0, n_vocab=7)) == 6
    assert [max(model.generate([i], 1)) >= 7 for i in range(30)].count(True) > 5
    assert max(next(model.generate([i], 1, n_vocab=7)) for i in range(30)) < 7


def test_the_same_generator_gives_the_same_text():
    model = tiny()
    texts = [list(model.generate([1], 10, np.random.default_rng(seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_needs_a_beginning():
    with pytest.raises(ValueError, match="at least one token"):
        next(tiny().generate([], 3))


def test_generation_records_no_graph():
    model, seen = tiny(), []
    model.logits = lambda x: seen.append(x) or GPT.logits(model, x)
    assert len(list(model.generate([1], 3))) == 3
    assert len(seen) == 3 and not any(x.requires_grad or x.node for x in seen)


def test_generation_leaves_training_mode_and_gradients_as_they_were():
    model = tiny()
    model(tokens(), tokens(seed=1))[1].backward()
    before = {name: p.grad.copy() for name, p in model.named_parameters()}
    list(model.generate([1], 3))
    assert model.training and all(np.array_equal(p.grad, before[name]) for name, p in model.named_parameters())


# -- choosing the next token -----------------------------------------------------------------------------------------

LOGITS = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32))


def frequencies(**options):
    rng = np.random.default_rng(0)
    draws = [sample(LOGITS, rng, **options) for _ in range(4000)]
    return np.bincount(draws, minlength=5) / 4000


def test_draws_follow_the_probabilities():
    assert np.abs(frequencies() - np.exp(LOGITS)).max() < 0.03


def test_temperature_sharpens_and_flattens():
    assert frequencies(temperature=0.5)[0] == pytest.approx(0.25 / (0.25 + 0.0625 + 0.015625 + 2 * 0.0625**2), abs=0.03)
    assert np.abs(frequencies(temperature=1e6) - 0.2).max() < 0.03


def test_without_generator_or_at_temperature_zero_the_likeliest_is_taken():
    assert sample(LOGITS) == sample(LOGITS, np.random.default_rng(0), temperature=0) == 0


def test_top_k_keeps_the_k_likeliest_and_their_equals():
    assert frequencies(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0], abs=0.03)
    assert np.all(frequencies(top_k=4) > 0)  # the fourth and the fifth are equal
    assert np.all(frequencies(top_k=50) > 0)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    assert frequencies(top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0], abs=0.03)
    assert frequencies(top_p=1e-9)[0] == 1
    rng, even = np.random.default_rng(0), np.zeros(4, np.float32)
    assert {sample(even, rng, top_p=0.5) for _ in range(50)} == {0, 1}  # half is reached: no third one


def test_impossible_tokens_are_never_drawn():
    rng = np.random.default_rng(0)
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], np.float32)
    assert {sample(logits, rng) for _ in range(200)} == {1, 3}


def test_a_draw_of_exactly_zero_takes_the_first_possible_token():
    class Zero:
        def random(self):
            return 0.0

    assert sample(np.array([-np.inf, 0.0, 0.0], np.float32), Zero()) == 1
