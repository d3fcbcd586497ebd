"""nanoGPT's ckpt.pt and torch.save's files: read exactly, written as PyTorch reads them, never executed."""

import fractions
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from marks import slow_but

from tinygrad2.errors import UserError
from tinygrad2.interop.nanogpt import read_nanogpt, shapes_of, write_nanogpt
from tinygrad2.io import zip_archive
from tinygrad2.io.files import CorruptFile
from tinygrad2.io.lazy_tensor import LazyTensor
from tinygrad2.io.pickle_machine import run_pickle
from tinygrad2.io.torch_pickle import UnknownName, read_torch_file

CONFIG = dict(
    block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=4, dropout=0.1, bias=True, tied_head=True,
    activation="gelu_erf", n_inner=0, norm_eps=1e-5,
)  # fmt: skip
TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
NO_TORCH = "PyTorch is not installed (it is the oracle of these tests, never part of the program)"


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason=NO_TORCH)


def model(config, seed=0):
    """{our name: float32 array} of a model, in our orientation."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes_of(config).items()}


def same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].shape == array.shape and np.array_equal(tensors[name].astype(np.float32), array), name
    return True


def theirs(torch, tensors, prefix="", masks=False):
    """nanoGPT's state dict of our tensors, tied as there."""
    state = {}
    for name, array in tensors.items():
        array = array.T if name.endswith(TURNED) else array
        state[f"{prefix}transformer.{name}"] = torch.tensor(np.ascontiguousarray(array))
    state[f"{prefix}lm_head.weight"] = state[f"{prefix}transformer.wte.weight"]
    if masks:
        state |= {f"{prefix}transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)[:, :, :8, :8]}
        state |= {f"{prefix}transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    return state


def args(config=CONFIG, **changes):
    names = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    return {name: config[name] for name in names} | changes


def refused(path, read=read_torch_file, kind=UserError):
    """The one line with which the file is refused."""
    with pytest.raises(kind) as error:
        read(path)
    line = str(error.value)
    assert str(path) in line and line.isprintable() and len(line) < 500, line
    return line


def zip_of(path, program, storages=(), compression=zipfile.ZIP_STORED, **others):
    """A file like torch.save's around the bytes of a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", others.get("byteorder", "little"))
        for i, data in enumerate(storages):
            archive.writestr(f"archive/data/{i}", data)
        archive.writestr("archive/version", "3\n")
    return path


def tensor(shape=(2, 3), strides=(3, 1), offset=0, length=6, key="0", kind="FloatStorage", location="cpu"):
    """The pickle of one tensor, every number as the test wants it."""
    storage = b"(" + plain("storage") + f"ctorch\n{kind}\n".encode()
    storage += plain(key) + plain(location) + plain(length) + b"tQ"
    rest = plain(offset) + plain(shape) + plain(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def plain(value):
    """A plain value as steps of a pickle."""
    return pickle.dumps(value, 2)[2:-1]


SIX = np.arange(6, dtype="<f4")


# -- PyTorch's files ---------------------------------------------------------------------------------------------------


def test_tensors_of_every_kind_are_read_as_they_were_saved(torch, tmp_path):
    numbers = torch.randn(5, 7, dtype=torch.float64) * 100
    floats = {str(kind): numbers.to(kind) for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
    whole = {str(kind): numbers.to(kind) for kind in (torch.int64, torch.int32, torch.int16, torch.int8)}
    whole |= {"uint8": numbers.abs().to(torch.uint8), "bool": numbers > 0}
    torch.save({"floats": floats, "whole": whole, "turned": {k: v.t() for k, v in floats.items()}}, tmp_path / "a.pt")
    read = read_torch_file(tmp_path / "a.pt")
    for name, value in floats.items():
        for stored, expected in ((read["floats"][name], value), (read["turned"][name], value.t())):
            assert isinstance(stored, LazyTensor) and stored.shape == tuple(expected.shape)
            assert np.array_equal(stored.astype(np.float32), expected.float().numpy()), name
    for name, value in whole.items():
        assert read["whole"][name].dtype == value.numpy().dtype and np.array_equal(read["whole"][name], value.numpy())


def test_plain_values_come_as_they_are(torch, tmp_path):
    value = {"a": [1, -2, 2**40, -(2**70), 1.5, None, True, False, "é"], "b": ({}, (), [], (1,), (1, 2), (1, 2, 3, 4))}
    value |= {"large": list(range(3000)), 5: {"x": "y" * 300}}
    torch.save(value, tmp_path / "a.pt")
    assert read_torch_file(tmp_path / "a.pt") == value


def test_views_parameters_and_numbers(torch, tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    layer = torch.nn.Linear(3, 2)
    value = dict(part=whole[1:3], empty=torch.zeros(0, 3), number=torch.tensor(1.5), half=torch.tensor(1.5).bfloat16())
    value |= dict(count=torch.tensor(7), parameter=layer.weight, state=layer.state_dict(), size=whole.shape)
    value |= dict(one=torch.ones(6, 1)[::2], double=torch.tensor(0.1, dtype=torch.float64))
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(UserError, match="'one': its elements are not contiguous"):
        read_torch_file(tmp_path / "a.pt")
    read = read_torch_file(tmp_path / "a.pt", lambda keys: keys != ("one",))
    assert np.array_equal(read["part"].astype(), whole[1:3].numpy()) and read["empty"].shape == (0, 3)
    assert (read["number"], read["half"], read["count"], read["size"], read["double"]) == (1.5, 1.5, 7, (4, 6), 0.1)
    assert np.array_equal(read["parameter"].astype(), layer.weight.detach().numpy())
    assert read["state"].keys() == {"weight", "bias"}


def test_objects_are_refused_by_name(torch, tmp_path):
    torch.save({"model": {}, "config": fractions.Fraction(1)}, tmp_path / "a.pt")
    assert "fractions.Fraction', but only tensors are read" in refused(tmp_path / "a.pt", kind=UnknownName)


def test_the_old_format_is_refused(torch, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "before version 1.6" in refused(tmp_path / "a.pt")


class GPTConfig:
    """build-nanogpt's, as far as a pickle shows it."""

    def __init__(self):
        self.n_layer = 12


# -- nanoGPT's ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt_is_read(torch, tmp_path, prefix, bias):
    config = CONFIG | {"bias": bias}
    tensors = model(config)
    state = theirs(torch, tensors, prefix, masks=True)
    moments = {"step": torch.tensor(5.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3, 3)[:, 1]}
    checkpoint = dict(model=state, optimizer={"state": {0: moments}}, model_args=args(config), iter_num=5)
    torch.save(checkpoint | dict(best_val_loss=torch.tensor(1.5), config={"dataset": "x"}), tmp_path / "ckpt.pt")
    read, found = read_nanogpt(tmp_path / "ckpt.pt")
    assert found == config and same(read, tensors)


def test_heads_tied_equal_and_of_their_own(torch, tmp_path):
    tensors = model(CONFIG)
    state = theirs(torch, tensors)
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    torch.save(dict(model=state, model_args=args()), tmp_path / "a.pt")
    read, config = read_nanogpt(tmp_path / "a.pt")
    assert config == CONFIG and same(read, tensors)
    state["lm_head.weight"][3, 2] += 1
    torch.save(dict(model=state, model_args=args()), tmp_path / "a.pt")
    read, config = read_nanogpt(tmp_path / "a.pt")
    assert config == CONFIG | {"tied_head": False}
    assert same(read, tensors | {"lm_head.weight": state["lm_head.weight"].numpy().T})


def test_checkpoints_from_before_the_field_bias(torch, tmp_path):
    fields = args()
    del fields["bias"]
    torch.save(dict(model=theirs(torch, model(CONFIG)), model_args=fields), tmp_path / "a.pt")
    assert read_nanogpt(tmp_path / "a.pt")[1] == CONFIG | {"activation": "gelu"}


def test_what_is_no_checkpoint_of_nanogpt_is_refused(torch, tmp_path):
    path, state = tmp_path / "a.pt", theirs(torch, model(CONFIG))

    def line(**value):
        torch.save(value, path)
        return refused(path, read_nanogpt)

    assert "has no model;" in line(step=1)
    assert "has no model_args" in line(model=state)
    for field, value in dict(n_layer=2.0, n_head=True, n_embd=0, vocab_size=None, block_size="8").items():
        assert f"{field} is " in line(model=state, model_args=args(**{field: value}))
    assert "dropout is 1.5" in line(model=state, model_args=args(dropout=1.5))
    assert "bias is 1" in line(model=state, model_args=args(bias=1))
    assert "n_layer is 1000000000, but" in line(model=state, model_args=args(n_layer=10**9))
    assert "does not divide" in line(model=state, model_args=args(n_head=3))
    assert "model_args has 'rotary'" in line(model=state, model_args=args(rotary=True))
    assert "no dropout" in line(model=state, model_args={k: v for k, v in args().items() if k != "dropout"})
    assert "shape (11, 4), its model_args require (12, 4)" in line(model=state, model_args=args(vocab_size=12))
    assert "h.2.ln_1.weight is missing" in line(model=state, model_args=args(n_layer=3))
    assert "h.1.ln_1.weight' is not a tensor of nanoGPT's" in line(model=state, model_args=args(n_layer=1))
    assert "model has 'blocks.0'" in line(model=state | {"blocks.0": torch.ones(2)}, model_args=args())
    assert "is present twice" in line(model=state | theirs(torch, model(CONFIG), "_orig_mod."), model_args=args())
    whole = {"transformer.ln_f.weight": torch.arange(4)}
    assert "ln_f.weight' is not a tensor of floats" in line(model=state | whole, model_args=args())
    assert "lm_head.weight has shape" in line(model=state | {"lm_head.weight": torch.ones(4, 11)}, model_args=args())


def test_build_nanogpts_checkpoints_are_refused_with_the_reason(torch, tmp_path):
    state = theirs(torch, model(CONFIG))
    torch.save(dict(model=state, config=GPTConfig(), step=5000, val_loss=3.1), tmp_path / "model_05000.pt")
    assert "looks like build-nanogpt's" in refused(tmp_path / "model_05000.pt", read_nanogpt)


# -- what we write -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_what_was_written_is_read_back_exactly(tmp_path, bias):
    config = CONFIG | {"bias": bias}
    tensors = model(config)
    assert write_nanogpt(tmp_path / "ckpt.pt", tensors, config) == []
    read, found = read_nanogpt(tmp_path / "ckpt.pt")
    assert found == config and same(read, tensors)
    write_nanogpt(tmp_path / "again.pt", read, found)
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "ckpt.pt").read_bytes()


def test_stored_tensors_of_other_types_are_written_as_float32(tmp_path):
    tensors = model(CONFIG)
    halves = {name: LazyTensor(memoryview(array.astype("<f2").tobytes()), "F16", array.shape)
              for name, array in tensors.items()}  # fmt: skip
    write_nanogpt(tmp_path / "ckpt.pt", halves, CONFIG)
    read, _ = read_nanogpt(tmp_path / "ckpt.pt")
    assert same(read, {name: array.astype("<f2").astype(np.float32) for name, array in tensors.items()})


@pytest.mark.parametrize("limit", [0xFFFFFFFF, 700, 10])
def test_torch_loads_what_was_written(torch, tmp_path, monkeypatch, limit):
    """Also in the form for files of more than 4 GiB, which begins where the limit says."""
    monkeypatch.setattr(zip_archive, "_NARROW", limit)
    tensors = model(CONFIG)
    write_nanogpt(tmp_path / "ckpt.pt", tensors, CONFIG)
    checkpoint = torch.load(tmp_path / "ckpt.pt")
    expected = theirs(torch, tensors)
    assert type(checkpoint["model"]).__name__ == "OrderedDict" and list(checkpoint["model"]) == list(expected)
    assert all(torch.equal(checkpoint["model"][name], value) for name, value in expected.items())
    pointers = [checkpoint["model"][name].data_ptr() for name in ("transformer.wte.weight", "lm_head.weight")]
    assert pointers[0] == pointers[1]
    assert checkpoint["model_args"] == args() and checkpoint["iter_num"] == 0 and checkpoint["best_val_loss"] == 1e9
    assert checkpoint["config"] == {} and checkpoint["optimizer"]["state"] == {}
    assert torch.load(tmp_path / "ckpt.pt", mmap=True)["model"].keys() == expected.keys()
    assert zipfile.ZipFile(tmp_path / "ckpt.pt").testzip() is None
    assert same(read_nanogpt(tmp_path / "ckpt.pt")[0], tensors)


def test_torchs_optimizer_takes_what_was_written(torch, tmp_path):
    write_nanogpt(tmp_path / "ckpt.pt", model(CONFIG), CONFIG)
    checkpoint = torch.load(tmp_path / "ckpt.pt")
    parameters = [torch.nn.Parameter(value) for value in list(checkpoint["model"].values())[:-1]]
    groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1.0)
    optimizer.load_state_dict(checkpoint["optimizer"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    before = parameters[0].detach().clone()
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    assert 1e-4 < float((parameters[0] - before).detach().abs().max()) < 2e-3


def test_every_member_lies_at_a_multiple_of_64(tmp_path):
    write_nanogpt(tmp_path / "ckpt.pt", model(CONFIG), CONFIG)
    raw = (tmp_path / "ckpt.pt").read_bytes()
    for member in zip_archive.members_of(memoryview(raw)).values():
        assert member.start % 64 == 0


def test_what_nanogpt_cannot_compute_is_not_written(tmp_path):
    tensors, path = model(CONFIG), tmp_path / "ckpt.pt"

    def line(tensors=tensors, **changes):
        return refused(path, lambda path: write_nanogpt(path, tensors, CONFIG | changes))

    assert "ties the head" in line(tied_head=False)
    assert "4 n_embd wide" in line(n_inner=8)
    assert "layernorms add" in line(norm_eps=1e-6)
    assert "'h.0.attn.c_attn.bias' is unexpected" in line(bias=False)
    assert "'h.1.ln_2.bias' is missing" in line({k: v for k, v in tensors.items() if k != "h.1.ln_2.bias"})
    assert "wpe.weight has shape (8, 4)" in line(block_size=9)
    assert os.listdir(tmp_path) == []
    notes = write_nanogpt(path, tensors, CONFIG | {"activation": "gelu", "n_inner": 16})
    assert len(notes) == 1 and "tanh" in notes[0] and "\n" not in notes[0]


def test_writing_needs_little_memory_besides_the_source(tmp_path):
    config = CONFIG | dict(vocab_size=20_000, n_embd=128, n_layer=1)
    tensors = model(config)
    tracemalloc.start()
    write_nanogpt(tmp_path / "ckpt.pt", tensors, config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20 < tensors["wte.weight"].nbytes


# -- files that lie ----------------------------------------------------------------------------------------------------


class Calls:
    """Pickles to a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, exec, os.mkdir, __import__, getattr, zipfile.ZipFile, bytearray])
def test_calls_are_refused_by_name_and_nothing_is_run(tmp_path, function, protocol):
    sentinel = tmp_path / "sentinel"
    argument = {os.system: f"touch {sentinel}", os.mkdir: str(sentinel)}.get(function, f"open({str(sentinel)!r}, 'w')")
    program = pickle.dumps({"model": [1, Calls(function, argument)]}, protocol)
    line = refused(zip_of(tmp_path / "a.pt", program), kind=UnknownName)
    assert f".{function.__name__}', but only tensors are read" in line and not sentinel.exists()


def test_other_calls_of_torch_are_refused(tmp_path):
    for name in ("torch load", "torch.hub load", "torch._utils _rebuild_qtensor", "torch FloatStorage.x", "torch\t x"):
        program = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\nX\x01\x00\x00\x00x\x85R."
        refused(zip_of(tmp_path / "a.pt", program), kind=UnknownName)


KNOWN = [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nFloatStorage\n"]
KNOWN += [b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"]


@pytest.mark.parametrize("name", KNOWN)
def test_names_that_are_known_do_no_harm_in_wrong_places(tmp_path, name):
    strange = [b"", b")R", b"K\x01\x85R", b"]\x85R", b"}\x85R", b"}b", b"Q", name + b"\x85R", b"\x85Q", b"(NNNNNNtR"]
    for rest in strange + [b"q\x00h\x00\x85R", b"}" + name + b"Ns", b"]" + name + b"a"]:
        value = pickle_value(tmp_path, name + rest)
        assert value is REFUSED or (name, rest) == (KNOWN[3], b")R"), rest


REFUSED = object()


def pickle_value(tmp_path, steps):
    """The value of a pickle of these steps, or REFUSED."""
    path = zip_of(tmp_path / "a.pt", b"\x80\x02" + steps + b".", [SIX.tobytes()])
    try:
        return read_torch_file(path)
    except UserError as error:
        line = str(error)
        assert str(path) in line and line.isprintable() and len(line) < 500, line
        return REFUSED


def test_the_pickles_of_these_tests_are_right(tmp_path):
    assert np.array_equal(pickle_value(tmp_path, tensor()).astype(), SIX.reshape(2, 3))
    assert np.array_equal(pickle_value(tmp_path, tensor((3, 2), (1, 3))).astype(), SIX.reshape(2, 3).T)
    assert np.array_equal(pickle_value(tmp_path, tensor((2,), (1,), 4)).astype(), SIX[4:])
    assert pickle_value(tmp_path, plain({"a": (1, None)})) == {"a": (1, None)}


LIES = [
    dict(shape=(2, 4), strides=(4, 1)), dict(offset=1), dict(offset=-1), dict(offset=2**63), dict(offset=1.0),
    dict(shape=(2, -3)), dict(shape=(-2, -3)), dict(shape=(2**40, 2**40), strides=(2**40, 1)), dict(shape=(2, True)),
    dict(shape=6), dict(shape=(6,)), dict(strides=(0, 0)), dict(strides=(3, -1)), dict(strides=(1, 1)),
    dict(strides=(2, 1)), dict(shape=(1,) * 99, strides=(1,) * 99), dict(shape=(2**600, 0)), dict(length=7),
    dict(length=5), dict(length=-6), dict(length=2**62), dict(length="6"), dict(key="1"), dict(key="../data.pkl"),
    dict(key=0), dict(key=("0",)), dict(kind="LongStorage"), dict(kind="Size"), dict(kind="HalfStorage"),
    dict(shape=(10**9, 10**9), strides=(0, 0)), dict(shape=(3, 2), strides=(1, 2)),
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_tensors_that_lie_about_their_sizes(tmp_path, lie):
    assert pickle_value(tmp_path, tensor(**lie)) is REFUSED


STRANGE = {
    "nothing": b"", "no value": b"0", "two values": b"NN", "open mark": b"(N", "no mark": b"t", "no pair": b"}N",
    "key alone": b"}(Nu", "list for a key": b"}]Ns", "tuple for a key": b"})Ns", "no key": b"}s",
    "tensor for a key": b"}" + tensor() + b"Ns", "append to a dict": b"}Na", "entry of a list": b"]NNs",
    "recall": b"h\x05", "far recall": b"j\xff\xff\xff\xff", "unknown step": b"\xff", "object": b")\x81",
    "string": b"S'a'\n", "extension": b"\x82\x01", "attribute": b"}}X\x01\x00\x00\x00aNsb", "frame": b"\x95\x00",
    "long text": b"X\xff\xff\xff\xff", "bad text": b"X\x01\x00\x00\x00\xff", "half a number": b"J\x00",
    "no line": b"ctorch", "long number": b"\x8a\xff\x00", "below a mark": b"N(0", "itself": b"]q\x00h\x00a",
    "tuple of itself": b"]q\x00h\x00\x85a", "dict of itself": b"}q\x00Nh\x00s", "after the end": b"N.N",
    "deep": b"]" * 1000 + b"a" * 999, "very deep": b"]" + b"\x85" * 100_000, "persistent text": b"P0\n",
    "attributes of a list": b"]}b", "protocol": b"N\x80\x01", "name of no texts": b"NN\x93", "no name": b")R",
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_strange_pickles(tmp_path, name):
    assert pickle_value(tmp_path, STRANGE[name]) is REFUSED


def doubling(opening, step, n):
    """A value that holds twice the value before, n times: small as it is shared, immense when written out."""
    return opening + b"".join(b"q" + bytes([i % 256]) + step.replace(b"*", b"h" + bytes([i % 256])) for i in range(n))


BOMBS = {
    "tuples": doubling(b")", b"*\x86", 200),
    "lists": doubling(b"]", b"0](**e", 200),
    "tuples for a key": b"}" + doubling(b")", b"*\x86", 200) + b"Ns",
    "texts": plain("x" * 1_000_000) + doubling(b"", b"*\x86", 20),
    "long list": b"]q\x00(" + b"N" * 100_000 + b"e0](" + b"h\x00" * 100_000 + b"e",
    "many dicts": b"](" + b"}" * 3_000_000 + b"e",
    "many tensors": tensor() + b"q\x000](" + b"h\x00" * 900_000 + b"e",
    "large program": b"]" + b"N0" * (9 << 20),
    "nested marks": b"(" * 1_900_000 + b"N",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_time(tmp_path, name):
    path = zip_of(tmp_path / "a.pt", b"\x80\x02" + BOMBS[name] + b".", [SIX.tobytes()])
    start = time.monotonic()
    refused(path)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("name", slow_but(("lists", "texts"), ("lists", "texts", "many dicts")))
def test_bombs_take_little_memory(tmp_path, name):
    path = zip_of(tmp_path / "a.pt", b"\x80\x02" + BOMBS[name] + b".", [SIX.tobytes()])
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20


def test_zip_files_that_are_not_like_torchs(tmp_path):
    path, program = tmp_path / "a.pt", b"\x80\x02N."
    assert read_torch_file(zip_of(path, program)) is None
    assert "compressed" in refused(zip_of(path, program + b" " * 10**7, compression=zipfile.ZIP_DEFLATED))
    assert "byteorder" in refused(zip_of(path, program, byteorder="big"))
    assert "compressed" in refused(zip_of(path, b"\x80\x02" + tensor() + b".", [bytes(10**8)], zipfile.ZIP_BZIP2))
    for names in (["a/data.pkl", "b/data.pkl"], ["data.pkl"], ["a/b/data.pkl"], ["x"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, program)
        assert "no data.pkl, or several" in refused(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data.pkl", program)
    assert "twice" in refused(path)


def test_what_is_no_zip_file(tmp_path):
    path = tmp_path / "a.pt"
    assert "No such file" in refused(path)
    assert "is a folder" in refused(tmp_path)
    for content in (b"", b"PK\3\4", b"PK\5\6" + bytes(18), pickle.dumps({}, 2) + bytes(30), b"\x93NUMPY" + bytes(99)):
        path.write_bytes(content)
        refused(path)
    zip_of(path, b"\x80\x02N.")
    raw = path.read_bytes()
    for n in range(0, len(raw), 7):
        path.write_bytes(raw[:n])
        refused(path)
    path.write_bytes(b"x" + raw)
    refused(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "is a pipe; give the name of a regular file" in refused(tmp_path / "pipe")


def entries(raw):
    """Where the entries of a zip file's directory begin."""
    return [i for i in range(len(raw)) if raw[i : i + 4] == b"PK\1\2"]


@pytest.mark.parametrize("field", ["size", "overlap", "header", "count", "start"])
def test_zip_directories_that_lie(tmp_path, field):
    path = zip_of(tmp_path / "a.pt", b"\x80\x02" + tensor() + b".", [SIX.tobytes()])
    raw = bytearray(path.read_bytes())
    first, _, third, _ = entries(raw)
    end = raw.rindex(b"PK\5\6")
    place, value = {
        "size": (third + 20, struct.pack("<2L", 10**6, 10**6)),
        "overlap": (first + 20, struct.pack("<2L", 400, 400)),
        "header": (third + 42, struct.pack("<L", 2**32 - 2)),
        "count": (end + 10, struct.pack("<H", 5)),
        "start": (end + 16, struct.pack("<L", 2**32 - 1)),
    }[field]
    raw[place : place + len(value)] = value
    path.write_bytes(raw)
    refused(path)


def test_damaged_tensors_are_found_but_only_where_they_are_read(tmp_path):
    program = b"\x80\x02}X\x01\x00\x00\x00a" + tensor() + b"sX\x01\x00\x00\x00b" + tensor(key="1") + b"s."
    path = zip_of(tmp_path / "a.pt", program, [SIX.tobytes(), (SIX + 1).tobytes()])
    raw = path.read_bytes()
    path.write_bytes(raw.replace((SIX + 1).tobytes(), (SIX + 2).tobytes()))
    assert "checksum of 'archive/data/1'" in refused(path)
    assert read_torch_file(path, lambda keys: keys == ("a",)).keys() == {"a"}


def mutate(raw, rng):
    """The bytes with some damage: flipped, cut, moved, repeated, or overwritten."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 4])):
        a, b = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        kind = rng.randrange(6)
        if kind == 0 and raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[a : a + 4] = struct.pack("<L", rng.choice([0, 1, 2**31, 2**32 - 1, len(raw)]))
        elif kind == 2:
            raw = raw[:a] + raw[b:]
        elif kind == 3:
            raw = raw[:a] + raw[a : a + 40] + raw[a:]
        elif kind == 4:
            raw = raw[:b]
        elif raw:
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def test_random_damage_gives_one_line_or_the_same_content(tmp_path):
    path, tensors, rng = tmp_path / "ckpt.pt", model(CONFIG), random.Random(0)
    write_nanogpt(path, tensors, CONFIG)
    raw, start, unchanged = path.read_bytes(), time.monotonic(), 0
    for _ in range(1000):
        path.write_bytes(mutate(raw, rng))
        try:
            read, config = read_nanogpt(path)
        except UserError as error:
            assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 500
        else:
            assert config == CONFIG and same(read, tensors)
            unchanged += 1
    assert unchanged < 500 and time.monotonic() - start < 60


def test_random_pickles_give_one_line_or_a_value(tmp_path):
    """The damage is in the program alone, and its checksum is right again, so that the program is run."""
    path, rng, start = tmp_path / "ckpt.pt", random.Random(1), time.monotonic()
    write_nanogpt(path, model(CONFIG | {"n_layer": 1}), CONFIG | {"n_layer": 1})
    with zipfile.ZipFile(path) as archive:
        program = archive.read("archive/data.pkl")
        storages = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    refusals = 0
    for _ in range(1500):
        damaged = mutate(program, rng) if rng.random() < 0.5 else flipped(program, rng)
        zip_of(path, damaged, storages)
        for read in (read_torch_file, read_nanogpt):
            try:
                read(path)
            except UserError as error:
                assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 500
                refusals += 1
    assert refusals > 1000 and time.monotonic() - start < 60


def flipped(program, rng):
    """One byte changed."""
    place = rng.randrange(len(program))
    return program[:place] + bytes([rng.randrange(256)]) + program[place + 1 :]


def test_a_program_with_a_wrong_checksum_is_not_run(tmp_path):
    path = zip_of(tmp_path / "a.pt", b"\x80\x02K\x01.")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"K\x01.", b"K\x02."))
    assert "checksum of 'archive/data.pkl'" in refused(path)
    before, after = (zlib.crc32(b"\x80\x02K" + n + b".").to_bytes(4, "little") for n in (b"\x01", b"\x02"))
    path.write_bytes(raw.replace(b"K\x01.", b"K\x02.").replace(before, after))
    assert read_torch_file(path) == 2


def test_keys_that_share_a_hash_are_refused_before_they_cost_time():
    """All multiples of 2^61 - 1 hash to 0: a dict of n such keys takes n^2 steps to fill."""
    prime, begin = 2**61 - 1, time.monotonic()
    keys = [((i + 1) * prime).to_bytes(12, "little") for i in range(200_000)]
    program = b"\x80\x02}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in keys) + b"u."
    with pytest.raises(CorruptFile, match="as a key"):
        run_pickle(program)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("shape", [(0, 2**61), (0, 2**40, 2**40), (1,) * 9])
def test_shapes_that_no_tensor_has(shape):
    from tinygrad2.io.lazy_tensor import is_shape

    assert not is_shape(shape) and is_shape(()) and is_shape((0, 3)) and is_shape([2**20, 2**20])
