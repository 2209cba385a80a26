#!/usr/bin/python3
"""Every tier policy on the shipped test tasks: accuracy against price, chosen and calibrated on the validation tasks only.

    ./quickstart --once                                  # builds bin/terrace
    tests/bench/tier_study.py --work /tmp/study [--plot tiers.svg] [--options]

Every tier answers the tasks once (in this process, exact arithmetic); the records stay in the work folder, where
resample_guarantee and calibration_study.py find them too. A policy with settings is a family; of each the one is taken that
is the cheapest on validation tasks among those that are as accurate there as the last tier alone, plus --margin (none: the
most accurate). Then the test tasks are looked at, once. What the columns mean: tier_records.py.

--options compares scorers that the router does not have (tier_scorers.py) and plans that skip tiers, by the same rule.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys

from calibration_study import EVAL, TESTS, TIERS, ask, row_of, run
from quality_plot import quality_plot
from tier_records import Begun, Point, Records, cascade, oracle, outcome_of, probability

LOGPROBS = (-0.2, -0.1, -0.05, -0.02, -0.01, -0.005, -0.002, -0.001)
FEATURES = ("mean_logprob", "signals", "signals,prompt")  # that the router's gates take
PROMPT_FEATURES = ("prompt",)
FIRST_TOKEN_FEATURES = ("prompt,first_token", "first_token")
TARGETS = ("right", "no_worse")
EPSILONS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.13)
BOUNDS = (0.12, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)  # of the last tier's mean price
GOAL = 0.45


def choose(points, margin):
    """The rule. Of equals the first."""
    good = [p for p in points if p.gain >= margin]
    return min(good, key=lambda p: p.cost) if good else max(points, key=lambda p: p.gain)


def measured(setting, records, asked_of, score=None):
    """A point whose validation figures are of these records."""
    seen = outcome_of(setting, records, asked_of)
    return Point(setting, seen.difference[0], seen.cost, asked_of)


# ---- Families.


def by_logprob(validation):
    score = lambda row, tier: row.answers[tier]["mean_logprob"]
    return [measured(f"above {t:g}", validation, cascade([t] * validation.last, score)) for t in LOGPROBS]


def calibrated(command, features, validation_path, test_path, test, options):
    """What `terrace calibrate` or `train-router` makes of the validation records. Validation figures are of the rows that
    tested the thresholds, which the scorers have not seen, on average over the splits; the file is that of the first."""
    points, is_cascade = [], command == "calibrate"
    for names, target, epsilon in itertools.product(features, TARGETS, EPSILONS):
        setting, files = f"{names} {target} {epsilon:g}", []
        for seed in range(options.seeds):
            path = options.work / "calibration.json"
            told, reason = run(command, "--records", validation_path, "--report", test_path, "--features", names, "--target", target,
                               "--epsilon", epsilon, "--seed", seed, "--out", path)
            if told is None:
                print(f"{command} {setting}: {reason}", file=sys.stderr)
                break
            files.append((json.loads(path.read_text())["calibration"], told))
        if len(files) < options.seeds:
            continue
        evidence = [file["evidence"] for file, _ in files]
        gain = statistics.mean(e["accuracy"] - e["last_tier_accuracy"] for e in evidence)
        gates = [step for step in files[0][0]["steps"] if "scorer" in step]
        score = lambda row, tier, gates=gates: probability(gates[tier]["scorer"], row, tier if is_cascade else 0)
        asked_of = cascade([gate["threshold"] for gate in gates], score)
        if not is_cascade:
            asked_of = classified(asked_of, begins="first_token" in names.split(","))
        point = Point(setting, gain, statistics.mean(e["relative_cost"] for e in evidence), asked_of)
        check(point, test, files[0][1])
        points.append(point)
    return points


def classified(walk, begins):
    """A classifier asks one tier; where it looks at the first token it has the first tier begin, whoever answers."""

    def asked_of(row):
        tier = walk(row)[-1]
        return [Begun(0), tier] if begins and tier > 0 else [tier]

    return asked_of


def check(point, test, told):
    """Python and the router's C++ must see the same."""
    seen = outcome_of(point.setting, test, point.asked_of)
    accuracy, cost = map(float, row_of(told, "calibrated")[:2])
    if abs(seen.accuracy - accuracy) > 6e-4 or abs(seen.cost - cost) > 6e-4:
        sys.exit(f"{point.setting}: {seen.accuracy:.4f} at {seen.cost:.4f} here, {accuracy} at {cost} by terrace")


