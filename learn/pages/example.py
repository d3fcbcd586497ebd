"""A short program for each op, run to show what it prints, and what the op costs: on arrays of GPT-2's shapes, and on
its samples (tests/samples.py)."""

import contextlib
import inspect
import io
import textwrap

import numpy as np

import ops
from tests.samples import SAMPLES, Draw, bfloat16, int8, integers, sample
from tinygrad2.dispatch import OPS
from tinygrad2.function import Function
from tinygrad2.monitor.op_costs import backward_bytes, forward_bytes, products

MOST_ROWS = 6
GPT2_TOKENS = 64  # few enough that all of it takes a second
_T, _C, _V = GPT2_TOKENS, 768, 50_257
GPT2 = {  # the inputs of ops in GPT-2's smallest model: one text of so many tokens; one token where a text is generated
    "embedding": sample((_V, _C), integers(1, _T, below=_V)),
    "layernorm": sample((1, _T, _C), (_C,), (_C,)),
    "add_layernorm": sample((1, _T, _C), (1, _T, _C), (_C,), (_C,)),
    "linear": sample((1, _T, _C), (_C, 3 * _C), (3 * _C,)),
    "split_heads": sample((1, _T, 3 * _C), n_head=12),
    "attention": sample(*3 * [(1, 12, _T, 64)]),
    "merge_heads": sample((1, 12, _T, 64)),
    "gelu": sample((1, _T, 4 * _C)),
    "mlp": sample((1, _T, _C), (_C, 4 * _C), (4 * _C,), (4 * _C, _C), (_C,)),
    "dropout": sample((1, _T, _C), p=0.1, key=1),
    "softmax": sample((1, _V)),
    "cross_entropy": sample((1, _T, _V), integers(1, _T, below=_V)),
    "linear_cross_entropy": sample((1, _T, _C), (_V, _C), integers(1, _T, below=_V)),
    "linear_bfloat16": sample((1, 1, _C), bfloat16(3 * _C, _C), (3 * _C,)),
    "linear_int8": sample((1, 1, _C), int8(3 * _C, _C), (3 * _C,), (3 * _C,)),
    "add": sample((1, _T, _C), (1, _T, _C)),
}
_DRAWN = {
    "normal": "rng.standard_normal({shape})",
    "positive": "0.5 + np.abs(rng.standard_normal({shape}))",
    "integers": "rng.integers(0, {below}, {shape})",
    "int8": "rng.integers(-127, 128, {shape}).astype(np.int8)",
    "bfloat16": "pack_bfloat16(rng.standard_normal({shape}).astype(np.float32))",
    "mask": "rng.standard_normal({shape}) > 0",
    "spaced": "0.1 * (rng.permutation({size}) - {half}).reshape({shape}) + 0.05",
    "between": "0.1 * (rng.permutation({size}) - {half}).reshape({shape})",
}


def has_gradient(op):
    """Does the op define a backward?"""
    return op.backward is not Function.backward


