"""Records of `terrace calibrate --save-records`, what the router's scorers see of them, and what policies make of them.

Costs, always of one kind of hardware's work and relative to the last tier alone:
  cost      parameters x (prompt + generated tokens) of every tier that was asked: as `terrace calibrate`, `terrace evaluate` and
            the router's bill count
  computed  parameters x tokens that a model really computes: a verified draft is read like a prompt, all of it, and what the
            larger tier then accepts of it need not be generated; what it rejects comes on top. A prompt or draft token may
            weigh less than a generated one (`prefill`), for hardware where reading is cheaper than writing.
"""

import dataclasses
import json
import math
import re
import zlib

LEAST_SURPRISE = 1e-6  # nats, as router/tier/calibration_features.cc
WORD_BUCKETS = 256


class Begun(int):
    """A tier that is asked for the first token of its answer alone."""


@dataclasses.dataclass
class Row:
    id: str
    task: str
    prompt: dict
    answers: list  # [tiers]: dicts
    agreement: dict = dataclasses.field(default_factory=dict)  # (tier, later tier) -> share of the first's answer
    words: frozenset = frozenset()  # hashes of the prompt's words, where its text is known

    def is_right(self, tier):
        return self.answers[tier]["right"]


class Records:
    def __init__(self, path):
        with open(path, encoding="utf-8") as lines:
            head = json.loads(next(lines))
            if head["format"] != "terrace-records-1":
                raise SystemExit(f"{path}: format {head['format']}")
            self.tiers = head["tiers"]
            self.rows = [Row(**json.loads(line)) for line in lines]
        for row in self.rows:
            for tier in range(1, len(self.tiers)):
                row.agreement[tier - 1, tier] = row.answers[tier]["draft_agreement"]

    @property
    def last(self):
        return len(self.tiers) - 1

    def add_agreement(self, path, first, second):
        """Of the tiers `first` and `second` of these records, from records of those two alone."""
        pairs = Records(path)
        named = [self.tiers[first]["name"], self.tiers[second]["name"]]
        if [tier["name"] for tier in pairs.tiers] != named:
            raise SystemExit(f"{path}: is not of {named}")
        known = {row.id: row for row in pairs.rows}
        for row in self.rows:
            row.agreement[first, second] = known[row.id].agreement[0, 1]

    def add_words(self, task_files):
        words = {}
        for path in task_files:
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    task = json.loads(line)
                    text = " ".join(message["content"] for message in task["messages"]).lower()
                    words[task["id"]] = frozenset(zlib.crc32(w.encode()) % WORD_BUCKETS for w in re.findall("[a-z]+", text))
        for row in self.rows:
            row.words = words[row.id]

    def generated(self, row, tier):
        return 1 if isinstance(tier, Begun) else row.answers[tier]["tokens"]

    def tokens(self, row, tier):
        return row.answers[tier]["prompt_tokens"] + self.generated(row, tier)

    def cost(self, row, tier):
        return self.tiers[tier]["parameters"] * self.tokens(row, tier)

    def computed(self, row, tier, draft_of, prefill):
        """`draft_of`: the tier whose answer is verified, or None."""
        answer, generated = row.answers[tier], self.generated(row, tier)
        drafted = self.generated(row, draft_of) if draft_of is not None else 0
        common = round(row.agreement[draft_of, tier] * row.answers[draft_of]["tokens"]) if drafted else 0
        accepted = min(generated, drafted, common)
        read, written = answer["prompt_tokens"] + drafted, generated - accepted
        return self.tiers[tier]["parameters"] * (prefill * read + written)


# ---- Features, as router/tier/calibration_features.cc has them.


def log_surprise(nats):
    return math.log(LEAST_SURPRISE + max(nats, 0.0))


