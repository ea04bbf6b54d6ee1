"""A realistic content of results.json to draw from: six arms, two batch sizes, 24 seeds; and its variants."""

import copy
import math
import random
import statistics
from typing import Any

ARMS = ("batch", "instance", "group:4", "layer", "batch-instance", "none")
POOLS = {
    "batch": "N,HW",
    "instance": "HW",
    "group:4": "C/g,HW",
    "layer": "C,HW",
    "batch-instance": "N,HW + HW",
    "none": "nothing",
}
COSTS = {
    "batch": 0.0,
    "none": 0.0,
    "instance": 61440.0,
    "group:4": 61440.0,
    "layer": 61440.0,
    "batch-instance": 92160.0,
}
SPEED = (6.0, 4.5, 4.0, 3.2, 6.5, 2.6)  # how many times a curve has fallen by e at its end
RATES = {8: (0.005, 0.015, 0.05, 0.15, 0.5), 64: (0.015, 0.05, 0.15, 0.5, 1.5)}
CHOSEN = {8: (0.05, 0.15, 0.05, 0.05, 0.05, 0.015), 64: (0.15, 0.5, 0.15, 0.05, 0.15, 0.05)}
MEANS = {
    8: (0.979, 0.977, 0.970, 0.9692, 0.978, 0.9595),
    64: (0.9802, 0.9770, 0.9671, 0.9705, 0.9822, 0.9557),
}
SPREAD = (0.005, 0.005, 0.007, 0.008, 0.006, 0.011)
SEEDS = {8: (16, 16, 16, 16, 16, 8), 64: (24, 24, 16, 16, 24, 8)}
STATES = {
    8: ("safe", "alive", "alive", "alive", "safe", "worse"),
    64: ("safe", "alive", "worse", "worse", "alive", "worse"),
}
OPEN = {8: "batch-instance, instance, group:4 and layer", 64: "batch-instance and instance"}
LONGER = {8: "batch-instance leads", 64: "batch still leads batch-instance"}
T95 = {8: 2.365, 16: 2.131, 24: 2.069}


def content() -> dict[str, Any]:
    """A finished run: batch is safe at both batch sizes."""
    rows = [row for size in RATES for row in [*_tuning(size), *_race(size), *_length(size)]]
    cells = [_cell(size, rows) for size in RATES]
    verdict = {**{k: v for k, v in cells[1].items() if k != "arms"}, "per_batch_size": cells}
    verdict["statement"] = (
        "Take batch at batch size 64: with 95 % confidence no other pair of norm and batch size is more than "
        "0.8 points better on this data set at this training length (delta 1.0); at twice the length batch "
        "still leads batch-instance."
    )
    verdict["robust"] = {
        "norm": "batch",
        "worst_loss": 0.001,
        "statement": "Over batch sizes 8 and 64 batch loses least: its mean is at worst 0.1 points behind "
        "the best, at batch size 64.",
    }
    return {
        "schema": 1,
        "verdict": verdict,
        "scorecard": _scorecard(cells),
        "results": rows,
        "config": _config(),
    }


def tie() -> dict[str, Any]:
    """Two arms are safe; the cheaper one is named."""
    made = content()
    for part in (made["verdict"], *made["verdict"]["per_batch_size"]):
        part.update(kind="tie", tie=["batch", "batch-instance"])
    made["verdict"]["per_batch_size"][1]["arms"][4]["state"] = "safe"
    made["verdict"]["statement"] = "batch and batch-instance tie within 1.0 points; batch is the cheaper."
    return made


def undecided() -> dict[str, Any]:
    """No arm could be shown to be safe when the budget was out."""
    made = content()
    for part in (made["verdict"], *made["verdict"]["per_batch_size"]):
        part.update(kind="undecided", regret_bound=0.014)
    for cell in made["verdict"]["per_batch_size"]:
        for arm in cell["arms"]:
            arm["state"] = "alive" if arm["state"] == "safe" else arm["state"]
    made["verdict"]["statement"] = "Undecided: batch leads, but another arm may be up to 1.4 points better."
    return made


