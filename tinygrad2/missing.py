"""What users of PyTorch and NumPy may look for and a Tensor does not have: the error names what to use instead."""

_INSTEAD = {
    "x + y, and x += y within no_grad()": "add add_ add_scaled",
    "x - y, and x -= y within no_grad()": "sub sub_ subtract rsub",
    "x * y, and x *= y within no_grad()": "mul mul_ multiply",
    "x / y, and x /= y within no_grad()": "div div_ divide true_divide",
    "x ** y": "pow pow_ float_power",
    "-x": "neg negative",
    "x // y, for Tensors without gradient": "floor_divide",
    "x % y, for Tensors without gradient": "remainder fmod",
    "x @ y": "matmul mm bmm mv dot inner vdot",
    "x[:, None] * y": "outer ger",
    "x == y, x < y, ...": "eq ne lt le gt ge equal not_equal less greater",
    "mask & mask, mask | mask, mask ^ mask, ~mask": "logical_and logical_or logical_xor logical_not",
    "x.abs()": "absolute fabs",
    "x * x": "square",
    "1 / x": "reciprocal",
    "x ** -0.5": "rsqrt",
    "x.sin() / x.cos()": "tan",
    "x.log() / math.log(2)": "log2",
    "x.log() / math.log(10)": "log10",
    "(1 + x).log()": "log1p",
    "x.exp() - 1": "expm1",
    "(x - c).exp().sum(axis).log() + c with c = x.amax(axis).detach()": "logsumexp logaddexp",
    "x.log().sum(axis).exp(), for positive values": "prod cumprod",
    "(x * x).sum().sqrt()": "norm dist",
    "ops.gelu(x), ops.gelu_erf(x)": "gelu",
    "x * x.sigmoid()": "silu swish",
    "ops.maximum(x, 0.01 * x)": "leaky_relu",
    "(1 + x.exp()).log()": "softplus",
    "ops.dropout(x, p, key)": "dropout",
    "ops.layernorm(x, weight, bias)": "layer_norm",
    "np.floor(x), np.sign(x), ..., for Tensors without gradient": "floor ceil round trunc sign sgn frac rint",
    "np.isnan(x), np.isfinite(x), np.isinf(x)": "isnan isfinite isinf",
    "np.allclose(x, y)": "allclose isclose",
    "x.ndim": "dim ndimension",
    "x.size": "numel nelement",
    "x.astype('float32'), x.astype('int64'), ...": "float double half bfloat16 long int short bool type type_as",
    "x.to('cuda'), x.to('cpu')": "cuda cpu is_cuda",
    "x[:, None]": "expand_dims",
    "x.swapaxes(i, j)": "t mT swapdims adjoint H moveaxis movedim",
    "x.expand(shape)": "broadcast_to expand_as",
    "ops.concatenate([x] * n), or x.expand(shape)": "repeat tile repeat_interleave",
    "list(x)": "unbind",
    "x[::-1]": "flip fliplr flipud",
    "ops.concatenate([x[-n:], x[:-n]])": "roll",
    "x[indices], x[:, start:stop]": "take index_select select narrow",
    "x[np.arange(len(x)), indices]": "gather take_along_axis take_along_dim",
    "x[mask]": "masked_select compress",
    "x[indices] = values within no_grad()": "scatter scatter_ scatter_add scatter_add_ index_add_ put index_fill_",
    "x.masked_fill(mask, value)": "masked_fill_",
    "x[...] = values within no_grad()": "copy_ set_",
    "x[...] = rng.standard_normal(x.shape), within no_grad()": "normal_ uniform_ random_ bernoulli_",
    "x.masked_fill(~np.tri(n, m, dtype=bool), 0.0)": "tril triu",
    "np.sort(x.numpy()), or x[indices] with indices = np.argsort(x.numpy())": "sort argsort topk kthvalue",
    "a function of NumPy on x.numpy(), without gradient": (
        "median quantile percentile nonzero unique histc bincount cumprod_ searchsorted trace diag diagonal "
        "partition argpartition ptp choose"
    ),
    "x.requires_grad = False": "freeze",
    "x.node": "grad_fn",
    "x.detach()": "detach_",
    "x.data.strides": "stride strides storage is_contiguous contiguous",
    "Tensor(np.zeros(shape, x.dtype)), np.ones, np.full, ...": (
        "new_zeros new_ones new_tensor new_full zeros_like ones_like"
    ),
    "gradients of leaves only; make this Tensor a leaf: Tensor(x, requires_grad=True)": "retain_grad register_hook",
}
_ADVICE = {name: advice for advice, names in _INSTEAD.items() for name in names.split()}

_OPS = {
    "cat": "ops.concatenate([x, y])",
    "vstack": "ops.concatenate([x, y])",
    "hstack": "ops.concatenate([x, y], axis=1)",
    "einsum": "x @ y, transpose and sum",
    "tensordot": "x @ y, transpose and sum",
    "tensor": "Tensor(values)",
    "array": "Tensor(values)",
    "zeros": "Tensor(np.zeros(shape, 'float32'))",
    "ones": "Tensor(np.ones(shape, 'float32'))",
    "full": "Tensor(np.full(shape, value, 'float32'))",
    "eye": "Tensor(np.eye(n, dtype='float32'))",
    "arange": "Tensor(np.arange(n))",
    "linspace": "Tensor(np.linspace(a, b, n, dtype='float32'))",
    "rand": "Tensor(rng.random(shape, 'float32'))",
    "randn": "Tensor(rng.standard_normal(shape, 'float32'))",
    "one_hot": "Tensor(np.eye(n, dtype='float32')[ids])",
    "nll_loss": "ops.cross_entropy(logits, targets)",
    "mse_loss": "((x - y) * (x - y)).mean()",
    "l1_loss": "(x - y).abs().mean()",
    "scaled_dot_product_attention": "ops.attention(q, k, v)",
    "amax": "ops.max(x, axis)",
    "amin": "ops.min(x, axis)",
    "clamp": "ops.clip(x, low, high)",
}


def missing_attribute(name: str) -> AttributeError:
    """The error for `x.name`."""
    advice = f"; use {_ADVICE[name]}" if name in _ADVICE else ""
    if not advice and not name.startswith("__"):
        advice = "; docs/library.md lists what it has"
    return AttributeError(f"a Tensor has no {name!r}{advice}", name=name)


def missing_op(name: str) -> AttributeError:
    """The error for `ops.name`."""
    advice = _OPS.get(name) or _ADVICE.get(name) or "what docs/layout.md lists, or write it (docs/library.md)"
    return AttributeError(f"there is no op {name!r}; use {advice}", name=name)
