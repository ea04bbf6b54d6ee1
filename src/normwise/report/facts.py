"""The lines under the verdict: how sure, over which batch sizes, at what training length, at what cost."""

from normwise.report.text import amount, called, count, duration, listing, plain
from normwise.report.view import View


def facts(view: View) -> list[tuple[str, str]]:
    """How sure and at what cost, one line each."""
    said = [("How sure", _sure(view)), ("Training length", _length(view)), ("Cost", _cost(view))]
    robust = view.verdict.get("robust")
    if robust and robust.get("statement"):
        said.insert(1, ("Over batch sizes", robust["statement"]))
    return said


def _sure(view: View) -> str:
    verdict = view.verdict
    if verdict.get("regret_bound") is None:
        return "No look was taken yet, so there is no bound on what another arm might gain."
    seeds = sorted({a["n"] for c in view.cells for a in c["arms"] if a.get("state") in ("safe", "alive")})
    paired = f" from {' to '.join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))} paired seeds" if seeds else ""
    tied = verdict.get("tie") or []
    tie = f" {listing(tied)} tie within that." if len(tied) > 1 else ""
    return f"{100 * verdict['level']:g} % confidence{paired}: {_loss(view)}.{tie}"


def _loss(view: View) -> str:
    """What may be lost by following the verdict, against the delta that counts as nothing."""
    bound, delta = view.verdict["regret_bound"], view.scale.size(view.verdict["delta"])
    if bound <= 0:
        return "no other arm is better"
    lost = f"at most {view.scale.at_most(bound)} may be lost to another arm"
    if view.verdict.get("kind") == "undecided":
        return f"{lost}; that is more than delta, {delta}, so nothing is decided"
    return f"{lost}; up to delta, {delta}, counts as none"


def _length(view: View) -> str:
    epochs = view.config.get("epochs")
    changes = view.verdict.get("order_changes_at_double_length")
    said = {
        None: "not checked at twice the length",
        True: "at twice the length the order changes",
        False: "at twice the length no change of the order was shown",
    }
    start = f"{plain(epochs)} epochs; " if epochs else ""
    sentence = start + said[changes] + "."
    return f"{sentence[0].upper()}{sentence[1:]}{_gains(view)}"


def _gains(view: View) -> str:
    """Whether the arms were still rising: what the second half of the training brought."""
    size = view.verdict.get("batch_size")
    arms = [arm for cell in view.cells if cell["batch_size"] == size for arm in cell["arms"]]
    gains = sorted((arm["gain_half_to_full"]["mean"], arm["norm"]) for arm in arms if arm.get("gain_half_to_full"))
    if not gains:
        return ""
    (least, first), (most, last) = gains[0], gains[-1]
    if first == last:
        return f" The second half brought {called(first)} {view.scale.size(least)}."
    ends = f"from {view.scale.size(least)} ({called(first)}) to {view.scale.size(most)} ({called(last)})"
    return f" The second half of it brought {ends}."


def _cost(view: View) -> str:
    config, trials = view.config, len(view.content.get("results") or [])
    parts = [count(trials, "trial")]
    if config.get("seconds") is not None:
        parts.append(f"{duration(config['seconds'])} on {count(config.get('workers') or 1, 'worker')}")
    setting = [config[key] for key in ("device", "precision") if config.get(key)]
    said = ", ".join([*parts, *setting])
    cost = _inference_cost(view)
    return f"{said}. {cost}" if cost else f"{said}."


def _inference_cost(view: View) -> str:
    norm = view.verdict.get("norm")
    cost = view.found(norm, view.verdict.get("batch_size")).get("cost")
    if cost is None or not view.priced:
        return ""
    if cost == 0:
        return f"At inference {called(norm)} folds away and costs nothing."
    return f"At inference the norms of {called(norm)} cost {amount(cost)} bytes and operations a sample."
