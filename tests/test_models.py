"""The model: its sizes, what a token may see, what its parts are made of, how it writes."""

import math

import numpy as np
import pytest

import ops
from models import GPT, GPTConfig
from models.dropout import Dropout, set_dropout
from models.head import Head
from models.multihead_attention import MultiHeadAttention
from models.sampling import sample
from tinygrad2 import Tensor, no_grad
from tinygrad2.module import FlatBuffers
from tinygrad2.optim import Adam, clip_grad_norm

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
    assert GPT(GPTConfig.preset(name)).count_parameters() == count


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
        else:
            assert np.all(p.data == (1 if name.endswith("weight") else 0))


def test_the_seed_fixes_the_weights():
    a, b, c = (GPT(GPTConfig(**TINY), seed=s).wte.weight.data for s in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_head": 3}, "n_head = 3 does not divide n_embd = 16"),
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"activation": "relu"}, "activation must be one of gelu, gelu_erf, not 'relu'"),
        ({"vocab_size": 2.5}, "vocab_size must be of type int, not 2.5"),
        ({"bias": "yes"}, "bias must be of type bool, not 'yes'"),
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
    with pytest.raises(ValueError, match="the presets are demo, baby, gpt2"):
        GPTConfig.preset("gpt5")


# -- what a token may see --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 100.0], ids=["ordinary", "huge scores"])
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


def test_too_long_a_text_and_foreign_ids_are_named():
    with pytest.raises(ValueError, match="13 tokens are more than this model's block_size of 12"):
        tiny()(tokens(T=13))
    with pytest.raises(IndexError, match="token id 30 is outside the vocabulary of 30"):
        tiny()(np.full((1, 2), 30))
    with pytest.raises(IndexError, match="token id -5"):
        tiny()(tokens(), np.full((2, 12), -5))


# -- what its parts are made of --------------------------------------------------------------------------------------


def test_attention_equals_its_composition_of_small_ops():
    """Rung 2 against rung 1: one op with a derived backward, and softmax(q kT scale + mask) v out of small ones."""
    rng = np.random.default_rng(0)
    data = [rng.standard_normal((2, 3, 5, 4)) for _ in range(3)]
    dout = rng.standard_normal((2, 3, 5, 4))
    mask = np.where(np.tri(5, dtype=bool), 0.0, -np.inf)
    results = []
    for composed in (False, True):
        q, k, v = (Tensor(a, requires_grad=True) for a in data)
        if composed:
            out = ops.softmax(q @ k.transpose(0, 1, 3, 2) * (1 / math.sqrt(4)) + mask) @ v
        else:
            out = ops.attention(q, k, v)
        out.backward(dout)
        results.append([out.numpy(), q.grad, k.grad, v.grad])
    for one, other in zip(*results):
        assert np.allclose(one, other, rtol=1e-12, atol=1e-13)


def test_multihead_attention_equals_a_loop_over_single_heads():
    config = GPTConfig(**TINY)
    attention = MultiHeadAttention(config)
    rng = np.random.default_rng(0)
    for p in attention.parameters():
        p.data[...] = rng.standard_normal(p.shape)
    x = Tensor(rng.standard_normal((2, 5, 16)).astype(np.float32))
    qkv = (x @ attention.c_attn.weight + attention.c_attn.bias).numpy()
    heads = []
    for i in range(config.n_head):
        q, k, v = (Tensor(qkv[..., part * 16 + i * 8 : part * 16 + (i + 1) * 8]) for part in range(3))
        heads.append(Head()(q, k, v))
    expected = ops.concatenate(heads, axis=-1) @ attention.c_proj.weight + attention.c_proj.bias
    assert np.allclose(attention(x).numpy(), expected.numpy(), rtol=1e-4, atol=1e-3)


def test_queries_at_the_end_attend_as_they_would_in_the_whole():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 6, 4)) for _ in range(3))
    whole = ops.attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    last = ops.attention(Tensor(q[:, -2:]), Tensor(k), Tensor(v)).numpy()
    assert np.allclose(whole[:, -2:], last, rtol=1e-12)


def test_a_tied_weight_gets_the_gradients_of_both_uses():
    tied, untied = tiny(), tiny(tied_head=False)
    state = tied.state_dict()
    untied.load_state_dict({**state, "lm_head.weight": state["wte.weight"].T})
    x, y = tokens(), tokens(seed=1)
    for model in (tied, untied):
        model(x, y)[1].backward()
    assert np.allclose(tied.wte.weight.grad, untied.wte.weight.grad + untied.lm_head.weight.grad.T, atol=1e-6)


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
        _, scale = clip_grad_norm(flat.grad, 1.0)
        optimizer.step(1e-2, scale)
        losses.append(loss.item())
    return losses


# Recorded on 2026-11-20. PyTorch gives the same (test_torch_gpt.py).
TEN_LOSSES = [3.397905, 3.249511, 3.120436, 2.985042, 2.853897, 2.731515, 2.603670, 2.478878, 2.352103, 2.221543]


def test_one_batch_is_learned_by_heart_with_the_recorded_losses():
    losses = overfit(120)
    assert losses[:10] == pytest.approx(TEN_LOSSES, abs=1e-4)
    assert losses[-1] < 0.1


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


def test_dropout_is_in_embedding_attention_and_residual():
    layers = [name for name, module in tiny(dropout=0.1).named_modules() if isinstance(module, Dropout)]
    assert layers[:4] == ["drop", "h.0.attn.head.attn_dropout", "h.0.attn.resid_dropout", "h.0.mlp.resid_dropout"]
    assert len(layers) == 1 + 2 * 3


def test_masks_depend_on_the_sequence_not_on_how_the_batch_is_cut():
    model = tiny(dropout=0.3)
    x = tokens(B=4)
    set_dropout(model, seed=1, step=5)
    whole, _ = model(x)
    set_dropout(model, seed=1, step=5, first_sequence=2)
    half, _ = model(x[2:])
    assert np.allclose(whole.numpy()[2:], half.numpy(), atol=1e-5)
    set_dropout(model, seed=1, step=6, first_sequence=2)
    other, _ = model(x[2:])
    assert not np.allclose(half.numpy(), other.numpy(), atol=1e-3)


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
    model = tiny(scale=5.0)
    text = list(model.generate([1, 2, 3], 30))
    assert len(text) == 30
    window = np.array([[*[1, 2, 3], *text[:29]][-12:]])
    logits, _ = model(window)
    assert text[29] == int(np.argmax(logits.numpy()[0, -1]))


def test_generation_stops_at_the_stop_token_and_below_n_vocab():
    model = tiny(scale=5.0)
    first = list(model.generate([1], 8))
    assert list(model.generate([1], 8, stop=first[3])) == first[: first.index(first[3])]
    rng = np.random.default_rng(0)
    assert max(model.generate([1], 60, rng, temperature=5.0, n_vocab=7)) < 7


def test_the_same_generator_gives_the_same_text():
    model = tiny()
    texts = [list(model.generate([1], 10, np.random.default_rng(seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_needs_a_beginning_and_leaves_no_graph():
    with pytest.raises(ValueError, match="at least one token"):
        next(tiny().generate([], 3))
    with no_grad():
        logits, _ = tiny()(tokens())
    assert logits.node is None


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
    assert frequencies(top_p=0.5)[0] == 1 and frequencies(top_p=1e-9)[0] == 1


def test_impossible_tokens_are_never_drawn():
    rng = np.random.default_rng(0)
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], np.float32)
    assert {sample(logits, rng) for _ in range(200)} == {1, 3}
