"""New tokens by a CUDA graph, on the stand-in for CuPy: the tokens and the scores of the usual way, bit for bit."""

import contextlib
from collections import Counter
from unittest import mock

import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running
from strict_capture import Graph, is_capturing

from models import GPT, GPTConfig, decode_graph, generation
from models.decode_graph import DecodeGraph
from models.generation import generate
from models.head_lm import HeadConfig, HeadLanguageModel
from models.last_tokens import TokenCache
from models.quantize import LinearBfloat16, LinearInt8, quantize
from models.sampling import Sampling
from tinygrad2.dispatch import kernels
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import observe
from tinygrad2.precision import matmul_precision
from tinygrad2.writes import wrote

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)  # CuPy's own products cannot be captured
    return cupy


def small(kind=None, **changes):
    sizes = dict(block_size=24, vocab_size=40, n_layer=2, n_head=2, n_embd=16)
    model = GPT(GPTConfig(**{**sizes, **changes}), seed=0).eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data[...] += np.random.default_rng(i).standard_normal(parameter.shape).astype(np.float32) / 10
    FlatBuffers(model, "cuda")
    return model if kind is None else quantize(model, kind)


def in_precision(dtype):
    return matmul_precision("highest" if dtype == "float32" else dtype)


class Written:
    """Texts as they are written: their tokens, and the bits of the scores from which each was drawn; how often a graph
    was launched, and recorded."""

    def __init__(self, model, prompts, n, by_graph, between=lambda token: None, **options):
        self.scores, self.launches, self.graphs = [], 0, set()
        launch, sample = Graph.launch, generation.sample

        def launched(graph, stream=None):
            self.launches += 1
            self.graphs.add(graph)
            launch(graph, stream)

        def drawn(logits, *args, **knobs):
            assert logits.dtype == np.float32
            self.scores.append(logits.tobytes())
            return sample(logits, *args, **knobs)

        no_graph = mock.patch.object(DecodeGraph, "scores_after", return_value=None)
        rngs = list(map(np.random.default_rng, range(len(prompts))))
        patches = mock.patch.object(Graph, "launch", launched), mock.patch.object(generation, "sample", drawn)
        with contextlib.nullcontext() if by_graph else no_graph, patches[0], patches[1]:
            self.steps = []
            for step in generate(model, prompts, n, rngs, Sampling(), **options):
                self.steps.append(step)
                between(len(self.steps))


def same(model, prompts, n, launches, graphs=1, **options):
    """The texts by graphs, so many of them, launched so often, and without are the same; the former."""
    with running(check=False):
        usual = Written(model, prompts, n, False, **options)
        found = Written(model, prompts, n, True, **options)
    assert usual.steps == found.steps and usual.scores == found.scores and not usual.launches
    assert (found.launches, len(found.graphs)) == (launches, graphs)
    assert len({step.token for step in found.steps}) > 2
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", [None, LinearInt8, LinearBfloat16])
def test_a_text_has_the_bits_of_the_usual_way(kind, dtype, cupy):
    """Of 9 new tokens the prompt gives the scores for the first, and the second goes through as usual."""
    with in_precision(dtype):
        same(small(kind), [[1, 2, 3]], 9, launches=7)


def test_kernels_of_a_graph_have_no_races(cupy):
    with in_precision("bfloat16"), running() as launches:
        Written(small(n_layer=1), [[1, 2]], 5, True)
    assert launches.count("kv_append") == 5  # one as usual, one recorded, three launched


@pytest.mark.parametrize("changes", [dict(n_head=1), dict(tied_head=False, bias=False), dict(activation="gelu_erf")])
def test_other_models(changes, cupy):
    with in_precision("bfloat16"):
        same(small(**changes), [[1, 2, 3]], 6, launches=4)


def test_a_model_of_one_head(cupy):
    model = HeadLanguageModel(HeadConfig(block_size=12, vocab_size=40, n_embd=16), seed=0).eval()
    FlatBuffers(model, "cuda")
    same(model, [[1, 2, 3]], 6, launches=4)


def test_when_the_window_slides_all_tokens_go_through_again(cupy):
    """The cache is full after 24 tokens, and after each one from then on."""
    with in_precision("bfloat16"):
        same(small(), [list(range(20))], 12, launches=3)