OF_ANSWER = {
    "mean_logprob": lambda a: a["mean_logprob"],
    "min_logprob": lambda a: a["min_logprob"],
    "first_logprob": lambda a: a["first_logprob"],
    "log_answer_tokens": lambda a: math.log1p(a["tokens"]),
    "mean_margin": lambda a: a["mean_margin"],
    "min_margin": lambda a: a["min_margin"],
    "first_margin": lambda a: a["first_margin"],
    "mean_entropy": lambda a: a["mean_entropy"],
    "first_entropy": lambda a: a["first_entropy"],
}
DERIVED = {
    "sum_logprob": lambda a: a["mean_logprob"] * a["tokens"],
    "log_mean_surprise": lambda a: log_surprise(-a["mean_logprob"]),
    "log_max_surprise": lambda a: log_surprise(-a["min_logprob"]),
    "log_mean_entropy": lambda a: log_surprise(a["mean_entropy"]),
    "answer_tokens": lambda a: a["tokens"],
    "draft_agreement": lambda a: a["draft_agreement"],
}
OF_PROMPT = {
    "log_prompt_bytes": lambda p: math.log1p(p["bytes"]),
    "digit_share": lambda p: p["digits"] / max(p["bytes"], 1),
    "log_questions": lambda p: math.log1p(p["questions"]),
    "log_newlines": lambda p: math.log1p(p["newlines"]),
    "log_braces": lambda p: math.log1p(p["braces"]),
}


def feature(name, row, tier):
    if name in OF_PROMPT:
        return OF_PROMPT[name](row.prompt)
    of_answer = OF_ANSWER.get(name) or DERIVED[name]
    return float(of_answer(row.answers[tier]))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def probability(scorer, row, tier):
    """By the scorer of a calibration file."""
    logit = scorer["bias"]
    for each in scorer["features"]:
        logit += each["weight"] * (feature(each["name"], row, tier) - each["mean"]) / each["scale"]
    return sigmoid(logit)


# ---- What a policy makes of all rows.


@dataclasses.dataclass
class Outcome:
    """`asked` of a row: the tiers in order, the last of which answers."""

    name: str
    rows: int = 0
    right: int = 0
    losses: int = 0  # wrong where the last tier is right
    gains: int = 0  # right where it is wrong
    cost: float = 0  # of the last tier alone, as the next two
    computed: float = 0
    computed_prefill: float = 0
    answered_by: list = dataclasses.field(default_factory=list)

    @property
    def accuracy(self):
        return self.right / self.rows

    @property
    def difference(self):
        """Accuracy less the last tier's, on the same rows, and its standard error."""
        mean = (self.gains - self.losses) / self.rows
        return mean, math.sqrt(((self.gains + self.losses) / self.rows - mean * mean) / self.rows)


@dataclasses.dataclass
class Point:
    """A policy with its settings. On validation tasks: accuracy less the last tier's, and cost."""

    setting: str
    gain: float
    cost: float
    asked_of: object  # of a row: the tiers in order


def outcome_of(name, records, asked_of, verifies=True, prefill=0.25):
    last, out = records.last, Outcome(name, answered_by=[0] * len(records.tiers))
    alone = alone_prefill = alone_cost = 0.0
    for row in records.rows:
        asked = asked_of(row)
        answers = asked[-1]
        out.rows += 1
        out.right += row.is_right(answers)
        out.losses += row.is_right(last) and not row.is_right(answers)
        out.gains += row.is_right(answers) and not row.is_right(last)
        out.answered_by[answers] += 1
        out.cost += sum(records.cost(row, tier) for tier in asked)
        for before, tier in zip([None, *asked], asked):
            draft_of = before if verifies else None
            out.computed += records.computed(row, tier, draft_of, 1)
            out.computed_prefill += records.computed(row, tier, draft_of, prefill)
        alone_cost += records.cost(row, last)
        alone += records.computed(row, last, None, 1)
        alone_prefill += records.computed(row, last, None, prefill)
    out.cost /= alone_cost
    out.computed /= alone
    out.computed_prefill /= alone_prefill
    return out


def cascade(thresholds, score):
    """Asks from the cheapest on until the score is above that tier's threshold."""

    def asked_of(row):
        for tier, threshold in enumerate(thresholds):
            if score(row, tier) > threshold:
                return list(range(tier + 1))
        return list(range(len(thresholds) + 1))

    return asked_of


def oracle(records):
    """The cheapest tier that is right, else the last."""
    return lambda row: [next((t for t in range(records.last) if row.is_right(t)), records.last)]