def drawn(value):
    """The expression that draws an input of a sample."""
    if isinstance(value, tuple):
        value = Draw("normal", value)
    if not isinstance(value, Draw):
        return repr(value)
    size = int(np.prod(value.shape))
    return _DRAWN[value.kind].format(shape=value.shape, below=value.below, size=size, half=size // 2)


def plain(sample):
    """Are all inputs laid out in memory as usual? (The samples have odd layouts as well.)"""
    return all(not isinstance(value, Draw) or value.kind in _DRAWN for value in sample.inputs)


def inputs(op):
    """(names of the inputs of `forward`, does it take any number of them?)"""
    parameters = list(inspect.signature(op.forward).parameters.values())[1:]
    several = parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
    return [parameter.name for parameter in parameters], several


def option(value):
    """An option as it is written in a program."""
    return f"np.{value!r}" if isinstance(value, np.ndarray) else repr(value)


def results_of(name, arrays, options):
    """(node, results, did it return a tuple?) of the reference implementation on these arrays."""
    node = OPS[name](np, [isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in arrays])
    results = node.forward(*arrays, **options)
    several = isinstance(results, tuple)
    return node, tuple(map(np.asarray, results if several else (results,))), several


def program(name):
    """The text of a program that calls an op, prints the result, and checks the gradient."""
    op, sample = OPS[name], next(filter(plain, SAMPLES[name]))
    names, several = inputs(op)
    names = list("abcd"[: len(sample.inputs)]) if several else names[: len(sample.inputs)]
    options = "".join(f", {key}={option(value)}" for key, value in sample.options.items())
    call = f"ops.{name}({'[' * several}{', '.join(names)}{']' * several}{options})"
    if results_of(name, sample.arrays(np.float64), sample.options)[2]:
        call = f"ops.stack({call})"
    given = [n for n, value in zip(names, sample.inputs) if isinstance(value, (tuple, Draw))]
    draw = [f"{n} = {drawn(value)}" for n, value in zip(names, sample.inputs)]
    tensors = ", ".join(f"Tensor({n})" for n in given)
    return "\n".join([
        "import numpy as np",
        "",
        "import ops",
        "from tinygrad2 import Tensor" + ", gradcheck" * has_gradient(op),
        *["from tinygrad2.bfloat16 import pack_bfloat16"] * any("pack_bfloat16" in line for line in draw),
        "",
        "rng = np.random.default_rng(0)",
        *draw,
        "",
        "",
        f"def f({', '.join(given)}):",
        f"    return {call}",
        "",
        "",
        f"print(f({tensors}).numpy(){'.round(4)' * has_gradient(op)})",
        *[f"print(gradcheck(f, [{', '.join(given)}]))"] * has_gradient(op),
        "",
    ])  # fmt: skip


def printed(text):
    """What a program made by `program` prints. Raises what it raises."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "example.py", "exec"), {"__name__": "__main__"})  # our own text, from `program`
    return out.getvalue()


def zeros(sample):
    """The inputs of a sample, all of them arrays, filled with zeros: what an op costs depends on their shapes."""
    kinds = {"integers": np.int64, "int8": np.int8, "bfloat16": np.uint16}
    drawn = [value if isinstance(value, Draw) else Draw("normal", value) for value in sample.inputs]
    return [np.zeros(value.shape, kinds.get(value.kind, np.float32)) for value in drawn]


def shape(value):
    """The shape of an input as text; the value itself of a scalar."""
    if isinstance(value, Draw):
        kind = {"integers": " integers", "int8": " int8", "bfloat16": " bfloat16", "mask": " booleans"}
        return f"{value.shape}{kind.get(value.kind, '')}"
    return "none" if value is None else str(value)


def costs(name):
    """A row for GPT-2, if the op is part of it, and one per sample of usual layout: whose shapes they are, inputs,
    options, result, FLOPs and bytes of forward and backward.

    FLOPs and bytes are the least that the profiler counts (tinygrad2/monitor/op_costs.py), of the reference
    implementation in float32.
    """
    tried = [("tests", sample, sample.arrays(np.float32)) for sample in SAMPLES[name] if plain(sample)][:MOST_ROWS]
    in_gpt2 = [("GPT-2", GPT2[name], zeros(GPT2[name]))] if name in GPT2 else []
    rows = []
    for whose, given, arrays in in_gpt2 + tried:
        node, results, several = results_of(name, arrays, given.options)
        flops, moved = products(node, arrays, results), [forward_bytes(node, arrays, results)]
        if has_gradient(OPS[name]):
            douts = tuple(np.ones_like(out) for out in results)
            dout = douts if several else douts[0]
            moved.append(backward_bytes(node, dout, node.backward(dout)))
        options = ", ".join(f"{key}={option(value)}" for key, value in given.options.items())
        shapes = ", ".join(map(shape, given.inputs))
        rows.append((whose, shapes, options, ", ".join(str(out.shape) for out in results), flops, moved))
    return rows


def code_without_docstring(op):
    """The source of an op's class; its docstring is shown above as text, the marks of labs are left out."""
    lines = textwrap.dedent(inspect.getsource(op)).splitlines()
    doc = inspect.cleandoc(op.__doc__).splitlines()
    first = next(i for i, line in enumerate(lines) if '"""' in line)
    last = next(i for i in range(first, len(lines)) if lines[i].rstrip().endswith('"""') and i - first >= len(doc) - 1)
    kept = lines[:first] + lines[last + 1 :]
    body = [line for line in kept if "# lab: " not in line]
    while len(body) > 1 and not body[1].strip():
        del body[1]
    return "\n".join(body) + "\n"


def functions(name):
    """The functions that ops exports from the op's file."""
    module = OPS[name].__module__
    return [getattr(ops, n) for n in ops.__all__ if getattr(ops, n).__module__ == module]
