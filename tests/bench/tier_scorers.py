"""Scorers that the router does not have (yet), to compare with those that it has: products of features, a prior by the
prompt's words, small trees. Each is a pure function of a handful of numbers, so that a router could hold it. Plain Python,
deterministic; minutes where the C++ of `terrace calibrate` takes seconds.
"""

import math
import random

from tier_records import DERIVED, OF_ANSWER, OF_PROMPT, WORD_BUCKETS, feature, sigmoid

FOLDS = 5
PENALTIES = (1e-3, 1e-2, 1e-1)
SURE = ("log_mean_surprise", "log_max_surprise", "min_margin")  # what is multiplied by traits of the prompt


# ---- Logistic regression with an L2 penalty, as tools/calibrate/logistic.cc.


def solve(a, b):
    """x of A x = b for a positive definite A, by Cholesky."""
    n, low = len(b), [[0.0] * len(b) for _ in b]
    for j in range(n):
        row_j = low[j]
        for i in range(j, n):
            row_i = low[i]
            rest = a[i][j] - sum(x * y for x, y in zip(row_i[:j], row_j[:j]))
            row_i[j] = math.sqrt(rest) if i == j else rest / row_j[j]
    y = []
    for i in range(n):
        y.append((b[i] - sum(p * q for p, q in zip(low[i], y))) / low[i][i])
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (y[i] - sum(low[k][i] * x[k] for k in range(i + 1, n))) / low[i][i]
    return x


class Logistic:
    def __init__(self, inputs, labels, l2):
        columns = list(zip(*inputs))
        self.means = [sum(c) / len(c) for c in columns]
        scales = [math.sqrt(sum((v - m) ** 2 for v in c) / len(c)) for c, m in zip(columns, self.means)]
        self.scales = [s if s > 1e-9 else 1.0 for s in scales]
        xs = [self.scaled(x) for x in inputs]
        self.weights = [0.0] * (len(columns) + 1)
        objective = self.objective(xs, labels, l2, self.weights)
        for _ in range(30):
            step = self.newton(xs, labels, l2)
            length = 1.0
            while length > 1e-6:  # the whole step may climb where the curve flattens out
                candidate = [w - length * s for w, s in zip(self.weights, step)]
                new = self.objective(xs, labels, l2, candidate)
                if new <= objective:
                    break
                length /= 2
            if length <= 1e-6 or objective - new < 1e-9:
                break
            self.weights, objective = candidate, new

    def scaled(self, x):
        return [(v - m) / s for v, m, s in zip(x, self.means, self.scales)] + [1.0]

    @staticmethod
    def objective(xs, labels, l2, weights):
        total = 0.0
        for x, label in zip(xs, labels):
            logit = sum(map(float.__mul__, x, weights))
            against = -logit if label else logit
            total += max(against, 0.0) + math.log1p(math.exp(-abs(against)))
        return total / len(xs) + l2 / 2 * sum(w * w for w in weights[:-1])

    def newton(self, xs, labels, l2):
        n, share = len(self.weights), 1 / len(xs)
        gradient = [l2 * w for w in self.weights[:-1]] + [0.0]
        hessian = [[0.0] * (i + 1) for i in range(n)]
        for x, label in zip(xs, labels):
            p = sigmoid(sum(map(float.__mul__, x, self.weights)))
            error, bend = share * (p - label), share * p * (1 - p)
            for i, value in enumerate(x):
                gradient[i] += error * value
                weight = bend * value
                hessian[i] = [h + weight * other for h, other in zip(hessian[i], x)]
        full = [[hessian[max(i, j)][min(i, j)] for j in range(n)] for i in range(n)]
        for i in range(n):
            full[i][i] += l2 if i + 1 < n else 1e-6
        return solve(full, gradient)

    def probability(self, x):
        return sigmoid(sum(map(float.__mul__, self.scaled(x), self.weights)))


# ---- Boosted trees of depth two over quantile bins.


