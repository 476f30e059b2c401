"""Minimax polynomials of csrc/kernels/math_template.h, by Remez exchange in 60 digits. Needs mpmath.

    python tools/minimax.py

prints, for float32 and float64, the coefficients of (expm1(r) - r) / r^2 on |r| <= ln 2 / 2 and of
(atanh(s) / s - 1) / s^2 in t = s^2 on [0, 1/9], lowest power first, and the largest relative error that
each causes in expm1 or atanh.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp

Real = Callable[[mp.mpf], mp.mpf]


def remez(f: Real, weight: Real, low: mp.mpf, high: mp.mpf, degree: int) -> tuple[list[mp.mpf], mp.mpf]:
    """The polynomial that minimises the largest |weight (p - f)| on [low, high], and that largest value."""
    n = degree + 2
    points = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    grid = [low + (high - low) * mp.mpf(i) / 1500 for i in range(1501)]
    for _ in range(12):
        # p(x_i) + (-1)^i e / weight(x_i) = f(x_i)
        system, values = mp.matrix(n, n), mp.matrix(n, 1)
        for i, x in enumerate(points):
            for j in range(degree + 1):
                system[i, j] = x**j
            system[i, degree + 1] = (-1) ** i / weight(x)
            values[i] = f(x)
        solution = mp.lu_solve(system, values)
        c = [solution[j] for j in range(degree + 1)]
        errors = [(x, (mp.polyval(c[::-1], x) - f(x)) * weight(x)) for x in grid]
        extrema = [errors[0]]  # one a run of equal sign
        for x, e in errors[1:]:
            if (e > 0) != (extrema[-1][1] > 0):
                extrema.append((x, e))
            elif abs(e) > abs(extrema[-1][1]):
                extrema[-1] = (x, e)
        while len(extrema) > n:
            del extrema[0 if abs(extrema[0][1]) < abs(extrema[-1][1]) else -1]
        if len(extrema) < n:
            break
        points = [x for x, _ in extrema]
    return c, max(abs(e) for _, e in errors)


def expm1_rest(r: mp.mpf) -> mp.mpf:
    return (mp.expm1(r) - r) / r**2 if abs(r) > 1e-12 else mp.mpf(1) / 2 + r / 6


def expm1_weight(r: mp.mpf) -> mp.mpf:
    return abs(r * r / mp.expm1(r)) if abs(r) > 1e-12 else mp.mpf("1e-12")


def atanh_rest(t: mp.mpf) -> mp.mpf:
    s = mp.sqrt(t)
    return (mp.atanh(s) / s - 1) / t if t > 1e-20 else mp.mpf(1) / 3


def atanh_weight(t: mp.mpf) -> mp.mpf:
    return t / (1 + t / 3) + mp.mpf("1e-9")


def main() -> None:
    mp.mp.dps = 60
    half = mp.log(2) / 2 * mp.mpf("1.0001")
    for dtype, expm1_degree, atanh_degree in (("float32", 4, 3), ("float64", 9, 9)):
        for name, result in (
            ("expm1", remez(expm1_rest, expm1_weight, -half, half, expm1_degree)),
            ("atanh", remez(atanh_rest, atanh_weight, mp.mpf(0), mp.mpf(1) / 9, atanh_degree)),
        ):
            coefficients, error = result
            print(f"{name} {dtype}: relative error {mp.nstr(error, 3)}")
            print("   ", *(mp.nstr(c, 22) for c in coefficients), sep="\n    ")


if __name__ == "__main__":
    main()
