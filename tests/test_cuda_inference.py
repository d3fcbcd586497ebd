"""CUDA kernels generate the CPU's texts, on the stand-in: greedily, in float32, mixed precision and int8."""

import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running

import inference
import train_gpt2
from models import GPT, GPTConfig
from models.kv_cache import KVCache
from tinygrad2.distributed.world import World
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.missing_kernels import watch_missing_kernels
from tinygrad2.precision import matmul_precision

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny model that has learned something, so that no two tokens are nearly as likely."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "text.txt").write_text("The cat sat on the mat. The dog sat on the cat.\n" * 20)
    flags = "--n-layer 2 --n-embd 32 --n-head 2 --block-size 16 --vocab-size 270 --steps 60 --batch-size 8 --lr 1e-2 "
    flags += f"--warmup-steps 5 --eval-every 0 --sample-every 0 --data {folder / 'text.txt'} "
    flags += f"--weights-out {folder / 'model'} --run-dir {folder / 'run'}"
    assert train_gpt2.main(World(), flags.split()) == 0
    watch_missing_kernels(None)                                   # the training has asked to be told
    return folder / "model"


@pytest.mark.parametrize("flags, launched", [
    ("", {"attention_split", "gelu_forward", "layernorm_forward"}),
    ("--dtype bfloat16", {"cast_to_half"}),
    ("--dtype float16", {"cast_to_half"}),
    ("--quantize int8", {"rows_by_int8"}),
    ("--quantize int8 --dtype bfloat16", {"rows_by_int8"}),
    ("--num-samples 9 --batch-size 9 --quantize int8", {"dequantize"}),
])  # fmt: skip
def test_a_text_is_the_cpus(weights, monkeypatch, capsys, flags, launched):
    command = f"--weights {weights} --temperature 0 --max-new-tokens 10 --prompt The {flags}".split()
    on_cpu = [flag if flag != "float16" else "bfloat16" for flag in command]
    assert inference.main([*on_cpu, "--device", "cpu", "--kernels", "reference"]) == 0
    text = capsys.readouterr().out
    strict_cupy.install(monkeypatch)
    lt = fake_cublaslt.install(monkeypatch)
    before = lt.fake_products()
    with running() as launches:
        assert inference.main([*command, "--device", "cuda"]) == 0
    assert capsys.readouterr().out == text and len(text.split()) > 5
    assert launched <= set(launches) and (lt.fake_products() > before or "int8" in flags)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_cache_of_a_gpu_has_the_dtype_of_the_activations(monkeypatch, dtype):
    """So that attention casts nothing. A token is the same with a cache of float32: what goes in was rounded
    before."""
    strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    model = GPT(GPTConfig(block_size=12, vocab_size=30, n_layer=2, n_head=2, n_embd=16), seed=0).eval()
    FlatBuffers(model, "cuda")
    other, found = model.new_cache(), []
    with matmul_precision("highest" if dtype == "float32" else dtype), running():
        cache = model.new_cache()
        for used in (cache, other):
            model.next_logits([[1, 2, 3]], used)
            found.append(model.next_logits([[4]], used).numpy().astype(np.float32))
    assert {array.dtype.name for array in cache.k + cache.v} == {dtype}
    assert {array.dtype.name for array in other.k + other.v} == {"float32"} and np.array_equal(*found)
    with matmul_precision("bfloat16"):
        assert KVCache(model.config).k[0].dtype == np.float32     # the CPU's


@pytest.mark.parametrize("made", ["bfloat16", "float16"])
@pytest.mark.parametrize("used", ["highest", "float16", "bfloat16"])
def test_a_cache_serves_other_precisions_than_its_own(monkeypatch, made, used):
    """With the keys and values that it has, rounded to 16 bits."""
    strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    model = GPT(GPTConfig(block_size=12, vocab_size=30, n_layer=2, n_head=2, n_embd=16), seed=0).eval()
    FlatBuffers(model, "cuda")
    with running(check=False):
        with matmul_precision(made):
            cache = model.new_cache()
            model.next_logits([[1, 2, 3]], cache)
        usual = model.next_logits([[1, 2, 3, 4]], model.new_cache()).numpy()
        with matmul_precision(used):
            found = model.next_logits([[4]], cache).numpy().astype(np.float32)
    assert cache.k[0].dtype.name == made and cache.position == 4
    assert np.allclose(found, usual, atol=0.02) and not np.array_equal(found, usual)