def diverged() -> dict[str, Any]:
    """The arm none diverged at batch size 64 in two of its first four seeds and was put out."""
    made = content()
    arm = made["verdict"]["per_batch_size"][1]["arms"][5]
    arm.update(state="unstable", failures=2, n=4, mean=0.52, low=0.02, high=1.0, worst=0.1, loss=None)
    arm["difference"] = {"mean": -0.46, "low": -0.97, "high": 0.05}
    rows = [r for r in made["results"] if (r["arm"], r["batch_size"], r["stage"]) == ("none", 64, "race")]
    for row in rows[:2]:
        row.update(status="diverged", reason="training loss became nan in epoch 3", curve=[[1.0, 9.1e30, 0.1]])
        row["measures"] = {"judge": 0.1, "validation": 0.1}
    for row in rows[4:]:
        made["results"].remove(row)
    return made


def hostile() -> dict[str, Any]:
    """Names and texts that try to be markup."""
    made = _renamed(content(), "layer", '<script>alert("arm")</script>')
    made = _renamed(made, "none", '{"layer1.*": "ibn:0.5", "*": "gruppe:größe=4 – 归一化"}')
    made["config"]["task"] = '</script><script>alert("task")</script>'
    made["config"]["model"] = "<img src=x onerror=alert(1)>"
    made["config"]["command"] = "normwise compare --out '<b>x</b>' && echo \"é\u2028\""
    made["verdict"]["statement"] = "Take <script>alert('verdict')</script> & be <b>bold</b>."
    made["scorecard"]["notes"][0]["text"] = "<svg onload=alert(2)>"
    made["results"][0].update(status="failed", reason="</td><script>alert(3)</script>")
    return made


def bare() -> dict[str, Any]:
    """An own training loop: one batch size, no losses, no curves, no length check, fixed costs unknown."""
    made = content()
    cell = made["verdict"]["per_batch_size"][1]
    for arm in cell["arms"]:
        arm.update(loss=None, gain_half_to_full=None, double=None)
    made["verdict"].update(per_batch_size=[cell], robust=None, order_changes_at_double_length=None)
    cell["order_changes_at_double_length"] = None
    made["results"] = [r | {"curve": []} for r in made["results"] if r["batch_size"] == 64 and r["length"] <= 1]
    made["config"].update(batch_sizes=[64], left_out=[], machine={}, assumptions=[])
    made["scorecard"] = {"arms": list(ARMS), "rows": [], "notes": []}
    return made


def unfinished() -> dict[str, Any]:
    """Stopped while the learning rates were being tuned: nothing is known of any arm's race."""
    made = content()
    made["config"]["finished"] = False
    made["results"] = [r for r in made["results"] if r["stage"] == "rate" and r["batch_size"] == 8]
    made["verdict"].update(
        kind="undecided",
        norm="batch",
        regret_bound=None,
        learning_rate=None,
        statement="Interrupted before the first look: nothing is decided.",
        per_batch_size=[],
        robust=None,
        order_changes_at_double_length=None,
    )
    made["scorecard"]["rows"] = []
    return made


def regression() -> dict[str, Any]:
    """A score of which less is better and that is no fraction."""
    made = bare()
    made["config"]["score"] = {"name": "score", "higher_is_better": False, "unit": ""}
    made["verdict"].update(delta=0.5, regret_bound=0.3)
    cell = made["verdict"]["per_batch_size"][0]
    cell.update(delta=0.5, regret_bound=0.3)
    for arm in cell["arms"]:
        arm.update({key: 10 - 100 * (arm[key] - 0.9) for key in ("mean", "low", "high", "worst")})
        arm.update(low=arm["high"], high=arm["low"])
        if gap := arm["difference"]:
            arm["difference"] = {
                "mean": -100 * gap["mean"],
                "low": -100 * gap["high"],
                "high": -100 * gap["low"],
            }
    for row in made["results"]:
        row["measures"] = {key: 10 - 100 * (value - 0.9) for key, value in row["measures"].items()}
    return made


def _tuning(size: int) -> list[dict[str, Any]]:
    rows = []
    for index, arm in enumerate(ARMS):
        best = CHOSEN[size][index]
        near = sorted(RATES[size], key=lambda rate, best=best: abs(math.log(rate / best)))[:3]
        for length, rates in ((0.25, RATES[size]), (1.0, sorted(near))):
            for rate in rates:
                off = abs(math.log(rate / best)) ** 1.7 * (0.08 if arm == "none" else 0.03)
                for seed in (1000, 1001) if length < 1 else (2000, 2001):
                    score = MEANS[size][index] - off - (0.09 if length < 1 else 0) + _noise(arm, size, rate, seed)
                    rows.append(_row(arm, size, rate, seed, length, "rate", max(0.1, min(score, 0.995))))
    return rows


