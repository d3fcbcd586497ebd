"""The strict stand-in for CuPy: refuses every planted misuse, computes what NumPy computes, counts syncs exactly."""

import copy
import importlib.util
import math
import pickle
import sys

import numpy as np
import pytest
import strict_cupy

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def cp(monkeypatch):
    return strict_cupy.install(monkeypatch)


def names(xp, put):
    """What the code in the tables below can use; `put` brings a host array to where xp computes."""
    h = np.linspace(-2, 3, 6, dtype=np.float32).reshape(2, 3)
    host = {"h": h, "host_ids": np.array([0, 1, 1])}
    arrays = {"x": h, "y": h * h + 1, "v": h[0], "ids": np.array([0, 1, 1]), "some": np.array([2, 0]), "mask": h > 0}
    return {"np": np, "xp": xp, "math": math, **host, **{name: put(array.copy()) for name, array in arrays.items()}}


# -- misuse ------------------------------------------------------------------------------------------------------------

REFUSED = [
    # a device array where NumPy wants its own
    ("np.asarray(x)", TypeError),
    ("np.array(x)", TypeError),
    ("np.asarray([x, x])", TypeError),
    ("np.float32(x[0, 0])", TypeError),
    ("h[...] = x", TypeError),
    ("h[ids]", (TypeError, IndexError)),
    ("memoryview(x)", TypeError),
    ("np.copyto(h, x)", TypeError),
    # host arrays in operators, on either side
    ("x + h", TypeError),
    ("h + x", TypeError),
    ("x @ h.T", TypeError),
    ("h.T @ x", TypeError),
    ("x > h", TypeError),
    ("x ** h", TypeError),
    ("x += h", TypeError),
    ("h += x", TypeError),
    ("x * np.array(2.0)", TypeError),
    ("x + [1, 2, 3]", TypeError),
    ("[1, 2, 3] * x", TypeError),
    # host arrays in calls
    ("xp.add(x, h)", TypeError),
    ("np.multiply(h, x)", TypeError),
    ("xp.exp(h)", TypeError),
    ("xp.add(x, x, out=h)", TypeError),
    ("xp.add(x, x, h)", TypeError),
    ("np.exp(x, out=h)", TypeError),
    ("x.sum(0, out=h[0])", TypeError),
    ("xp.matmul(x, x.T, out=h)", TypeError),
    ("xp.where(mask, x, h)", TypeError),
    ("xp.where(mask, x, [1, 2, 3])", TypeError),
    ("xp.concatenate([x, h])", TypeError),
    ("np.concatenate([h, x])", TypeError),
    ("xp.einsum('ij,kj->ik', x, h)", TypeError),
    ("xp.copyto(x, h)", TypeError),
    ("xp.zeros_like(h)", TypeError),
    ("xp.linalg.norm(h)", TypeError),
    ("x.fill(h)", TypeError),
    ("x.dot(h.T)", TypeError),
    # answers that CuPy would compute on the host
    ("xp.sum(h)", TypeError),
    ("xp.mean(h)", TypeError),
    ("xp.max(h)", TypeError),
    ("xp.sort(h)", TypeError),
    ("xp.transpose(h)", TypeError),
    ("xp.sum([1, 2])", TypeError),
    # indices from the host
    ("x[host_ids]", TypeError),
    ("x[[0, 1]]", TypeError),
    ("x[:, [0, 1]]", TypeError),
    ("x[h > 0]", TypeError),
    ("xp.take(x, host_ids)", TypeError),
    ("xp.take(x, [0, 1])", TypeError),
    ("x.take((0, 1), axis=0)", TypeError),
    ("xp.take_along_axis(x, host_ids[None], axis=1)", TypeError),
    ("xp.add.at(x, host_ids, 1)", TypeError),
    ("xp.add.at(x, [0, 1], 1)", TypeError),
    # indices that CuPy wraps, and targets that it assigns in any order
    ("x[ids + 1]", IndexError),
    ("x[2]", IndexError),
    ("xp.take(x, ids + 1, axis=0)", IndexError),
    ("x[ids + 1, 0] = 0", IndexError),
    ("xp.add.at(x, ids + 1, 1)", IndexError),
    ("x[ids] = 0", ValueError),
    ("x[ids] += 1", ValueError),
    ("x[ids, 0] = v", ValueError),
    ("x[xp.asarray([-1, 1])] = 0", ValueError),
    # assignment of host values
    ("x[...] = h", ValueError),
    ("x[some - 1] = h", ValueError),
    ("x[0] = [1, 2, 3]", TypeError),
    ("x.set(x)", TypeError),
    ("x.set(h.astype(np.float64))", TypeError),
    ("x.set(h[0])", TypeError),
    ("x.get(out=h[0])", TypeError),
    # what CuPy does not have
    ("xp.add(x, x, where=mask)", TypeError),
    ("xp.sum(x, where=mask)", TypeError),
    ("x.max(initial=0)", TypeError),
    ("xp.take(x, ids, mode='clip')", TypeError),
    ("xp.einsum('ij->j', x, out=v)", TypeError),
    ("xp.clip(x, min=0)", TypeError),
    ("xp.maximum.reduce(x)", NotImplementedError),
    ("np.maximum.reduce(x)", NotImplementedError),
    ("xp.maximum.accumulate(x)", NotImplementedError),
    ("xp.multiply.at(x, ids, 2)", NotImplementedError),
    ("np.add.reduceat(x, [0, 1])", NotImplementedError),
    ("xp.add.reduceat", AttributeError),
    ("xp.block", AttributeError),
    ("xp.insert", AttributeError),
    ("xp.errstate", AttributeError),
    ("xp.vecdot", AttributeError),
    ("xp.linalg.vector_norm", AttributeError),
    ("np.insert(x, 0, 0)", TypeError),
    ("np.spacing(x)", TypeError),
    ("xp.random.default_rng(0).permutation", AttributeError),
    ("xp.random.default_rng(0).normal", AttributeError),
    ("x @= x", TypeError),
    ("x.setflags(write=False)", AttributeError),
    ("x.ctypes", AttributeError),
    ("x.__array_interface__", AttributeError),
    # what a device array cannot be
    ("range(ids[0])", TypeError),
    ("host_ids[ids[0]]", (TypeError, IndexError)),
    ("xp.zeros(ids[1])", TypeError),
    ("xp.zeros((2, ids[1]))", TypeError),
    ("x[:ids[1]]", TypeError),
    ("hash(x)", TypeError),
    ("{x: 1}", TypeError),
    ("if x: pass", ValueError),
    ("xp.asarray(np.array([None]))", TypeError),
    ("xp.ndarray((2, 3))", TypeError),
]