def test_several_texts_share_a_graph_as_long_as_they_stay_together(cupy):
    """Texts of 3, 1 and 7 tokens, two at a time; the first pair ends together, and the third is alone."""
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    with in_precision("bfloat16"):
        same(small(), prompts, 6, launches=4 + 4, graphs=2, batch_size=2)
        same(small(), prompts, 6, launches=4)
        found = same(small(), prompts, 9, launches=6, graphs=2, ended=Ended({0: 4}))
    assert sum(step.text == 0 for step in found.steps) == 4


class Ended:
    """Text number i ends after so many tokens: what the caller of `generate` says between them."""

    def __init__(self, after):
        self.after, self.asked = after, Counter()

    def __contains__(self, text):
        self.asked[text] += 1
        return self.asked[text] % (self.after.get(text, 99) + 1) == 0


def test_a_text_with_the_prompt_of_another_begins_with_a_copy_of_its_cache(cupy):
    with in_precision("bfloat16"):
        found = same(small(), [[1, 2, 3]] * 3, 5, launches=3 + 3, graphs=2, batch_size=2)
    assert len({tuple(step.token for step in found.steps if step.text == i) for i in range(3)}) == 3


def test_caches_in_turn_and_a_reset(cupy):
    """Each change of the cache begins a graph again; a reset does not. The scores are those of the usual way."""
    model, graphs = small(), []
    with in_precision("bfloat16"), running(check=False):
        graph, caches, usual = DecodeGraph(model), [model.new_cache(), model.new_cache()], model.new_cache()
        for cache, prompt, turns in ((0, [1, 2], 4), (1, [5], 4), (0, [7, 8, 9], 3), (1, [2], 1)):
            caches[cache].reset()
            usual.reset()
            for target in (caches[cache], usual):
                model.next_logits([prompt], target)
            for token in range(turns):
                scores = graph.scores_after([caches[cache]], [[token]])
                assert np.array_equal(scores, model.next_logits([[token]], usual).numpy())
            graphs.append(graph.graph)
        again = graph.graph
        caches[1].reset()
        model.next_logits([[2]], caches[1])
        for token in range(3):
            graph.scores_after([caches[1]], [[token]])
    assert graphs[3] is again is None and len(set(map(id, graphs))) == 4 and graph.graph is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changed_weights_are_seen(dtype, cupy):
    """Also their 16-bit copies, which no kernel of the graph makes."""
    model = small()
    weights = model.wte.weight.data

    def change(token):
        if token in (4, 12):
            weights[...] = weights * (-0.5 if token == 4 else -2.0)  # and back
            wrote(weights)

    with in_precision(dtype):
        found = same(model, [[1, 2, 3]], 12, launches=2 + 7, graphs=2, between=change)
        other = same(model, [[1, 2, 3]], 12, launches=10)
    assert found.scores[:4] == other.scores[:4] and found.scores[4] != other.scores[4]


def test_settings_may_change_while_a_text_is_written(cupy):
    """The reference implementations for tokens 5 and 6, an observer for token 9, mixed precision from token 12 on: it
    finds a cache of float32, which no kernel takes, and the rest of the text goes the usual way."""
    blocks = {5: lambda: kernels("reference"), 7: contextlib.nullcontext, 9: lambda: observe(Nothing()),
              10: contextlib.nullcontext, 12: lambda: matmul_precision("bfloat16")}  # fmt: skip
    decode_graph._say_once.cache_clear()
    with contextlib.ExitStack() as stack, pytest.warns(RuntimeWarning, match="no kernel attends to a cache of float32"):

        def change(token):
            if token in blocks:
                stack.close()
                stack.enter_context(blocks[token]())
            if token == 15:
                stack.close()

        same(small(), [[1, 2]], 15, launches=3 + 2 + 2, between=change)


class Nothing:
    """An observer that sees all ops and does nothing."""

    def inside(self, module):
        return contextlib.nullcontext()

    def before(self, node):
        pass

    def after_forward(self, node, arrays, results):
        pass