def _race(size: int) -> list[dict[str, Any]]:
    return [
        _row(arm, size, CHOSEN[size][i], seed, 1.0, "race", _score(i, size, seed))
        for i, arm in enumerate(ARMS)
        for seed in range(SEEDS[size][i])
    ]


def _length(size: int) -> list[dict[str, Any]]:
    return [
        _row(ARMS[i], size, CHOSEN[size][i], seed, 2.0, "length", _score(i, size, seed) + 0.004)
        for i in (0, 4)
        for seed in range(8)
    ]


def _score(index: int, size: int, seed: int) -> float:
    split = random.Random(f"split {seed}").gauss(0, 0.005)
    own = random.Random(f"{ARMS[index]} {size} {seed}").gauss(0, SPREAD[index])
    return round(min(MEANS[size][index] + split + own, 1.0), 5)


def _noise(*key: Any) -> float:
    return random.Random(repr(key)).gauss(0, 0.006)


def _row(arm: str, size: int, rate: float, seed: int, length: float, stage: str, score: float) -> dict[str, Any]:
    epochs, speed = max(2, round(12 * length)), SPEED[ARMS.index(arm)]
    last = math.exp(-speed)
    curve = [
        [e, 2.3 * math.exp(-speed * e / epochs) + 0.02, score - 0.6 * (math.exp(-speed * e / epochs) - last)]
        for e in range(1, epochs + 1)
    ]
    measures = {"judge": score, "validation": score, "judge_loss": 3.1 * (1 - score) + 0.01}
    trial = {"arm": arm, "batch_size": size, "learning_rate": rate, "seed": seed, "length": length}
    more = {"onednn": True, "kind": "train", "stage": stage, "key": f"{arm}-{size}-{rate}-{seed}-{length}"}
    return {
        **trial,
        **more,
        "status": "ok",
        "reason": "",
        "measures": measures,
        "curve": curve,
        "seconds": 0.6,
    }