@pytest.mark.parametrize("code, error", REFUSED, ids=[code for code, _ in REFUSED])
def test_misuse_is_refused(cp, code, error):
    scope = names(cp, cp.asarray)
    with pytest.raises(error):
        exec(code, scope)
    assert isinstance(scope["x"], cp.ndarray)
    np.testing.assert_array_equal(scope["x"].get(), scope["h"])  # and nothing has been changed


# -- correct use -------------------------------------------------------------------------------------------------------

EQUAL = [
    *"x+y x-2 2-x x/y -x abs(x) x//y x%y y**0.5 x**2 y**-1 2.0**x x@y.T x>y x==y ~mask mask&(y>2) ids<<1".split(),
    *"x.sum() x.mean(1) x.max(-1,keepdims=True) x.argmax(0)".split(),
    *"x.var(0) x.T x.reshape(-1) x.reshape(3,2) x.ravel()".split(),
    *"x.transpose(1,0) x.astype(np.float64) x.view(np.int32) x.copy() x.clip(0,1) x.cumsum(0) x.shape x.dtype".split(),
    *"x.ndim x.size x.nbytes x.itemsize x.strides len(x) x.swapaxes(0,1).shape list(x)[1] divmod(y,2)[1]".split(),
    *"x[0] x[0,1] x[...,-1] x[:,None] x[1:,::2] x[ids] x[ids,ids] x[xp.arange(2),some] x[mask] x[ids[1]]".split(),
    *"x.T[ids>0]".split(),
    *"xp.exp(x) np.exp(x) xp.tanh(x) xp.sqrt(y)".split(),
    *"xp.sqrt(2.0) xp.maximum(x,0) xp.isfinite(x).all() xp.signbit(x)".split(),
    *"xp.sum(x,axis=(0,1)) np.sum(x) xp.take(x,some,axis=1) xp.take_along_axis(x,x.argmax(1)[:,None],axis=1)".split(),
    *"xp.where(mask,x,0) xp.concatenate([x,y])".split(),
    *"xp.stack([x,y],1) xp.split(x,3,axis=1)[1] xp.broadcast_to(v,(4,3))".split(),
    *"xp.zeros((2,3)) xp.ones(3,dtype=xp.int64) xp.full((2,),7.5) xp.arange(5) xp.eye(3) xp.linspace(0,1,5)".split(),
    *"xp.zeros_like(x) xp.ones_like(x) xp.full_like(x,2) xp.tril(x) xp.triu(xp.ones((3,3)),1) xp.pad(x,1)".split(),
    *"xp.matmul(x,y.T) xp.dot(v,v) xp.outer(v,v) xp.einsum('ij,kj->ik',x,y) xp.einsum('ij,ij->',x,y)".split(),
    *"xp.linalg.norm(x) np.linalg.norm(x,axis=1) xp.add.reduce(x) xp.add.accumulate(x) xp.multiply.outer(v,v)".split(),
    *"xp.allclose(x,x) xp.array_equal(x,y) xp.count_nonzero(x) xp.bincount(ids,minlength=4) xp.unique(ids)".split(),
    *"xp.shares_memory(x,x.T) xp.may_share_memory(x,y) xp.result_type(x,ids) xp.float32 xp.int64 xp.bool xp.pi".split(),
    *"xp.inf xp.newaxis xp.finfo(xp.float32).eps xp.asarray([1,2.5]) xp.asarray(h) xp.array([[1,2]],dtype='f')".split(),
    *"xp.expand_dims(x,0) xp.copysign(x,-1) xp.isnan(x).any() xp.sort(v) xp.argsort(v) xp.searchsorted(v,v)".split(),
]


