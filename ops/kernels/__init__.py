"""Fast versions of the ops, one folder per kind of machine: cpu (Numba and BLAS). Each file is named after its op."""
