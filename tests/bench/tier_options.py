"""Plans that the router does not make (yet), compared on validation tasks: other scorers, tiers that are left out, a second
tier that is skipped where the first answer says that it would not do. All scores are of rows that the scorer had not seen;
thresholds are the cheapest at which these rows are as accurate as asked for. The test tasks play no part.
"""

import itertools

from tier_records import Point
from tier_scorers import KINDS, cross_fit

TARGETS = ("right", "no_worse")
GRID = 40  # thresholds of the first gate; those of the second are all there are
SKIPS = 16


def label_of(row, tier, target):
    return int(row.is_right(tier) or (target == "no_worse" and not row.is_right(-1)))


def grid_of(scores, size):
    if scores is None:
        return [None]
    ordered = sorted(scores)
    return sorted({-1.0, *(ordered[i * len(ordered) // size] for i in range(size)), ordered[-1]})


def sums(values, rows):
    return sum(values[i] for i in rows)


def search(records, first, skip, second, floor):
    """(cost, right, thresholds) of the cheapest thresholds with `floor` right answers; of the most right ones if there are
    none. Scores by row, or None for a gate that is not there: `first` and `second` keep an answer above their threshold,
    `skip` leaves the second tier out at or below its own."""
    rows, last = records.rows, records.last
    right = [[row.is_right(t) for row in rows] for t in range(last + 1)]
    cost = [[records.cost(row, t) for row in rows] for t in range(last + 1)]
    best = None

    def offer(right_now, cost_now, thresholds):
        nonlocal best
        key = (right_now < floor, cost_now if right_now >= floor else -right_now, cost_now)
        if best is None or key < best[0]:
            best = key, (cost_now, right_now, thresholds)

    everyone = range(len(rows))
    for t0 in grid_of(first, GRID):
        kept = [] if first is None else [i for i in everyone if first[i] > t0]
        rest = list(everyone) if first is None else [i for i in everyone if first[i] <= t0]
        base_right = sums(right[0], kept)
        base_cost = 0 if first is None else sums(cost[0], everyone)
        for ts in grid_of(skip, SKIPS):
            via = [] if second is None else [i for i in rest if skip is None or skip[i] > ts]
            direct = rest if second is None else [i for i in rest if skip is not None and skip[i] <= ts]
            right_now = base_right + sums(right[last], direct) + sums(right[last], via)
            cost_now = base_cost + sums(cost[last], direct) + sums(cost[last], via) + sums(cost[1], via)
            if second is None:
                offer(right_now, cost_now, (t0, ts, None))
                continue
            via.sort(key=lambda i: -second[i])
            offer(right_now, cost_now, (t0, ts, second[via[0]] if via else 1.0))
            for place, i in enumerate(via):  # the second tier's answer is kept of one row more
                right_now += right[1][i] - right[last][i]
                cost_now -= cost[last][i]
                after = second[via[place + 1]] if place + 1 < len(via) else -1.0
                if after < second[i]:
                    offer(right_now, cost_now, (t0, ts, after))
    return best[1]


def plan(scorers, thresholds):
    """asked_of of (first, skip, second) scorers, None where there is no gate."""
    (first, skip, second), (t0, ts, t1), memo = scorers, thresholds, {}

    def decide(row):
        asked = []
        if first is not None:
            asked.append(0)
            if first.probability(row) > t0:
                return asked
        if second is not None and (skip is None or skip.probability(row) > ts):
            asked.append(1)
            if second.probability(row) > t1:
                return asked
        return [*asked, 2]

    def asked_of(row):
        if row.id not in memo:
            memo[row.id] = decide(row)
        return memo[row.id]

    return asked_of


def option_points(validation, margin):
    rows = validation.rows
    alone = sum(row.is_right(-1) for row in rows)
    last_cost = sum(validation.cost(row, validation.last) for row in rows)
    points = []
    for kind, target in itertools.product(KINDS, TARGETS):
        labels = [[label_of(row, tier, target) for row in rows] for tier in (0, 1)]
        # A scorer, its held-out probabilities and its log loss.
        first, second = (cross_fit(kind, rows, tier, labels[tier]) for tier in (0, 1))
        skip = cross_fit(kind, rows, 0, labels[1])  # of the second tier's answer, by the first one's
        print(f"{kind:9} {target:9} log loss held out: first {first[2]:.4f}, second {second[2]:.4f}, second before it is asked {skip[2]:.4f}", flush=True)
        none = (None, None, 0)
        shapes = {"n s b": (first, none, second), "n (s) b": (first, skip, second), "n b": (first, none, none), "s b": (none, none, second)}
        for shape, parts in shapes.items():
            cost, right, thresholds = search(validation, *(scores for _, scores, _ in parts), floor=alone + margin * len(rows))
            asked_of = plan([scorer for scorer, _, _ in parts], thresholds)
            points.append(Point(f"{kind} {target} {shape}", (right - alone) / len(rows), cost / last_cost, asked_of))
    return points