class Trees:
    ROUNDS, RATE, BINS, LEAST, SHRINK = 60, 0.1, 16, 10, 5.0

    def __init__(self, inputs, labels, _):
        columns = list(zip(*inputs))
        self.cuts = []
        for column in columns:
            ordered = sorted(column)
            self.cuts.append(sorted({ordered[i * len(ordered) // self.BINS] for i in range(1, self.BINS)}))
        share = min(max(sum(labels) / len(labels), 0.01), 0.99)
        self.bias, self.trees = math.log(share / (1 - share)), []
        bins = [self.binned(x) for x in inputs]
        logits = [self.bias] * len(inputs)
        for _ in range(self.ROUNDS):
            p = [sigmoid(logit) for logit in logits]
            pull = [label - q for label, q in zip(labels, p)]
            bend = [q * (1 - q) for q in p]
            everyone = list(range(len(inputs)))
            root = self.split(bins, pull, bend, everyone)
            if root is None:
                break
            which, cut = root
            sides = ([i for i in everyone if bins[i][which] <= cut], [i for i in everyone if bins[i][which] > cut])
            tree = (root, [self.leaves(bins, pull, bend, side) for side in sides])
            self.trees.append(tree)
            logits = [logit + self.value(tree, b) for logit, b in zip(logits, bins)]

    def binned(self, x):
        return [sum(v > cut for cut in cuts) for v, cuts in zip(x, self.cuts)]

    def split(self, bins, pull, bend, members):
        """The (feature, bin) whose sides gain most, or None."""
        total, weight = sum(pull[i] for i in members), sum(bend[i] for i in members)
        best, found = 1e-6, None
        for which, cuts in enumerate(self.cuts):
            sums = [[0.0, 0.0, 0] for _ in range(len(cuts) + 1)]
            for i in members:
                cell = sums[bins[i][which]]
                cell[0] += pull[i]
                cell[1] += bend[i]
                cell[2] += 1
            left, left_weight, count = 0.0, 0.0, 0
            for cut, cell in enumerate(sums[:-1]):
                left, left_weight, count = left + cell[0], left_weight + cell[1], count + cell[2]
                if count < self.LEAST or len(members) - count < self.LEAST:
                    continue
                right, right_weight = total - left, weight - left_weight
                gain = left**2 / (left_weight + self.SHRINK) + right**2 / (right_weight + self.SHRINK) - total**2 / (weight + self.SHRINK)
                if gain > best:
                    best, found = gain, (which, cut)
        return found

    def leaves(self, bins, pull, bend, members):
        """(split or None, value at or below it, value above it)."""
        split = self.split(bins, pull, bend, members)

        def value(side):
            return self.RATE * sum(pull[i] for i in side) / (sum(bend[i] for i in side) + self.SHRINK)

        if split is None:
            return None, value(members), value(members)
        which, cut = split
        return split, value([i for i in members if bins[i][which] <= cut]), value([i for i in members if bins[i][which] > cut])

    @staticmethod
    def value(tree, bins):
        (which, cut), sides = tree
        split, low, high = sides[bins[which] > cut]
        return high if split is not None and bins[split[0]] > split[1] else low

    def probability(self, x):
        bins = self.binned(x)
        return sigmoid(self.bias + sum(self.value(tree, bins) for tree in self.trees))


# ---- What the prompt's words say: naive Bayes over their hashes.


class WordPrior:
    def __init__(self, rows, labels):
        self.counts = [[1.0] * WORD_BUCKETS, [1.0] * WORD_BUCKETS]  # by label
        self.totals = [2.0, 2.0]
        for row, label in zip(rows, labels):
            self.totals[label] += 1
            for word in row.words:
                self.counts[label][word] += 1

    def log_odds(self, row):
        """But for the labels' own, which is the same for all rows."""
        wrong, right = self.counts
        return sum(math.log(right[w] / self.totals[1]) - math.log(wrong[w] / self.totals[0]) for w in sorted(row.words))


def priors_of_others(rows, labels):
    """Each row's log-odds by rows of other folds, as those of its own would give its label away."""
    out = [0.0] * len(rows)
    for fold in range(FOLDS):
        others = [i for i in range(len(rows)) if i % FOLDS != fold]
        prior = WordPrior([rows[i] for i in others], [labels[i] for i in others])
        for i in range(fold, len(rows), FOLDS):
            out[i] = prior.log_odds(rows[i])
    return out


# ---- Scorers by name.


class Scorer:
    """Of the answers of `tier`; `labels` may be about another tier's."""

    def __init__(self, kind, rows, tier, labels, l2):
        self.kind, self.tier = kind, tier
        self.prior = WordPrior(rows, labels) if kind in ("words", "trees") else None
        priors = priors_of_others(rows, labels) if self.prior else [0.0] * len(rows)
        model = Trees if kind == "trees" else Logistic
        self.model = model([self.inputs(row, prior) for row, prior in zip(rows, priors)], labels, l2)

    def inputs(self, row, prior):
        base = {name: feature(name, row, self.tier) for name in (*OF_ANSWER, *OF_PROMPT)}
        if self.kind != "router":
            base.update({name: feature(name, row, self.tier) for name in DERIVED})
        out = list(base.values())
        if self.kind == "products":
            for sure in SURE:
                out += [base[sure] * base[trait] for trait in (*OF_PROMPT, "log_answer_tokens", sure)]
        if self.prior is not None:
            out += [prior, prior * base["log_mean_surprise"]]
        return out

    def probability(self, row):
        return self.model.probability(self.inputs(row, self.prior.log_odds(row) if self.prior else 0.0))


KINDS = ("router", "derived", "products", "words", "trees")


def log_loss(probabilities, labels):
    of_what_was = (p if label else 1 - p for p, label in zip(probabilities, labels))
    return -sum(math.log(max(p, 1e-12)) for p in of_what_was) / len(labels)


def cross_fit(kind, rows, tier, labels, seed=0):
    """A scorer of all rows, and each row's probability by one that had not seen it. The penalty is the one that did best so."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    best = None
    for l2 in PENALTIES if kind != "trees" else (0,):
        held_out = [0.0] * len(rows)
        for fold in range(FOLDS):
            others = [i for place, i in enumerate(order) if place % FOLDS != fold]
            scorer = Scorer(kind, [rows[i] for i in others], tier, [labels[i] for i in others], l2)
            for i in order[fold::FOLDS]:
                held_out[i] = scorer.probability(rows[i])
        loss = log_loss(held_out, labels)
        if best is None or loss <= best[0]:
            best = loss, l2, held_out
    loss, l2, held_out = best
    return Scorer(kind, rows, tier, labels, l2), held_out, loss