def plain(xp, value):
    """The same value without device arrays: (dtype, shape, bytes) for arrays."""
    if isinstance(value, (list, tuple)):
        return [plain(xp, item) for item in value]
    if xp is not np and isinstance(value, xp.ndarray):
        value = value.get()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype, value.shape, value.tobytes()
    return value


@pytest.mark.parametrize("code", EQUAL)
def test_results_equal_numpy_bit_for_bit(cp, code):
    wanted = plain(np, eval(code, names(np, lambda array: array)))
    got = plain(cp, eval(code, names(cp, cp.asarray)))
    if isinstance(wanted, int) and isinstance(got, tuple):  # allclose: a bool in NumPy, on the device a 0-d array
        wanted = plain(np, np.asarray(wanted))
    assert got == wanted


def adam(xp, p, g, m, v):
    """In place, as the optimizer does it."""
    m += 0.1 * (g - m)
    v += 0.05 * (g * g - v)
    p -= 1e-3 * (m / 0.1 / (xp.sqrt(v / 0.05) + 1e-8) + 0.1 * p)


def step(xp, table, w, gain, ids, targets):
    """A training step of a tiny model by hand: embedding, layernorm, causal attention, cross-entropy, back, Adam."""
    B, T = ids.shape
    C = w.shape[-1]
    flat = xp.zeros(table.size + w.size, dtype=xp.float32)  # parameters as views of one buffer
    wte, wq = flat[: table.size].reshape(table.shape), flat[table.size :].reshape(w.shape)
    wte[...] = table
    wq[...] = w

    x = wte[ids]  # (B, T, C)
    rstd = 1 / xp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    xhat = (x - x.mean(-1, keepdims=True)) * rstd
    a = xhat * gain
    q = xp.matmul(a, wq)
    scores = xp.einsum("btc,bsc->bts", q, a) * (1 / math.sqrt(C))
    causal = xp.tril(xp.ones((T, T), dtype=bool))
    scores = xp.where(causal, scores, -xp.inf)
    scores -= scores.max(-1, keepdims=True)
    p = xp.exp(scores)
    p /= p.sum(-1, keepdims=True)
    out = xp.matmul(p, a)
    logits = (out @ wte.T).reshape(B * T, -1)
    logits -= logits.max(-1, keepdims=True)
    lse = xp.log(xp.exp(logits).sum(-1))
    rows = xp.arange(B * T)
    loss = (lse - logits[rows, targets.reshape(-1)]).mean()

    dlogits = xp.exp(logits - lse[:, None])
    dlogits[rows, targets.reshape(-1)] -= 1  # fancy assignment, every target in its own row
    dlogits *= 1 / (B * T)
    grad = xp.zeros_like(flat)
    dwte, dwq = grad[: table.size].reshape(table.shape), grad[table.size :].reshape(w.shape)
    dwte += dlogits.T @ out.reshape(B * T, C)
    dout = (dlogits @ wte).reshape(B, T, C)
    dp = xp.einsum("btc,bsc->bts", dout, a)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * (1 / math.sqrt(C))
    dq = ds @ a
    da = p.swapaxes(-1, -2) @ dout + xp.einsum("bts,btc->bsc", ds, q) + dq @ wq.T
    dwq += xp.einsum("btc,btd->cd", a, dq)
    dgain = (da * xhat).sum((0, 1))
    g = da * gain
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    xp.add.at(dwte, ids, dx)  # a token that occurs twice gets both gradients

    norm = xp.sqrt(xp.dot(grad, grad))
    grad *= xp.minimum(1.0, 1.0 / (norm + 1e-6))
    m, v = xp.zeros_like(flat), xp.zeros_like(flat)
    for start in range(0, flat.size, 64):  # blocks of the buffers: the views of the parameters must see it
        adam(xp, *(array[start : start + 64] for array in (flat, grad, m, v)))
    ready = xp.isfinite(flat).all()
    return loss, grad, dgain, norm, ready, wte, wq