def by_budget(validation_path, validation, options):
    """As router/tier/budget_policy.cc: of the tiers whose price for this prompt is within the bound the one of the highest
    quality, of equals the cheapest; where nothing fits, the cheapest. Quality is the probability by the scorers of
    `terrace train-router`, of the last tier its accuracy on validation tasks. expected_answer_tokens is the mean there."""
    path = options.work / "budget.json"
    for epsilon in (0.05, 0.1, 0.2, 0.3):  # the scorers are the same
        told, reason = run("train-router", "--records", validation_path, "--epsilon", epsilon, "--out", path)
        if told is not None:
            break
    else:
        print(f"budget: no scorers: {reason}", file=sys.stderr)
        return []
    scorers = [step["scorer"] for step in json.loads(path.read_text())["calibration"]["steps"] if "scorer" in step]
    last, rows = validation.last, validation.rows
    last_accuracy = statistics.mean(row.is_right(last) for row in rows)
    answer = round(statistics.mean(row.answers[last]["tokens"] for row in rows))
    mean_price = statistics.mean(validation.cost(row, last) for row in rows)

    def asked_within(bound):
        def asked_of(row):
            chances = [probability(scorer, row, 0) for scorer in scorers] + [last_accuracy]
            prices = [tier["parameters"] * (row.answers[0]["prompt_tokens"] + answer) for tier in validation.tiers]
            affordable = [t for t, price in enumerate(prices) if price <= bound * mean_price]
            return [max(affordable, key=lambda t: (chances[t], -t)) if affordable else 0]

        return asked_of

    return [measured(f"{bound:g} a request", validation, asked_within(bound)) for bound in BOUNDS]


def fixed(name, asked):
    return Point(name, 0, 0, lambda row: asked)


# ---- What comes out.


HEAD = f"{'policy':22} {'setting':30} {'validation':>16}   {'accuracy':>8} {'less last':>15} {'losses':>6} {'cost':>6} {'computed':>8} {'p. 1/4':>7}  answered by"


def line_of(family, point, seen, is_fixed=False):
    on_validation = "" if is_fixed else f"{point.gain:+.3f} at {point.cost:.3f}"
    gain, error = seen.difference
    return (f"{family:22} {'' if is_fixed else point.setting:30} {on_validation:>16}   {seen.accuracy:8.3f} {gain:+.3f} +- {error:.3f} "
            f"{seen.losses:7} {seen.cost:6.3f} {seen.computed:8.3f} {seen.computed_prefill:7.3f}  {' / '.join(map(str, seen.answered_by))}")


