"""The doctor's checks of a GPU, on stand-ins that fail as CuPy does, and on the one that computes."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import cuda_checks
import fake_cublaslt
import fake_cudnn
import pytest
import strict_cupy
from cuda_host import needs_compiler

from tinygrad2 import halves
from tinygrad2.commands import doctor, doctor_gpu, doctor_kernels
from tinygrad2.dispatch import KERNELS, OPS

ROOT = Path(__file__).parents[1]
INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
NO_DEVICE = "cudaErrorNoDevice: no CUDA-capable device is detected"
NVRTC = 'Failure finding "libnvrtc.so.13": No such file: libnvrtc.so.13\n  listdir("/usr/lib"):'
FRAMED = """
================================================================
Failed to import CuPy.

If you installed CuPy via wheels (cupy-cudaXXX), make sure that the package matches with the version of CUDA installed.

Original error:
  ImportError: libcuda.so.1: cannot open shared object file: No such file or directory
================================================================
"""


class Broken:
    """CuPy whose driver and libraries are as given; a text in place of a number is raised."""

    def __init__(self, driver=13000, wheel=13020, count=1, capability="90", nvrtc=(13, 0), cublas=""):
        def answer(value, error=RuntimeError):
            if isinstance(value, str) and value:
                raise error(value)
            return value

        runtime = SimpleNamespace(driverGetVersion=lambda: driver, runtimeGetVersion=lambda: wheel,
                                  getDeviceCount=lambda: answer(count))  # fmt: skip

        class Cuda:
            Device = staticmethod(lambda: SimpleNamespace(compute_capability=capability))
            nvrtc = None
            cublas = property(lambda self: answer(cublas, ImportError))

        self.cuda = Cuda()
        self.cuda.runtime = runtime
        self.cuda.nvrtc = SimpleNamespace(getVersion=lambda: answer(nvrtc))
        self.__version__ = "14.2.0"


@pytest.mark.parametrize("state, says, remedy", [
    (dict(driver=0, count=INSUFFICIENT), "has no NVIDIA driver", "--gpus all|^nvidia-smi$"),
    (dict(driver=12080, count=INSUFFICIENT), r"driver is for CUDA 12\.8, this CuPy for CUDA 13\.2",
     r'uninstall -y cupy-cuda13x && .* install -e "\.\[cuda12\]"$'),
    (dict(driver=12080, count=0), r"driver is for CUDA 12\.8, this CuPy for CUDA 13\.2", r"\.\[cuda12\]"),
    (dict(driver=11040, wheel=12090, count=INSUFFICIENT), r"for CUDA 11\.4, .*: it is too old", "^nvidia-smi$"),
    (dict(count=NO_DEVICE), r"finds no GPU \(cudaErrorNoDevice", "^nvidia-smi -L$"),
    (dict(capability="70"), r"CUDA 13 does not compile for compute capability 7\.0", r"\.\[cuda12\]"),
    (dict(nvrtc=NVRTC), r"library NVRTC is missing \(Failure finding \"libnvrtc\.so\.13\"", r"\.\[cuda13\]"),
    (dict(wheel=12090, nvrtc=NVRTC), "library NVRTC is missing", r"\.\[cuda12\]"),
    (dict(cublas="libcublas.so.13: cannot open shared object file"), "library cuBLAS is missing", r"\.\[cuda13\]"),
])  # fmt: skip
def test_what_is_wrong_with_a_gpu_is_named_with_its_remedy(state, says, remedy, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cupy = Broken(**state)
    with pytest.raises(doctor_gpu.Unusable, match=says) as found:
        doctor_gpu.require_libraries(cupy, *doctor_gpu.require_gpu(cupy), int(cupy.cuda.Device().compute_capability))
    reason, _, command = str(found.value).rpartition("; ")
    assert reason and re.search(remedy, command), command


def test_what_is_right_with_a_gpu_passes():
    cupy = Broken()
    assert doctor_gpu.require_gpu(cupy) == (13000, 13020)
    doctor_gpu.require_libraries(cupy, 13000, 13020, 75)


def test_a_variable_that_hides_the_gpus_is_named(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(doctor_gpu.Unusable, match="CUDA_VISIBLE_DEVICES='' leaves no GPU; unset CUDA_VISIBLE_DEVICES"):
        doctor_gpu.require_gpu(Broken(count=NO_DEVICE))


def test_two_packages_of_cupy_are_named(monkeypatch):
    names = [SimpleNamespace(metadata={"Name": name}) for name in ("numpy", "cupy-cuda12x", "cupy-cuda13x", None)]
    monkeypatch.setattr(metadata, "distributions", lambda: names)
    with pytest.raises(doctor_gpu.Unusable, match="cupy-cuda12x and cupy-cuda13x are installed .*uninstall -y cupy-cu"):
        doctor_gpu.import_cupy()


def test_of_an_import_error_the_original_line_is_told(monkeypatch, tmp_path):
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text(f"raise ImportError({FRAMED!r})")
    code, output = run_check("gpu", tmp_path)
    assert code == doctor.UNUSABLE and output.startswith("CuPy cannot be imported: ImportError: libcuda.so.1: cannot")
    assert output.endswith('.[cuda13]" --force-reinstall')


def run_check(name, folder, module="doctor_gpu"):
    path = os.pathsep.join([str(folder), str(ROOT / "tests"), str(ROOT)])
    done = subprocess.run([sys.executable, "-m", f"tinygrad2.commands.{module}", name], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path}, timeout=600)  # fmt: skip
    return done.returncode, done.stdout.strip()


# -- on the stand-in that computes -------------------------------------------------------------------------------------


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    return cupy


@needs_compiler
def test_the_line_of_a_gpu_that_works(cupy, capsys):
    assert doctor_gpu.main("gpu") == 0
    line = capsys.readouterr().out
    assert "stand-in, compute capability 8.0, 86 GB (75 free); driver for CUDA 13.0, CuPy 14.2.0" in line
    assert doctor_gpu.main("products") == 0 and "cuBLASLt" in capsys.readouterr().out
    assert doctor_gpu.main("dtypes") == 0 and "capability 8.0) has bfloat16" in capsys.readouterr().out
    assert doctor_gpu.main("nccl") == doctor.NOT_INSTALLED and "on the host" in capsys.readouterr().out


def test_without_cublaslt_the_products_say_so(cupy, monkeypatch, capsys):
    fake_cublaslt.install(monkeypatch, lambda: None)
    assert doctor_gpu.main("products") == doctor.UNUSABLE
    assert capsys.readouterr().out.startswith("cuBLASLt cannot be loaded: products run through CuPy, slower; ")


def test_without_ml_dtypes_float16_remains(cupy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    halves.half_dtype.cache_clear()
    try:
        assert doctor_gpu.main("dtypes") == doctor.UNUSABLE
    finally:
        halves.half_dtype.cache_clear()
    line = capsys.readouterr().out
    assert "bfloat16 cannot be used, float16 and float32 can; " in line and "pip install ml_dtypes" in line


def test_a_gpu_without_bfloat16_says_so(cupy, monkeypatch, capsys):
    monkeypatch.setattr(strict_cupy._Queue, "compute_capability", "75")
    assert doctor_gpu.main("dtypes") == 0
    assert "float32, float16; --dtype bfloat16: this GPU (compute capability 7.5) has no bf" in capsys.readouterr().out


@needs_compiler
@pytest.mark.parametrize("family", [
    pytest.param(name, marks=[] if name in ("layernorm", "linear", "adam", "cudnn") else pytest.mark.slow)
    for name in doctor_kernels.FAMILIES
])  # fmt: skip
def test_a_family_of_kernels_passes(family, cupy, monkeypatch):
    cudnn = fake_cudnn.install(monkeypatch)
    assert family in doctor_kernels.kernel_families() and doctor_kernels.check(family) == []
    assert cudnn.executed == ["sdpa", "sdpa_backward"] * 2 * (family == "cudnn")


def test_cudnn_is_left_out_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(doctor_kernels.importlib.util, "find_spec", lambda name: None)
    assert doctor_kernels.kernel_families() == [name for name in doctor_kernels.FAMILIES if name != "cudnn"]


def test_kernels_run_in_the_dtypes_of_the_gpu(cupy, monkeypatch):
    ran = []
    monkeypatch.setattr(doctor_kernels, "_compare", lambda xp, dtype, case: ran.append(dtype) or [])
    doctor_kernels.check("embedding")
    monkeypatch.setattr(strict_cupy._Queue, "compute_capability", "75")
    doctor_kernels.check("embedding")
    assert ran == ["float32", "bfloat16", "float16", "float32", "float16"]


@needs_compiler
def test_a_wrong_kernel_is_named(cupy):
    with cuda_checks.planted("gelu", "CUBIC = 0.044715f", "CUBIC = 0.054715f"):
        lines = doctor_kernels.check("gelu")
    assert lines and lines[0].startswith("gelu in float32: result 0 differs from the reference implementation by ")


def test_every_op_with_a_kernel_belongs_to_a_family():
    known = {op for family in doctor_kernels.FAMILIES for op in doctor_kernels.ops_of(family)}
    found = {name for name, library in KERNELS if library == "cupy" and name in OPS}
    assert found - known == set(), "add them to FAMILIES of tinygrad2/commands/doctor_kernels.py"


def test_the_doctor_says_which_families_fail_or_hang(monkeypatch):
    answers = {"layernorm": (0, ""), "gelu": (None, ""), "linear": (1, "linear in float32: result 0 differs")}
    monkeypatch.setattr(doctor_kernels, "kernel_families", lambda: list(answers))
    monkeypatch.setattr(doctor, "_check", lambda name, seconds, module: answers[name])
    with pytest.raises(doctor.Failed, match="^gelu: no end within 120 s; linear: linear in float32: result 0 d"):
        doctor._gpu_kernels()
    answers.update(gelu=(0, ""), linear=(0, ""))
    assert doctor._gpu_kernels().startswith("layernorm, gelu, linear: all equal their reference implementations")


def test_the_doctor_goes_on_with_the_checks_of_a_gpu_where_there_is_one(monkeypatch, capsys):
    checks = {"python": lambda: "3", "gpu": lambda: "here", "disk": lambda: "4"}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    monkeypatch.setattr(doctor, "GPU_CHECKS", {"gpu kernels": lambda: "right"})
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[:4]] == ["ok python 3", "ok gpu here", "ok gpu kernels right",
                                                              "ok disk 4"]  # fmt: skip

    def none():
        raise doctor.Missing("CuPy is not installed", "pip")

    monkeypatch.setattr(doctor, "CHECKS", checks | {"gpu": none})
    assert doctor.main([]) == 0
    assert "kernels" not in capsys.readouterr().out
