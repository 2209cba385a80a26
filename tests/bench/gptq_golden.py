#!/usr/bin/env python3
"""Writes tools/optimize/testdata/gptq_golden.txt: what GPTQ as its authors wrote it (IST-DASLab/gptq, gptq.py: the
inverse of the damped Hessian, its upper Cholesky factor, column after column) makes of a small matrix. Plain Python, so
that it shares nothing with the C++ but the inputs, which both make with the same generator.

    tests/bench/gptq_golden.py > tools/optimize/testdata/gptq_golden.txt
"""

import math
import struct

ROWS, COLUMNS, TOKENS, GROUP, DAMPING = 6, 64, 96, 32, 0.01


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def f16(x):
    return struct.unpack("<e", struct.pack("<e", x))[0]


class Generator:
    """Numbers in [-1, 1) with 24 bits: exact in f32, as all that is made of them below."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 40) / 2**23 - 1


def inputs():
    weights, x, causes = Generator(1), Generator(2), Generator(3)
    matrix = [[weights.next() for _ in range(COLUMNS)] for _ in range(ROWS)]
    rows = []
    for _ in range(TOKENS):
        common = [causes.next() for _ in range(4)]
        # A quarter of its own, the rest shared; one column in 16 is eight times as large.
        rows.append([f32((common[i % 4] + x.next() / 4) * (8 if i % 16 == 5 else 1)) for i in range(COLUMNS)])
    return matrix, rows


def cholesky(a):  # lower
    n = len(a)
    lower = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            rest = a[i][j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = math.sqrt(rest) if i == j else rest / lower[j][j]
    return lower


def inverse_of_lower(lower):
    n = len(lower)
    out = [[0.0] * n for _ in range(n)]
    for column in range(n):
        for i in range(column, n):
            rest = (1.0 if i == column else 0.0) - sum(lower[i][k] * out[k][column] for k in range(column, i))
            out[i][column] = rest / lower[i][i]
    return out


def upper_of_inverse(h):
    n = len(h)
    lower = inverse_of_lower(cholesky(h))
    inverse = [[sum(lower[k][i] * lower[k][j] for k in range(max(i, j), n)) for j in range(n)] for i in range(n)]
    factor = cholesky(inverse)
    return [[factor[j][i] for j in range(n)] for i in range(n)]


def levels(values):
    low, high = min(min(values), 0.0), max(max(values), 0.0)
    scale = f16(f32((f32(high) - f32(low)) / 15))
    return scale, min(max(round(-f32(low) / scale), 0), 15)


def main():
    matrix, x = inputs()
    h = [[2 * sum(row[i] * row[j] for row in x) for j in range(COLUMNS)] for i in range(COLUMNS)]
    damp = DAMPING * sum(h[i][i] for i in range(COLUMNS)) / COLUMNS
    for i in range(COLUMNS):
        h[i][i] += damp
    upper = upper_of_inverse(h)
    print("# By tests/bench/gptq_golden.py: the rounded matrix, a row a line.")
    print(ROWS, COLUMNS, TOKENS, GROUP, DAMPING)
    for row in matrix:
        w = list(row)
        out = []
        for k in range(COLUMNS):
            if k % GROUP == 0:
                scale, zero = levels(w[k : k + GROUP])
            code = min(max(round(w[k] / scale) + zero, 0), 15)
            value = scale * (code - zero)
            error = (w[k] - value) / upper[k][k]
            for j in range(k, COLUMNS):
                w[j] -= error * upper[k][j]
            out.append(repr(value))
        print(" ".join(out))


if __name__ == "__main__":
    main()
