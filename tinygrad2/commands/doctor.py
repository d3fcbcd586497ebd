"""python -m tinygrad2 doctor: is everything installed that tinygrad2 needs, and does it work?

Each check does the real thing: a matrix product, a compiled kernel, two ranks that add up a number, a file that is
written and read back. One line each: ok, FAIL with the one command that repairs it, or "-" for what is missing and not
needed. Exit code 1 if something has failed.

It must work if NumPy is missing or broken, so this file imports it inside the checks only; what may crash or hang
runs in its own process (doctor_checks.py, doctor_gpu.py, doctor_kernels.py).
"""

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from tinygrad2.cli import Parser, summary
from tinygrad2.commands.doctor_checks import NOT_INSTALLED, UNUSABLE
from tinygrad2.distributed.mpirun import OPEN_MPI, environment, find_mpirun
from tinygrad2.errors import UserError
from tinygrad2.system.installation import PROJECT_ROOT, adapt_hint
from tinygrad2.system.threads import available_cores, plan_threads

OK, MISSING, FAIL = "ok", "-", "FAIL"
_PIP = f"{os.path.basename(sys.executable)} -m pip install"


class Failed(Exception):
    """What is wrong, and the command that repairs it."""

    def __init__(self, problem, remedy):
        super().__init__(problem)
        self.remedy = remedy


class Missing(Failed):
    """Not installed, and not needed for everything."""


def main(argv):
    parser = Parser(prog="tinygrad2 doctor", description=summary(__doc__))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead (default: no)")
    parser.add_argument("--mpi", action="store_true", help="measure messages between ranks instead (default: no)")
    args = parser.parse_args(argv)
    if args.mpi:
        from tinygrad2.commands import doctor_mpi

        return doctor_mpi.main(args.json)
    plan_threads()
    results, checks = [], dict(CHECKS)
    while checks:
        name = next(iter(checks))
        check = checks.pop(name)
        result = {"check": name, "state": OK, "detail": "", "remedy": ""}
        try:
            result["detail"] = check()
            checks = GPU_CHECKS | checks if name == "gpu" else checks
        except Failed as error:
            result |= {"state": MISSING if isinstance(error, Missing) else FAIL, "detail": str(error)}
            result["remedy"] = error.remedy
        except Exception as error:  # one broken thing must not hide the others
            result |= {"state": FAIL, "detail": f"{type(error).__name__}: {error}", "remedy": f"{_PIP} -e ."}
        result |= {name: adapt_hint(result[name]) for name in ("detail", "remedy")}
        results.append(result)
        if not args.json:
            remedy = f"\n{'':22s}-> {result['remedy']}" if result["remedy"] else ""
            print(f"{result['state']:5s} {name:15s} {result['detail']}{remedy}", flush=True)
    failed = [result["check"] for result in results if result["state"] == FAIL]
    if args.json:
        print(json.dumps({"ok": not failed, "checks": results}, indent=1))
    else:
        print(f"\n{len(failed)} problem(s): {', '.join(failed)}" if failed else "\nno problems")
    return 1 if failed else 0


