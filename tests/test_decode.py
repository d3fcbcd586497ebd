"""Generating text with a cache and with int8 weights."""

import gc
import weakref

import numpy as np
import pytest
from test_models import tiny, tokens

import inference
from models import GPT, GPTConfig
from models.kv_cache import KVCache
from models.quantize import LinearBfloat16, LinearInt8, quantize
from models.sampling import sample
from ops.linear_int8 import quantize_rows
from tinygrad2.dispatch import kernels
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.mixed_precision import mixed_precision
from tinygrad2.tensor import no_grad


def uncached(model, text, n, rng=None, **how):
    """What `generate` promises, without a cache: each token after a full forward pass over the last block_size."""
    text, new = list(text), []
    for _ in range(n):
        with no_grad():
            logits, _ = model(np.array([text[-model.config.block_size :]]))
        new.append(sample(logits.numpy()[0, -1], rng, **how))
        text.append(new[-1])
    return new


@pytest.fixture(params=["auto", "reference"])
def mode(request):
    with kernels(request.param):
        yield


@pytest.mark.parametrize("prompt", [[1], [1, 2, 3], list(range(12)), list(range(20))], ids=len)
def test_cached_equals_uncached_token_for_token(prompt, mode):
    """Also past the context of 12, where the window slides."""
    model = tiny(seed=3, scale=30.0)
    assert list(model.generate(prompt, 30)) == uncached(model, prompt, 30)
    how = dict(temperature=1.5, top_k=20)
    drawn = list(model.generate(prompt, 30, np.random.default_rng(5), **how))
    assert drawn == uncached(model, prompt, 30, np.random.default_rng(5), **how)
    assert len(set(drawn)) > 5


@pytest.mark.parametrize("cuts", [[12], [1] * 12, [5, 1, 6], [1, 11]], ids=str)
def test_a_text_in_pieces_returns_the_same_as_at_once(cuts, mode):
    model = tiny(scale=5.0)
    x = tokens(B=3)
    with no_grad():
        full = model.hidden(x).numpy()
        cache, pieces, start = KVCache(model.config, batch=3), [], 0
        for T in cuts:
            pieces.append(model.hidden(x[:, start : start + T], cache).numpy())
            start += T
    assert cache.full and np.allclose(np.concatenate(pieces, axis=1), full, rtol=1e-4, atol=1e-5)


def test_a_cache_can_be_used_again_after_reset():
    model, x = tiny(), tokens(B=1)
    cache = KVCache(model.config)
    first = model.next_logits(x, cache).numpy()
    cache.reset()
    assert cache.position == 0 and np.array_equal(first, model.next_logits(x, cache).numpy())


def test_what_does_not_fit_is_refused_and_changes_nothing():
    model = tiny()
    cache = KVCache(model.config)
    model.next_logits(tokens(B=1, T=10), cache)
    with pytest.raises(ValueError, match=r"10 \+ 3 tokens do not fit in a cache for 12"):
        model.next_logits(tokens(B=1, T=3), cache)
    with pytest.raises(ValueError, match=r"for 1 sequence\(s\), not 2"):
        model.next_logits(tokens(B=2, T=1), cache)
    assert cache.position == 10


# -- int8 ------------------------------------------------------------------------------------------------------------


def test_no_weight_is_off_by_more_than_half_a_step():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((50, 33)).astype(np.float32) * np.logspace(-3, 3, 50)[:, None].astype(np.float32)
    weight[7] = 0
    q, scale = quantize_rows(np, weight)
    assert q.dtype == np.int8 and scale.dtype == np.float32 and np.abs(q).max() == 127
    assert (np.abs(q * scale[:, None] - weight) <= 0.5001 * scale[:, None]).all()
    assert not q[7].any() and np.isfinite(scale).all()


@pytest.mark.parametrize("changes", [{}, {"bias": False, "tied_head": False}, {"activation": "gelu_erf"}], ids=str)
def test_an_int8_model_computes_nearly_the_same(changes, mode):
    config = GPTConfig(block_size=16, vocab_size=97, n_layer=3, n_head=4, n_embd=64, **changes)
    model = GPT(config, seed=0).eval()
    x = np.random.default_rng(0).integers(0, 97, (2, 16))
    with no_grad():
        exact = model(x)[0].numpy()
        rough = quantize(model)(x)[0].numpy()
    off = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 1e-6 < off < 0.05
    assert len(list(model.generate([1, 2], 20))) == 20



@pytest.mark.parametrize("linear", [LinearInt8, LinearBfloat16])
def test_the_float32_weights_are_given_up(linear):
    model = tiny(seed=1)
    flat = FlatBuffers(model)
    weights = weakref.ref(flat.data)
    del flat
    quantize(model.eval(), linear)
    gc.collect()
    assert weights() is None
    model(np.array([[1, 2, 3]]))

def test_an_int8_model_lets_go_of_its_float_weights():
    import gc
    import weakref

    model = GPT(GPTConfig(block_size=16, vocab_size=97, n_layer=1, n_head=4, n_embd=64), seed=0)
    refs = [weakref.ref(model.h[0].mlp.c_fc.weight), weakref.ref(model.h[0].attn.c_attn.weight.data)]
    quantize(model)
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


@pytest.mark.parametrize("changes", [{}, {"bias": False, "tied_head": False}, {"activation": "gelu_erf"}], ids=str)
@pytest.mark.parametrize("T", [1, 3, 16])
def test_bfloat16_weights_compute_what_rounded_weights_do(changes, mode, T):
    config = GPTConfig(block_size=16, vocab_size=97, n_layer=3, n_head=4, n_embd=64, **changes)
    model = GPT(config, seed=0).eval()
    x = np.random.default_rng(0).integers(0, 97, (1, T))
    with no_grad(), mixed_precision("bfloat16"):
        exact = model(x)[0].numpy()
        packed = quantize(model, LinearBfloat16)(x)[0].numpy()
    assert np.abs(packed - exact).max() < 2e-3 * np.abs(exact).max()  # sums in another order may round otherwise later
    assert model.lm_head.weight.dtype == np.uint16 and not isinstance(model.h[0].mlp, type(GPT(config).h[0].mlp))


def test_inference_writes_in_int8(tmp_path, capfdbinary):
    from tinygrad2.io.weights import save_weights
    from tinygrad2.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.train("the cat sat on the mat. " * 20, 270)
    model = GPT(GPTConfig(block_size=16, vocab_size=270, n_layer=2, n_head=2, n_embd=32), seed=0)
    FlatBuffers(model)
    path = str(tmp_path / "w.bin")
    save_weights(path, model.state_dict(), model.config.to_dict(), tokenizer.to_json(), {})
    for quantized in ("none", "int8"):
        flags = ["--weights", path, "--prompt", "the", "--max-new-tokens", "5", "--greedy", "--quantize", quantized]
        assert inference.main(flags) == 0
        assert capfdbinary.readouterr().out.startswith(b"the")