def test_training_step_equals_numpy_and_never_syncs(cp):
    rng = np.random.default_rng(0)
    host = [rng.standard_normal(shape).astype(np.float32) for shape in ((11, 8), (8, 8), (8,))]
    host += [rng.integers(0, 11, (2, 5)), rng.integers(0, 11, (2, 5))]
    wanted = step(np, *host)
    device = [cp.asarray(array) for array in host]
    with strict_cupy.no_sync():
        got = step(cp, *device)
    assert strict_cupy.sync_count() == 0
    for one, other in zip(wanted, got, strict=True):
        assert plain(np, one) == plain(cp, other)


def test_in_place_operators_keep_the_object_and_write_through_views(cp):
    x = cp.asarray(np.arange(6.0).reshape(2, 3))
    view, same = x.T[1], x
    for code in ("x += 1", "x -= 0.5", "x *= 2", "x /= 3", "x //= 0.5", "x **= 2", "x %= 7"):
        scope = {"x": x}
        exec(code, scope)
        assert scope["x"] is same, code
    view += 1
    x[0][2:] = 5
    first = x[1, 0]  # a 0-d view, where NumPy returns a copy
    first += 100
    wanted = np.arange(6.0).reshape(2, 3)
    wanted = (((wanted + 1 - 0.5) * 2 / 3) // 0.5) ** 2 % 7
    wanted[:, 1] += 1
    wanted[0, 2], wanted[1, 0] = 5, wanted[1, 0] + 100
    np.testing.assert_array_equal(x.get(), wanted)
    assert cp.add(x, 1, out=x) is x and np.exp(x, out=x) is x and x.sum(1, out=view) is view
    assert cp.asarray(x) is x and cp.asarray(x, dtype=x.dtype) is x


def test_host_and_device_never_share_memory(cp):
    h = np.zeros(3)
    x = cp.asarray(h)
    x += 1
    back = x.get()
    back += 1
    assert h.sum() == 0 and cp.asnumpy(x).sum() == 3
    target = np.empty(3)
    assert x.get(out=target) is target and target.sum() == 3
    x.set(h)
    assert x.get().sum() == 0
    for duplicate in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x)), cp.array(x)):
        duplicate += 1
        assert isinstance(duplicate, cp.ndarray) and duplicate is not x and x.get().sum() == 0


def test_a_device_behaves_unlike_numpy_here(cp):
    x = cp.asarray(np.ones((2, 3), np.float32))
    for value in (x.sum(), x.argmax(), x[0, 0], cp.linalg.norm(x), cp.dot(x[0], x[0]), cp.count_nonzero(x)):
        assert isinstance(value, cp.ndarray) and value.shape == () and not hasattr(value, "__index__")
    assert np.isnan(cp.empty((2, 2), dtype=cp.float32).get()).all() and np.isnan(cp.empty_like(x).get()).all()
    assert (cp.empty(3, dtype=cp.int32).get() == -1).all()
    assert cp.random.default_rng(1).random((2, 2)).shape == (2, 2)
    x[...] = cp.asarray(np.zeros(3, np.float32))  # broadcasts, and takes scalars
    x[0] = np.float32(2)
    x[cp.asarray([True, False])] = 3
    x[:, cp.asarray([2, 0])] = x[:, :2] * 1
    assert x.get().sum() == 9