def study(options):
    validation_path = ask("validation", [EVAL / "validation.jsonl"], options)
    test_path = ask("test", [EVAL / f"{task}.jsonl" for task in TESTS], options)
    validation, test = Records(validation_path), Records(test_path)
    first_last = (TIERS[0], TIERS[-1])
    validation.add_agreement(ask("validation-first-last", [EVAL / "validation.jsonl"], options, first_last), 0, validation.last)
    test.add_agreement(ask("test-first-last", [EVAL / f"{task}.jsonl" for task in TESTS], options, first_last), 0, test.last)

    singles = [fixed(f"{tier} alone", [t]) for t, tier in enumerate(TIERS)]
    singles += [fixed(f"verify {TIERS[0]} by {TIERS[-1]}", [0, test.last]), fixed(f"verify {TIERS[1]} by {TIERS[-1]}", [1, test.last])]
    singles.append(Point("oracle", 0, 0, oracle(test)))
    families = {
        "mean log-probability": by_logprob(validation),
        "calibrated cascade": calibrated("calibrate", options.features.split(";"), validation_path, test_path, test, options),
        "classifier": calibrated("train-router", PROMPT_FEATURES, validation_path, test_path, test, options),
        "first-token classifier": calibrated("train-router", FIRST_TOKEN_FEATURES, validation_path, test_path, test, options),
        "budget": by_budget(validation_path, validation, options),
    }
    if options.options:
        from tier_options import option_points

        validation.add_words([EVAL / "validation.jsonl"])
        test.add_words([EVAL / f"{task}.jsonl" for task in TESTS])
        families["options"] = option_points(validation, options.margin)
    families = {name: points for name, points in families.items() if points}

    seen = {(name, p.setting): outcome_of(p.setting, test, p.asked_of) for name, points in families.items() for p in points}
    alone = {p.setting: outcome_of(p.setting, test, p.asked_of) for p in singles}
    last = alone[f"{TIERS[-1]} alone"]
    print(f"\n{len(test.rows)} test tasks; settings chosen on {len(validation.rows)} validation tasks, margin {options.margin:g}\n\n{HEAD}")
    for p in singles:
        print(line_of(p.setting, p, alone[p.setting], is_fixed=True))
    for name, points in families.items():
        chosen = choose(points, options.margin)
        print(line_of(name, chosen, seen[name, chosen.setting]))
    print(f"\nthe last tier's accuracy on the test tasks is {last.accuracy:.3f}; a family reaches it")
    for name, points in families.items():
        chosen = seen[name, choose(points, options.margin).setting]
        reaching = [seen[name, p.setting].cost for p in points if seen[name, p.setting].accuracy >= last.accuracy]
        print(f"  {name:22} as chosen on validation: {chosen.accuracy:.3f} at {chosen.cost:.3f}, {verdict(chosen, last)}; "
              f"with hindsight {'at ' + format(min(reaching), '.3f') if reaching else 'nowhere'}")
    if options.all:
        for name, points in families.items():
            print(f"\n{name}\n{HEAD}")
            for p in sorted(points, key=lambda p: p.cost):
                print(line_of("", p, seen[name, p.setting]))
    if options.plot:
        lines = {name: [(seen[name, p.setting].cost, seen[name, p.setting].accuracy) for p in drawn(points)] for name, points in families.items()}
        dots = [(name.removesuffix(" alone"), o.cost, o.accuracy) for name, o in alone.items()]
        options.plot.write_text(quality_plot(f"Accuracy against price, {len(test.rows)} test tasks", lines, dots,
                                             [(None, last.accuracy, f"{TIERS[-1]} alone: {last.accuracy:.3f}"), (GOAL, None, f"goal {GOAL:g}")]))


def verdict(seen, last):
    return f"goal ({GOAL:g}) {'reached' if seen.accuracy >= last.accuracy and seen.cost <= GOAL else 'missed'}"


def drawn(points):
    """Those that no other of the family beats on validation tasks."""
    best, out = float("-inf"), []
    for p in sorted(points, key=lambda p: (p.cost, -p.gain)):
        if p.gain > best:
            best = p.gain
            out.append(p)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the records")
    parser.add_argument("--plot", type=pathlib.Path, help="SVG to write")
    parser.add_argument("--seeds", type=int, default=5, help="splits of the validation rows")
    parser.add_argument("--margin", type=float, default=0.0, help="accuracy above the last tier's that is asked for on validation tasks")
    parser.add_argument("--features", default=";".join(FEATURES), help="of the calibrated cascade, sets apart by semicolons")
    parser.add_argument("--options", action="store_true", help="compare scorers and plans that the router does not have; minutes")
    parser.add_argument("--all", action="store_true", help="print every setting")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    study(options)


if __name__ == "__main__":
    main()