def test_a_token_waits_for_the_gpu_once(cupy):
    """When its scores are read. A token's kernels are counted: 11 in each layer, with 4 products; 2 tables, their sum,
    the last layernorm, and the product of the head."""
    model, syncs = small(n_layer=3), []
    lt = fake_cublaslt.compiled()
    with in_precision("bfloat16"), running(check=False) as launches:
        steps = generate(model, [[1, 2, 3]], 8, [None])
        for _ in range(8):
            launches.clear()
            products = lt.fake_products()
            with strict_cupy.count_syncs() as counted:
                next(steps)
            syncs.append(counted.count)
    assert syncs[3:] == [1] * 5
    kernel_counts, products = Counter(launches), lt.fake_products() - products
    assert products == 3 * 4 + 1
    assert kernel_counts == {
        "embedding_forward": 2, "layernorm_forward": 2 * 3 + 1, "kv_append": 3, "attention_split": 3,
        "attention_join": 3, "gelu_forward": 3, "add": 3 + 1,
    }  # fmt: skip


def test_a_graph_waits_for_what_was_started_elsewhere(cupy, monkeypatch):
    """Each token, since a cache may just have been copied; and all graphs are on one stream: products keep memory for
    each."""
    waited, model = [], small()
    monkeypatch.setattr(strict_cupy._Queue, "record", lambda self, event=None: "here")
    monkeypatch.setattr(strict_cupy._Queue, "wait_event", lambda self, event: waited.append(event))
    with running(check=False):
        found = Written(model, [[1, 2, 3]], 6, True)
    assert waited == ["here"] * 5 and found.launches == 4
    assert DecodeGraph(model).stream is DecodeGraph(model).stream


def test_an_interrupted_recording_is_ended(cupy, monkeypatch):
    """Ctrl-C while a token is recorded: the stream is used again, for the next text."""
    model, compute = small(), DecodeGraph._forward

    def interrupted(self, pack):
        compute(self, pack)
        if is_capturing():
            raise KeyboardInterrupt

    with running(check=False), monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DecodeGraph, "_forward", lambda *args: (interrupted(*args), compute(*args))[1])
        Written(model, [[1, 2, 3]], 6, True)
    assert not is_capturing()
    same(model, [[1, 2, 3]], 6, launches=4)


def test_without_cublaslt_tokens_go_the_usual_way_and_that_is_said_once(monkeypatch):
    strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch, lambda: None)
    decode_graph._say_once.cache_clear()
    model = small()
    begun, begin = [], strict_cupy._Queue.begin_capture
    monkeypatch.setattr(strict_cupy._Queue, "begin_capture", lambda self: (begun.append(self), begin(self)))
    with pytest.warns(RuntimeWarning) as said:
        same(model, [[1, 2, 3]], 6, launches=0, graphs=0)
        same(model, [[4, 5]], 6, launches=0, graphs=0)
    own = [str(warning.message) for warning in said if "CUDA graph" in str(warning.message)]
    reason = "calling cuBLAS API during stream capture is currently unsupported"
    assert own == [f"no CUDA graph of decoding: {reason}. Tokens take longer"] and len(begun) == 2  # once for each text


def test_what_is_no_new_token_of_texts_with_a_cache_is_left_to_the_usual_way(cupy):
    model = small(dropout=0.1)
    with running(check=False):
        graph, cache = DecodeGraph(model), model.new_cache(size=4)
        assert graph.scores_after([cache], [[1]]) is None  # the prompt: its ids are checked on the host
        model.next_logits([[1, 2]], cache)
        assert graph.scores_after([cache], [[1, 2]]) is None
        assert graph.scores_after([TokenCache(1, 4)], [[1]]) is None
        model.train()
        assert graph.scores_after([cache], [[1]]) is None and cache.position == 2
        model.eval()
        assert graph.scores_after([cache], [[1]]) is not None and graph.scores_after([cache], [[1]]) is not None
        assert cache.full and graph.scores_after([cache], [[1]]) is None


def test_the_cpu_has_no_graph(monkeypatch):
    monkeypatch.setattr(generation, "DecodeGraph", None)
    model = GPT(GPTConfig(block_size=8, vocab_size=40, n_layer=1, n_head=2, n_embd=16), seed=0).eval()
    assert len(list(model.generate([1, 2, 3], 4))) == 4