# -- counting ----------------------------------------------------------------------------------------------------------

SYNCS = {
    0: "x+y x.sum() x[0] x[ids] x.shape len(x) list(x) cp.asarray(h) cp.where(mask,x,0) cp.array_equal(x,y) x.copy() "
    "cp.add.at(x,ids,1) cp.zeros(3) cp.get_array_module(x) cp.asnumpy(h) x.set(h) x.get(blocking=False) "
    "cp.cuda.is_available() cp.cuda.runtime.getDeviceCount() cp.cuda.Device(0).use() cp.shares_memory(x,y) "
    "x.astype(np.float64) cp.isscalar(x) cp.take(x,ids) cp.copyto(x,0,where=mask)",
    1: "float(s) int(s) bool(s) complex(s) s.item() x.tolist() x.get() cp.asnumpy(x) repr(x) str(x) f'{x}' f'{s:.3f}' "
    "math.sqrt(s) np.array2string(x) x.tobytes() x[mask] cp.nonzero(x) x.nonzero() cp.where(mask) cp.unique(x) "
    "max(s,s) cp.cuda.Device().synchronize() cp.cuda.get_current_stream().synchronize() "
    "cp.cuda.Stream.null.synchronize() cp.cuda.runtime.deviceSynchronize()",
    3: "[float(value)for(value)in(x[0])] s.item()+float(s)+int(s)",
}


@pytest.mark.parametrize("code, count", [(code, count) for count, codes in SYNCS.items() for code in codes.split()])
def test_sync_counts_are_exact(cp, code, count):
    scope = {**names(cp, cp.asarray), "cp": cp, "s": cp.asarray(2.0)}
    with strict_cupy.count_syncs() as syncs:
        eval(code, scope)
    assert syncs.count == strict_cupy.sync_count() == count
    if count:
        with pytest.raises(AssertionError, match=r"waits for the device, inside no_sync\(\)"), strict_cupy.no_sync():
            eval(code, scope)
    else:
        with strict_cupy.no_sync():
            eval(code, scope)


def test_no_sync_names_the_call_and_ends_with_its_block(cp):
    x = cp.asarray(np.ones(3))
    calls = {"float(x)": lambda: float(x[0]), "ndarray.item()": x[0].item, "x[mask]": lambda: x[x > 0], "get()": x.get}
    for name, call in calls.items():
        with pytest.raises(AssertionError) as error, strict_cupy.no_sync():
            call()
        assert name in str(error.value)
    with strict_cupy.no_sync():
        with strict_cupy.no_sync():
            pass
        with pytest.raises(AssertionError):
            x.get()
    assert strict_cupy.sync_count() == 0  # what was refused did not happen
    x.get()
    assert strict_cupy.sync_count() == 1


# -- the module --------------------------------------------------------------------------------------------------------


def test_install_makes_it_cupy_until_the_test_ends():
    with pytest.MonkeyPatch.context() as monkeypatch:
        installed = strict_cupy.install(monkeypatch)
        import cupy
        import cupy.cuda
        from cupy import linalg

        assert cupy is installed and cupy.__name__ == "cupy" and isinstance(cupy.__version__, str)
        assert linalg.norm and importlib.util.find_spec("cupy") is not None
        assert cupy.get_array_module(np.ones(1)) is np and cupy.get_array_module(cupy.ones(1)) is cupy
        with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True) as stream:
            assert stream.use() is stream
        with pytest.raises(AttributeError):
            cupy.fft  # noqa: B018
    assert strict_cupy.cupy not in sys.modules.values()


def test_it_offers_nothing_that_cupy_lacks():
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    fake = strict_cupy.cupy
    for stand_in, cupy, source in ((fake, real, np), (fake.linalg, real.linalg, np.linalg)):
        offered = [name for name in dir(source) if name[0] != "_" and hasattr(stand_in, name)]
        assert len(offered) > 10 and [name for name in offered if not hasattr(cupy, name)] == []
    offered = [name for name in dir(np.ndarray) if name[0] != "_" and hasattr(fake.zeros((1, 1)), name)]
    assert len(offered) > 50 and [name for name in offered if not hasattr(real.ndarray, name)] == []
    assert [name for name in vars(fake.random.default_rng()) if not hasattr(real.random.Generator, name)] == []
