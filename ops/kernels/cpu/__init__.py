"""The CPU's versions of the ops: Numba loops and BLAS calls. Importing the package registers them; nothing compiles."""

from ops.kernels.cpu import adam, cross_entropy, gelu, linear, linear_cross_entropy, mlp  # noqa: F401
