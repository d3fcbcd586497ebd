"""Generating text with a cache and with int8 weights."""

import contextlib
import gc
import weakref
from unittest import mock

import numpy as np
import pytest
from test_models import tiny, tokens

import inference
from models import GPT, GPTConfig, block
from models.dropout import set_dropout
from models.kv_cache import KVCache
from models.quantize import LinearBfloat16, LinearInt8, quantize
from models.sampling import sample
from ops.linear_int8 import quantize_rows
from tinygrad2.dispatch import KERNELS, kernels
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import observe
from tinygrad2.mixed_precision import mixed_precision
from tinygrad2.system.threads import POOL
from tinygrad2.tensor import no_grad

needs_kernels = pytest.mark.skipif(("decode_block", "numpy") not in KERNELS, reason="no kernels: Numba is missing")


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


# -- a block in one call ---------------------------------------------------------------------------------------------

KINDS = [None, LinearBfloat16, LinearInt8]


@contextlib.contextmanager
def counting():
    """A list that gets a True for each block that is computed in one call, a False for each other."""
    calls, one_call = [], block.decode_block

    def counted(*args):
        out = one_call(*args)
        calls.append(out is not None)
        return out

    with mock.patch.object(block, "decode_block", counted):
        yield calls


def large(kind, seed=1, **changes):
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, **changes}
    model = GPT(GPTConfig(block_size=150, vocab_size=97, **sizes), seed=seed).eval()
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] += 0.05 * rng.standard_normal(parameter.shape).astype(np.float32)
    return model if kind is None else quantize(model, kind)


def written(model, n=4, prompt=(1, 2, 3)):
    """Scores of n new tokens, keys and values."""
    cache = KVCache(model.config)
    model.next_logits([prompt], cache)
    logits = [model.next_logits([[t]], cache).numpy() for t in range(n)]
    return np.array(logits), np.array(cache.k), np.array(cache.v)


@needs_kernels
@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"activation": "gelu_erf", "n_embd": 96}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_in_one_call_computes_what_its_ops_do(kind, dtype, changes):
    model, weights_must_be_rounded = large(kind, **changes), kind is None and dtype == "bfloat16"
    for prompt in ([5], [1, 2, 3], list(range(97))):
        with mixed_precision(dtype), counting() as calls:
            in_one_call = written(model, prompt=prompt)
        assert calls[-4 * 2 :] == [not weights_must_be_rounded] * (4 * 2)
        with mixed_precision(dtype), mock.patch.object(block, "decode_block", return_value=None):
            by_ops = written(model, prompt=prompt)
        for one, other in zip(in_one_call, by_ops):
            off = np.abs(one - other).max() / np.abs(other).max()
            assert off < (2e-6 if dtype == "float32" else 1e-2)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_in_one_call_has_the_same_bits_for_any_number_of_threads(kind, monkeypatch):
    model, seen = large(kind, n_embd=192, n_head=6), []
    for threads in (1, 2, 3, 4):
        monkeypatch.setattr(POOL, "threads", threads)
        seen.append([array.tobytes() for array in written(model)])
    assert seen[0] == seen[1] == seen[2] == seen[3]


@needs_kernels
def test_when_the_ops_of_a_block_run_one_by_one():
    with counting() as calls:
        written(tiny())                                           # 20 channels: no multiple of what a vector holds
        assert not any(calls)
        model = large(None, dropout=0.5)
        written(model, n=1)
        assert calls[-4:] == [False, False, True, True]           # the prompt, the new token
        calls.clear()
        with kernels("reference"):
            written(model)
        with observe(Nothing()):
            written(model)
        cache = KVCache(model.config, batch=2)
        model.next_logits([[1], [2]], cache)                      # two texts
        model.hidden(np.array([[1]]), KVCache(model.config))      # gradients are recorded
        model.train()
        set_dropout(model, seed=0, step=0)
        written(model)
        assert len(calls) > 20 and not any(calls)


class Nothing:
    """An observer that sees all ops and does nothing."""

    def inside(self, module):
        return contextlib.nullcontext()

    def before(self, node):
        pass

    def after_forward(self, node, arrays, results):
        pass


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_in_one_call_stays_one(kind):
    model = large(kind)
    model.wpe.weight.data[3] = np.nan
    assert np.isnan(written(model, n=1)[0]).all()


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
