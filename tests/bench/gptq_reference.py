#!/usr/bin/env python3
"""What GPTQ loses of a layer of real size, by a plain reference in numpy: the inverse of the damped Hessian, its upper
Cholesky factor, column after column, with errors passed on to all later columns at once after each 128 (as the authors'
gptq.py, IST-DASLab/gptq). Writes a line for each layer, which //tests/bench:gptq reads and compares with what Terrace
loses; the layers are random, and both sides make them with the generator of gptq_golden.py, so no weights are kept.

    python3 -m venv ~/numpy && ~/numpy/bin/pip install numpy
    ~/numpy/bin/python tests/bench/gptq_reference.py > /tmp/gptq.txt        # a minute or two, 2 GB
    bazel run --config=release //tests/bench:gptq -- /tmp/gptq.txt
"""

import argparse

import numpy as np

BLOCK, DAMPING = 128, 0.01


def generate(seed, count):
    """gptq_golden.py's Generator, `count` numbers at once: s[k] = a**k * s[0] + c * (a**0 + ... + a**(k - 1))."""
    multiplier, increment = np.uint64(6364136223846793005), np.uint64(1442695040888963407)
    powers = np.full(count + 1, multiplier, dtype=np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers, dtype=np.uint64)  # modulo 2**64
    sums = np.add.accumulate(powers, dtype=np.uint64)
    states = powers[1:] * np.uint64(seed) + increment * sums[:-1]
    return (states >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def inputs(rows, columns, tokens):
    matrix = generate(1, rows * columns).reshape(rows, columns)
    own, causes = generate(2, tokens * columns).reshape(tokens, columns), generate(3, tokens * 4).reshape(tokens, 4)
    place = np.arange(columns)
    x = (causes[:, place % 4] + own / 4) * np.where(place % 16 == 5, 8, 1)
    return matrix, x.astype(np.float32).astype(np.float64)


def levels(values):
    """Scale and zero point of each row of a group."""
    values = values.astype(np.float32)
    low, high = np.minimum(values.min(axis=1), np.float32(0)), np.maximum(values.max(axis=1), np.float32(0))
    scale = ((high - low) / np.float32(15)).astype(np.float16).astype(np.float64)
    return scale, np.clip(np.rint(-low.astype(np.float64) / scale), 0, 15)


def gptq(matrix, h, group):
    damped = h + DAMPING * np.mean(np.diag(h)) * np.eye(len(h))
    inverse = np.linalg.inv(damped)
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    w, out = matrix.copy(), np.empty_like(matrix)
    for begin in range(0, w.shape[1], BLOCK):
        end = min(begin + BLOCK, w.shape[1])
        errors = np.empty((w.shape[0], end - begin))
        for k in range(begin, end):
            if k % group == 0:
                scale, zero = levels(w[:, k : k + group])
            code = np.clip(np.rint(w[:, k] / scale) + zero, 0, 15)
            out[:, k] = scale * (code - zero)
            errors[:, k - begin] = (w[:, k] - out[:, k]) / upper[k, k]
            w[:, k:end] -= np.outer(errors[:, k - begin], upper[k, k:end])
        w[:, end:] -= errors @ upper[begin:end, end:]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", action="append", help="ROWSxCOLUMNS, more than once; default 1024x4096")
    parser.add_argument("--tokens", type=int, default=2048, help="of calibration")
    parser.add_argument("--group", type=int, default=128, help="columns that share a scale; divides 128")
    options = parser.parse_args()
    if options.group < 32 or BLOCK % options.group != 0:
        parser.error(f"--group {options.group} is not 32, 64 or 128")
    for layer in options.layer or ["1024x4096"]:
        rows, columns = (int(size) for size in layer.split("x"))
        matrix, x = inputs(rows, columns, options.tokens)
        h = 2 * x.T @ x
        difference = gptq(matrix, h, options.group) - matrix
        error = np.sum((difference @ h) * difference) / 2
        print(rows, columns, options.tokens, options.group, DAMPING, repr(float(error)), flush=True)


if __name__ == "__main__":
    main()