def _run(command, seconds, **options):
    """(exit code, output) of a process that may take so many seconds; (None, "") if it took longer.

    Its output is stdout, and where it failed also stderr: libraries write warnings there.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, **options)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, (done.stdout + (done.stderr if done.returncode else "")).strip()


def _check(name, seconds, launcher=(), environment=os.environ, module="doctor_checks"):
    """_run of a check in doctor_checks.py, or another module of this folder."""
    paths = [PROJECT_ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    command = [*launcher, sys.executable, "-m", f"tinygrad2.commands.{module}", name]
    return _run(command, seconds, env={**environment, "PYTHONPATH": os.pathsep.join(paths)})


def _failure(problem, code, output, remedy, seconds):
    """The Failed of a check in doctor_checks.py."""
    if code is None:
        return Failed(f"no answer within {seconds} s", "try again when the machine is idle")
    return Failed(f"{problem}: {_last(output)}", remedy)


def _last(output):
    return output.splitlines()[-1] if output else "no output"


def _python_version():
    if not (3, 10) <= sys.version_info[:2] < (3, 14):
        raise Failed(f"{platform.python_version()}, but 3.10 to 3.13 is needed", "make clean test PYTHON=python3.12")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"


def _numpy():
    try:
        import numpy as np
    except ImportError as error:
        raise Failed(f"cannot be imported: {error}", f'{_PIP} -U "numpy>=2.0"') from None
    if int(np.__version__.split(".")[0]) < 2:
        raise Failed(f"{np.__version__} is too old", f'{_PIP} -U "numpy>=2.0"')
    a, b = np.arange(12.0).reshape(3, 4), np.ones((4, 5))
    if not np.array_equal(a @ b, np.repeat(a.sum(1), 5).reshape(3, 5)):
        raise Failed("a matrix product is wrong", f"{_PIP} --force-reinstall numpy")
    return np.__version__


def _blas():
    import numpy as np

    from tinygrad2.system.gemm_peak import gemm_peak

    try:
        info = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        name = f"{info.get('name')} {info.get('version')}"
    except Exception:  # the form of this report changes between versions of NumPy
        name = "unknown BLAS"
    better = ""
    with contextlib.suppress(ImportError):
        from ops.kernels.cpu.blas_library import find, is_intel

        if is_intel() and find()[2] == "OpenBLAS":
            better = f'; on this processor {_PIP} -e ".[mkl]" makes products faster'
    return f"{name}, {gemm_peak(np) / 1e9:.0f} GFLOP/s in float32{better}"


def _threads():
    planned = os.environ.get("OPENBLAS_NUM_THREADS")
    cores = len(available_cores())
    if planned and planned.isdecimal() and int(planned) > cores:
        raise Failed(f"{planned} threads on {cores} core(s) slow each other down", "unset OPENBLAS_NUM_THREADS")
    return f"{planned} thread(s) on {cores} core(s)"


def _regex():
    try:
        import regex
    except ImportError as error:
        raise Failed(f"cannot be imported: {error}", f"{_PIP} regex") from None
    if regex.findall(r"\p{L}+", "añ 日本 7") != ["añ", "日本"]:
        raise Failed("does not match letters", f"{_PIP} -U regex")
    return regex.__version__


def _kernels():
    code, output = _check("kernels", 180)
    if code == NOT_INSTALLED:
        raise Missing("Numba is not installed: training takes about twice as long", f'{_PIP} -e ".[fast]"')
    if code == UNUSABLE:
        reason, _, remedy = output.splitlines()[0].rpartition("; ")
        raise Failed(f"training takes about twice as long, because {reason}", remedy)
    if code != 0:
        raise _failure("a kernel does not run", code, output, f"{_PIP} -U numba llvmlite", 180)
    version, seconds = _last(output).split()
    return f"Numba {version}; a kernel equals its reference implementation ({seconds} s with compiling)"


def _gpu():
    if not _can_import("cupy"):
        raise Missing("CuPy is not installed; it is needed for a GPU only", f'{_PIP} -e ".[cuda13]"')
    return _of_gpu("gpu", "a kernel does not run on a GPU", 120)


def _of_gpu(name, problem, seconds):
    """The line of a check in doctor_gpu.py."""
    code, output = _check(name, seconds, module="doctor_gpu")
    if code == NOT_INSTALLED:
        return _last(output)
    if code == UNUSABLE:
        reason, _, remedy = _last(output).rpartition("; ")
        raise Failed(reason, remedy)
    if code != 0:
        raise _failure(problem, code, output, "nvidia-smi", seconds)
    return _last(output)


def _gpu_dtypes():
    try:
        return _of_gpu("dtypes", "16-bit numbers cannot be used", 60)
    except Failed as error:
        raise Missing(str(error), error.remedy) from None


def _gpu_kernels():
    """Every family of kernels in a process of its own, three at a time."""
    from tinygrad2.commands.doctor_kernels import kernel_families

    families, seconds, begin = kernel_families(), 120, time.perf_counter()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda family: _check(family, seconds, module="doctor_kernels"), families))
    wrong = []
    for family, (code, output) in zip(families, answers):
        if code != 0:
            wrong.append(f"{family}: {f'no end within {seconds} s' if code is None else _last(output)}")
    if wrong:
        raise Failed("; ".join(wrong), "python train_gpt2.py --kernels reference")
    took = time.perf_counter() - begin
    return f"{', '.join(families)}: all equal their reference implementations ({took:.0f} s with compiling)"


def _mpi():
    if not _can_import("mpi4py"):
        raise Missing("mpi4py is not installed; it is needed for several processes only", f'{_PIP} -e ".[mpi]"')
    try:
        mpirun = find_mpirun()
    except UserError:
        raise Failed("mpi4py is installed, but no mpirun", f'{_PIP} -e ".[mpi]"') from None
    code, output = _check("ranks", 60, [mpirun, "-n", "2"], environment())
    answers = [line.split(maxsplit=3) for line in output.splitlines() if line.startswith("sum ")]
    if len(answers) == 2 and all(answer[1] == "1" for answer in answers):
        problem = f"{mpirun} belongs to another MPI than mpi4py: each rank runs as a separate job"
        raise Failed(problem, f'{_PIP} -e ".[mpi]"')
    if len(answers) != 2 or any(answer[1:3] != ["2", "3"] for answer in answers):
        cause = "no answer within 60 s" if code is None else _last(output)
        raise Failed(f"two ranks could not add up a number: {cause}", f'{_PIP} --force-reinstall -e ".[mpi]"')
    library = answers[0][3].strip()
    missing = [f"export {name}={value}" for name, value in OPEN_MPI.items() if name not in os.environ]
    if "Open MPI" in library and missing and hasattr(os, "geteuid") and os.geteuid() == 0:
        problem = f"two ranks added up a number; but {library} refuses root, and more ranks than cores"
        raise Failed(problem, "; ".join(missing))
    return f"two ranks added up a number; {library}, {mpirun}"


def _disk():
    free = shutil.disk_usage(".").free
    if free < 1e9:
        raise Failed(f"only {free / 1e6:,.0f} MB are free here", "df -h .")
    block = os.urandom(1 << 20) * 16
    try:
        with tempfile.TemporaryFile(dir=".") as file:
            begin = time.perf_counter()
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = len(block) / (time.perf_counter() - begin)
            file.seek(0)
            if file.read() != block:
                raise Failed("what is read back differs from what was written", "dmesg | tail")
    except OSError as error:
        raise Failed(f"cannot write into {os.getcwd()} ({error.strerror})", "cd ~") from None
    return f"{free / 1e9:,.0f} GB free here, {rate / 1e6:,.0f} MB/s to the disk itself"


def _memory():
    from tinygrad2.system.memory import available_bytes, megabytes

    available = available_bytes()
    if available is None:
        return "this system does not report how much is free"
    if available < 5e8:
        raise Failed(f"only {megabytes(available)} are free", "python -m tinygrad2 plan")
    return f"{megabytes(available)} free"


def _clock():
    if time.time() < 1.7e9:  # 2023: certificates and file dates would be nonsense
        raise Failed(f"the date is {time.strftime('%Y-%m-%d')}", "sudo date -s ...")
    return f"{time.strftime('%Y-%m-%d %H:%M')}, resolution {time.get_clock_info('perf_counter').resolution:.0e} s"


def _extras():
    libraries = {"pytest": "tests", "matplotlib": "plot", "tensorboardX": "--tensorboard", "safetensors": "tests"}
    installed = [name for name in libraries if _can_import(name)]
    return f"{', '.join(installed) or 'none'} of {', '.join(libraries)}"


def _can_import(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


CHECKS = {
    "python": _python_version, "numpy": _numpy, "blas": _blas, "threads": _threads, "regex": _regex,
    "kernels": _kernels, "gpu": _gpu, "mpi": _mpi, "disk": _disk, "memory": _memory, "clock": _clock,
    "extras": _extras,
}  # fmt: skip
GPU_CHECKS = {  # where there is one
    "gpu products": lambda: _of_gpu("products", "a matrix product fails", 120), "gpu dtypes": _gpu_dtypes,
    "gpu kernels": _gpu_kernels, "gpu nccl": lambda: _of_gpu("nccl", "NCCL cannot be used", 60),
}  # fmt: skip
