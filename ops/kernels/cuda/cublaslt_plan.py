"""One matrix product by cuBLASLt: its descriptors and the algorithm that the library's heuristic chooses, made once for
each kind of product and kept, so that a step pays for one call of the library and not for a dozen.

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
from ctypes import byref, c_float
from typing import Any

from ops.kernels.cuda import cublaslt
from ops.kernels.cuda.cublaslt import LAYOUT, OPERATION, PREFERENCE, call, create, set_attribute
from ops.kernels.cuda.cublaslt_problem import Problem

WORKSPACE = 32 << 20  # bytes; what NVIDIA recommends for Hopper, and more than others need
_ONE, _ZERO = c_float(1.0), c_float(0.0)


class Plan:
    """The descriptors of one kind of product, and the algorithm for it: None if the library has none."""

    def __init__(self, problem: Problem):
        self.problem, self._library = problem, cublaslt.load_library()
        self._handles: list[Any] = []                             # (name of what destroys it, handle)
        self._lock = threading.Lock()                             # the address of the bias is part of a descriptor
        self._operation = self._operation_of(problem)
        self._layouts = [self._layout(m) for m in (problem.b, problem.a, problem.out)]
        self.algorithm, self.workspace = self._choose_algorithm()

    def run(self, a, b, out, bias, aux, alpha, beta, workspace, stream):
        """out = epilogue(alpha a b + beta out + bias), for addresses on the device, 0 for what there is not.

        `workspace` has WORKSPACE bytes; `stream` is an address as well. Raises CublasError.
        """
        alpha = _ONE if alpha == 1 else c_float(alpha)
        beta = _ZERO if beta == 0 else c_float(beta)
        first, second, result = self._layouts
        with self._lock:
            if bias:
                self._set("BIAS_POINTER", bias)
            if aux:
                self._set("EPILOGUE_AUX_POINTER", aux)
            call(
                "cublasLtMatmul", handle(self.problem.device), self._operation,
                byref(alpha), b, first, a, second,
                byref(beta), out, result, out, result,
                byref(self.algorithm), workspace, WORKSPACE, stream, what=self.problem,
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

    def _choose_algorithm(self):
        """(the algorithm that the heuristic expects to be the fastest, the bytes of workspace that it needs)."""
        problem, (first, second, result) = self.problem, self._layouts
        preference = self._preference_of(problem)
        found, count = cublaslt.HeuristicResult(), ctypes.c_int()
        layouts = first, second, result, result
        arguments = handle(problem.device), self._operation, *layouts, preference, 1, byref(found), byref(count)
        status = self._library.cublasLtMatmulAlgoGetHeuristic(*arguments)
        if status != cublaslt.NOT_SUPPORTED:
            cublaslt.check(status, "cublasLtMatmulAlgoGetHeuristic", problem)
            if count.value and found.state == cublaslt.SUCCESS:
                return found.algo, found.workspaceSize
        return None, 0

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
def plan(problem):
    """The Plan of a kind of product. Decoding has new shapes at each token: the oldest plans go."""
    return Plan(problem)


@functools.cache
def handle(device):
    """The library's handle for the current device, whose number is `device`."""
    return create("cublasLtCreate")