def _interval(values: list[float]) -> dict[str, float]:
    mean, half = statistics.mean(values), T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _cell(size: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    bound = {8: 0.0094, 64: 0.0071}[size]
    return {
        "kind": "safe",
        "norm": "batch",
        "batch_size": size,
        "learning_rate": CHOSEN[size][0],
        "tie": [],
        "regret_bound": bound,
        "delta": 0.01,
        "level": 0.95,
        "order_changes_at_double_length": size == 8,
        "statement": f"Take batch: with 95 % confidence no other arm is more than {100 * bound:.1f} points "
        f"better on this data set at this training length (delta 1.0); not shown worse: {OPEN[size]}; "
        f"at twice the length {LONGER[size]}.",
        "arms": [_arm(i, size, rows) for i in range(len(ARMS))],
        "looks": [8, 16] if size == 8 else [8, 16, 24],
    }


def _arm(index: int, size: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    name = ARMS[index]
    race = [r for r in rows if (r["arm"], r["batch_size"], r["stage"]) == (name, size, "race")]
    scores = [r["measures"]["judge"] for r in race]
    length = [r["measures"]["judge"] for r in rows if (r["arm"], r["batch_size"], r["stage"]) == (name, size, "length")]
    paired = [s - _score(0, size, seed) for seed, s in enumerate(scores)]
    state = STATES[size][index]
    return {
        "norm": name,
        "learning_rate": CHOSEN[size][index],
        "n": len(race),
        **_interval(scores),
        "worst": min(scores),
        "failures": 0,
        "state": state,
        "bound": None if state == "worse" else 0.007 + 0.004 * index,
        "difference": None if index == 0 else _interval(paired),
        "gain_half_to_full": _interval([0.004 + 0.002 * index + _noise(name, size, i) / 3 for i in range(8)]),
        "double": {**_interval(length), "n": 8} if length else None,
        "cost": COSTS[name],
        "loss": _interval([r["measures"]["judge_loss"] for r in race]),
    }


def _line(id: str, title: str, unit: str, how: str, size: int | None, cells: list[Any]) -> dict[str, Any]:
    blank = {"text": "", "value": None, "low": None, "high": None, "note": None}
    return {
        "id": id,
        "title": title,
        "unit": unit,
        "how": how,
        "batch_size": size,
        "cells": [blank | c for c in cells],
    }


def _scorecard(cells: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [_line("pools", "Averaged over", "", "by definition", None, [{"text": POOLS[arm]} for arm in ARMS])]
    for cell in cells:
        score = [
            {
                "text": _percent(a["mean"], a["low"], a["high"]),
                "value": a["mean"],
                "low": a["low"],
                "high": a["high"],
            }
            for a in cell["arms"]
        ]
        how = "mean of the race's seeds on judge, t interval at 95 %"
        rows.append(_line(f"score-{cell['batch_size']}", "Score", "%", how, cell["batch_size"], score))
    gap = [{"text": f"{x:.2f}", "value": x, "low": x - 0.1, "high": x + 0.1} for x in (1.1, 0.9, 1.4, 1.6, 1.0, 2.2)]
    gap = [c | {k: c[k] / 100 for k in ("value", "low", "high")} for c in gap]
    rows.append(_line("gap", "Train-judge gap", "points", "train minus judge at the end", 64, gap))
    values = [{"text": str(x), "value": x} for x in (32, 4, 32, 128, 32)] + [{"text": "none"}]
    values[0]["note"] = "Two values per statistic would make every output +1 or -1; here there are 32."
    values[1]["note"] = "instance-pool"
    rows.append(_line("values", "Values per statistic", "", "the smallest layer's N*H*W", 8, values))
    step = [{"text": f"{x:.2f}", "value": x, "low": 0.9 * x, "high": 1.1 * x} for x in (2.1, 2.2, 2.4, 2.3, 3.5, 1.6)]
    rows.append(_line("step", "Training step", "ms", "median of 20 steps, one thread", 8, step))
    notes = [
        {
            "id": "instance-pool",
            "title": "Instance norm before global pooling",
            "text": "Without an activation between, each plane's mean is its bias.",
            "arms": ["instance"],
        },
        {
            "id": "rate",
            "title": "High learning rate",
            "text": "Instance norm needed three times batch norm's rate.",
            "arms": ["instance"],
        },
    ]
    return {"arms": list(ARMS), "rows": rows, "notes": notes}


def _percent(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _config() -> dict[str, Any]:
    arms = [{"name": a, "aliases": [], "pools": POOLS[a]} for a in ARMS]
    arms[2]["aliases"] = ["group:size=4"]
    return {
        "task": "digits",
        "model": "cnn",
        "data": "digits (scikit-learn)",
        "score": {"name": "accuracy", "higher_is_better": True, "unit": "points"},
        "arms": arms,
        "left_out": [{"norm": "keep", "why": "the built-in network has no norm of its own"}],
        "batch_sizes": [8, 64],
        "budget": "4m",
        "epochs": 12,
        "training_samples": 1000,
        "judge_samples": 497,
        "device": "cpu",
        "precision": "fp32",
        "workers": 2,
        "engine": "local",
        "seed": 0,
        "fingerprint": {"model": "9f2c11d0", "data": "77aa01b3"},
        "versions": {"torch": "2.13.0", "normwise": "0.1.0", "python": "3.11.7"},
        "machine": {"cpu": "x86_64, 2 cores", "memory": "24 GiB"},
        "plan": _plan(),
        "assumptions": [
            "SGD with momentum 0.9, one-cycle, no weight decay.",
            "Epochs = ceil(12000 / samples).",
        ],
        "command": "normwise compare digits --norm batch --norm instance --norm group:4 --norm layer "
        "--norm batch-instance --norm none --batch-size 8 --batch-size 64 --budget 4m --out runs/digits",
        "model_summary": "Conv2d(1, 8) -> norm -> ReLU -> Conv2d(8, 16)",
        "finished": True,
        "folder": "runs/digits",
        "seconds": 214.0,
        "next_step": 'nw.swap(model, "batch")  # batch size 64, learning rate 0.15',
    }


def _plan() -> dict[str, Any]:
    return {
        "arms": list(ARMS),
        "batch_sizes": list(RATES),
        "rates": [[size, list(grid)] for size, grid in RATES.items()],
        "price": [[arm, size, 0.5] for arm in ARMS for size in RATES],
        "allowance": [[size, 60.0] for size in RATES],
        "delta": 0.01,
        "looks": [8, 16, 24],
        "tuning_seeds": 2,
        "full_length_rates": 3,
        "short_length": 0.25,
        "length_check": True,
    }


def _renamed(value: Any, old: str, new: str) -> Any:
    """A copy in which a name is another wherever it stands, as a value."""
    if isinstance(value, dict):
        return {key: _renamed(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part, old, new) for part in value]
    return new if value == old else copy.copy(value)
