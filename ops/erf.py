"""The error function for arrays. NumPy has none; Python's math.erfc computes it for single floats, and that is enough.

    erf(x) = 2/sqrt(pi) * integral from 0 to x of e^(-t^2) dt        erfc = 1 - erf        erf(-x) = -erf(x)

For x >= 0, f(x) = e^(x^2) erfc(x) falls smoothly and slowly, and in s = (x - 2) / (x + 2), which takes x from 0 to
infinity on to -1 .. 1, it is so smooth that a Chebyshev polynomial of degree 24 meets it to 1e-14. Its coefficients
are computed here from math.erfc, at the Chebyshev points. Then  erf(x) = 1 - e^(-x^2) f(x).

Press et al., "Numerical recipes", 3rd ed., sections 5.8 (Chebyshev approximation) and 6.2.2 (the same idea).
"""

import math

_DEGREE = 24
_LARGEST = 6.0                                                    # erf(6) = 1 - 2e-17: from here on it is 1


def chebyshev_coefficients(f, degree, lo, hi):
    """The polynomial sum of c_k T_k(u), u in -1 .. 1 mapped to lo .. hi, that equals f at degree + 1 points."""
    n = degree + 1
    angles = [math.pi * (i + 0.5) / n for i in range(n)]
    values = [f(lo + (hi - lo) * (math.cos(a) + 1) / 2) for a in angles]
    c = [2 / n * sum(v * math.cos(k * a) for v, a in zip(values, angles)) for k in range(n)]
    c[0] /= 2
    return c


def scaled_erfc(s):
    """e^(x^2) erfc(x) at the x >= 0 that belongs to s."""
    x = 2 * (1 + s) / (1 - s)
    return math.exp(x * x) * math.erfc(x)


_HI = (_LARGEST - 2) / (_LARGEST + 2)
_COEFFICIENTS = chebyshev_coefficients(scaled_erfc, _DEGREE, -1.0, _HI)


def erf(xp, x):
    """erf of every element of x, an array of any shape and float dtype; absolute error below 1e-14 in float64."""
    a = xp.minimum(xp.abs(x), _LARGEST)
    s = (a - 2) / (a + 2)
    u = (2 * s - (_HI - 1)) / (_HI + 1)                           # -1 .. 1
    b1 = b2 = 0.0 * u                                             # Clenshaw: sum c_k T_k(u) from the highest k down
    for c in reversed(_COEFFICIENTS[1:]):
        b1, b2 = 2 * u * b1 - b2 + c, b1
    f = u * b1 - b2 + _COEFFICIENTS[0]
    return xp.copysign(1 - xp.exp(-a * a) * f, x)
