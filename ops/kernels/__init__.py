"""Fast versions of the ops, one folder per kind of machine: cpu (Numba and BLAS). Each has the name of its page."""
