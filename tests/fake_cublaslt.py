"""fake_cublaslt.c compiled, and put where ops/kernels/cuda/cublaslt.py finds its library.

    def test_something(monkeypatch):
        fake = fake_cublaslt.install(monkeypatch)    # products of the stand-in for CuPy now run through it
        ...
        fake.fake_products()                         # how many there were; fake_reason(): why one was refused
"""

import atexit
import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile
import weakref

import numpy as np
import pytest
import strict_cupy
import strict_memory
from strict_capture import recorded

from ops.kernels.cuda import cublaslt, cublaslt_plan, products

SOURCE = pathlib.Path(__file__).with_name("fake_cublaslt.c")


@functools.cache
def compiled():
    """The library, compiled once; the test is skipped without a C compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: the stand-in for cuBLASLt cannot be compiled")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = pathlib.Path(folder) / "libcublasLt.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-pthread", "-o", path, SOURCE, "-lm"], check=True, timeout=120)
    library = cublaslt.declared(ctypes.CDLL(str(path)))
    library.fake_reason.restype = ctypes.c_char_p
    library.fake_last_stream.restype = ctypes.c_void_p
    library.fake_watch.argtypes, library.fake_forget.argtypes = (ctypes.c_void_p, ctypes.c_size_t), (ctypes.c_void_p,)
    return library


def install(monkeypatch, library=compiled):
    """Use the stand-in (or what `library()` returns, which may be None) until the test ends. Returns it.

    It is told where the arrays of the stand-in for CuPy lie that are made from here on, and refuses other memory.
    """
    global _before
    found = library()
    _before = found.fake_products() if hasattr(found, "fake_products") else 0
    monkeypatch.setattr(cublaslt, "load_library", lambda: found)
    for module, name in ((products, "plan"), (cublaslt_plan, "handle")):
        monkeypatch.setattr(module, name, functools.cache(getattr(module, name).__wrapped__))
    monkeypatch.setattr(products, "_workspaces", {})
    run = cublaslt_plan.Plan.run
    monkeypatch.setattr(cublaslt_plan.Plan, "run", lambda plan, *args: recorded(lambda: run(plan, *args)))
    box, known = strict_cupy.ndarray.__init__, set()

    def watched(self, array):
        box(self, array)
        owner = self._a
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        owner = owner if owner.flags.owndata else strict_memory.block_at(owner.ctypes.data, owner)
        if hasattr(found, "fake_watch") and id(owner) not in known:
            known.add(id(owner))
            found.fake_watch(owner.ctypes.data, owner.nbytes)
            weakref.finalize(owner, _forget, found, known, id(owner), owner.ctypes.data).atexit = False

    monkeypatch.setattr(strict_cupy.ndarray, "__init__", watched)
    return found


_before = 0


def products_since_install():
    """How many products the stand-in was called for."""
    return compiled().fake_products() - _before


def _forget(library, known, number, address):
    known.discard(number)
    library.fake_forget(address)
