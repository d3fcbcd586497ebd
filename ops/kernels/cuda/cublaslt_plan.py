"""One matrix product by cuBLASLt: its descriptors and an algorithm, made once for each kind of product and kept, so
that a step pays for one call and not for a dozen. The algorithm is the one that was measured to be the fastest
(tuning.py), or the first answer of the library's heuristic.

cuBLASLt stores matrices by columns. A row-major matrix is its own transpose in that order, so a result by rows

    out = a b      is computed as      outT = bT aT

with b for the library's A and a for its B; nothing is moved. A bias, one number for each column of out, is then one for
each row of outT, as the library wants it.

Parts of a sum that the library computes in parallel are added in float32, never in 16 bits, and always in the same
order: the workspace is ours, and the same algorithm is taken each time.
"""

import ctypes
import functools
import threading
import warnings
from ctypes import byref, c_float
from typing import Any

from ops.kernels.cuda import cublaslt
from ops.kernels.cuda.cublaslt import LAYOUT, OPERATION, PREFERENCE, call, create, set_attribute
from ops.kernels.cuda.cublaslt_problem import Problem

WORKSPACE = 32 << 20  # bytes; what NVIDIA recommends for Hopper, and more than others need
_ONE, _ZERO = c_float(1.0), c_float(0.0)


class Plan:
    """The descriptors of one kind of product, and the algorithm for it: None if the library has none.

    stored    the algorithm to take, in hexadecimal digits, if the library finds that it fits the descriptors
    """

    def __init__(self, problem: Problem, stored: str | None = None):
        self.problem, self._library = problem, cublaslt.load_library()
        self._handles: list[Any] = []                             # (name of what destroys it, handle)
        self._lock = threading.Lock()                             # the address of the bias is part of a descriptor
        self._operation = self._operation_of(problem)
        first, second, result = (self._layout(m) for m in (problem.b, problem.a, problem.out))
        self._layouts = first, second, result, result
        known = self._checked(stored) if stored else None
        self.take(known or next(iter(self.answers(1)), None), is_measured=known is not None)

    def take(self, algorithm, is_measured=True):
        """From now on this one computes the products."""
        self.algorithm, self.is_measured = algorithm, is_measured

    def run(self, a, b, out, bias, aux, alpha, beta, workspace, stream, algorithm=None):
        """out = epilogue(alpha a b + beta out + bias), for addresses on the device, 0 for what there is not.

        `workspace` has WORKSPACE bytes; `stream` is an address; `algorithm` replaces the plan's. Raises CublasError.
        """
        alpha = _ONE if alpha == 1 else c_float(alpha)
        beta = _ZERO if beta == 0 else c_float(beta)
        first, second, result, _ = self._layouts
        with self._lock:
            if bias:
                self._set("BIAS_POINTER", bias)
            if aux:
                self._set("EPILOGUE_AUX_POINTER", aux)
            call(
                "cublasLtMatmul", handle(self.problem.device), self._operation,
                byref(alpha), b, first, a, second,
                byref(beta), out, result, out, result,
                byref(algorithm or self.algorithm), workspace, WORKSPACE, stream, what=self.problem,
            )  # fmt: skip

    def _operation_of(self, problem):
        compute = cublaslt.COMPUTE_TYPES[problem.compute]
        self._operation = self._create("MatmulDesc", compute, cublaslt.DATA_TYPES["float32"])
        self._set("TRANSA", cublaslt.OPERATIONS[problem.b.transposed])
        self._set("TRANSB", cublaslt.OPERATIONS[problem.a.transposed])
        self._set("EPILOGUE", cublaslt.EPILOGUES[problem.epilogue])
        if problem.bias:                                          # an address with its alignment, for the heuristic
            self._set("BIAS_POINTER", problem.bias)
            self._set("BIAS_DATA_TYPE", cublaslt.DATA_TYPES[problem.out.dtype])
        if problem.aux:
            self._set("EPILOGUE_AUX_POINTER", problem.aux)
            self._set("EPILOGUE_AUX_LD", problem.aux_distance)
        return self._operation

    def _set(self, attribute, value):
        name = "cublasLtMatmulDescSetAttribute"
        set_attribute(name, self._operation, OPERATION[attribute], value, self.problem)

    def _layout(self, matrix):
        """A descriptor of the memory of `matrix`, read by columns."""
        sides = (matrix.rows, matrix.columns) if matrix.transposed else (matrix.columns, matrix.rows)
        layout = self._create("MatrixLayout", cublaslt.DATA_TYPES[matrix.dtype], *sides, matrix.distance)
        if self.problem.batch > 1:
            name = "cublasLtMatrixLayoutSetAttribute"
            set_attribute(name, layout, LAYOUT["BATCH_COUNT"], self.problem.batch, self.problem)
            set_attribute(name, layout, LAYOUT["STRIDED_BATCH_OFFSET"], matrix.stride, self.problem)
        return layout

    def answers(self, wanted):
        """The algorithms, at most so many, that the heuristic expects to be the fastest, the best one first."""
        arguments = handle(self.problem.device), self._operation, *self._layouts, self._preference_of(self.problem)
        found, count = (cublaslt.HeuristicResult * wanted)(), ctypes.c_int()
        status = self._library.cublasLtMatmulAlgoGetHeuristic(*arguments, wanted, found, byref(count))
        if status == cublaslt.NOT_SUPPORTED:
            return []
        cublaslt.check(status, "cublasLtMatmulAlgoGetHeuristic", self.problem)
        return [answer.algo for answer in found[: count.value] if answer.state == cublaslt.SUCCESS]

    def _checked(self, stored):
        """A stored algorithm; None, and a warning, if it is none for these descriptors, or needs a larger workspace."""
        algorithm, found = cublaslt.Algorithm.from_buffer_copy(bytes.fromhex(stored)), cublaslt.HeuristicResult()
        arguments = handle(self.problem.device), self._operation, *self._layouts, byref(algorithm), byref(found)
        if self._library.cublasLtMatmulAlgoCheck(*arguments) == cublaslt.SUCCESS and found.workspaceSize <= WORKSPACE:
            return algorithm
        warnings.warn(f"the stored algorithm is none for {self.problem}", RuntimeWarning, stacklevel=2)
        return None

    def _preference_of(self, problem):
        """What the algorithm may rely on, and use."""
        scheme = cublaslt.REDUCTIONS["COMPUTE_TYPE"]
        if problem.out.dtype == "float32":
            scheme |= cublaslt.REDUCTIONS["INPLACE"]              # adds parts in the result's own dtype
        preference = self._create("MatmulPreference")
        alignments = zip("ABCD", (problem.b, problem.a, problem.out, problem.out))
        wanted = {f"MIN_ALIGNMENT_{letter}_BYTES": matrix.alignment for letter, matrix in alignments}
        wanted |= {"MAX_WORKSPACE_BYTES": WORKSPACE, "REDUCTION_SCHEME_MASK": scheme}
        for name, value in wanted.items():
            set_attribute("cublasLtMatmulPreferenceSetAttribute", preference, PREFERENCE[name], value, problem)
        return preference

    def _create(self, kind, *args):
        made = create(f"cublasLt{kind}Create", *args, what=self.problem)
        self._handles.append((f"cublasLt{kind}Destroy", made))
        return made

    def __del__(self):
        for name, made in self._handles:
            getattr(self._library, name)(made)


@functools.lru_cache(maxsize=1024)
def plan(problem, choices):
    """The Plan of a kind of product, by these Choices. Decoding has new shapes at each token: the oldest plans go."""
    return Plan(problem, choices.get(problem.key))


@functools.cache
def handle(device):
    """The library's handle for the current device, whose number is `device`."""
    return create("cublasLtCreate")
