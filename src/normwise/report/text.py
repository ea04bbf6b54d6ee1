"""Numbers in the words of the report: scores, differences, rates, durations, lists."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

MINUS = "\u2212"


class Scale(NamedTuple):
    """How a score is written: accuracy in percent, its differences in points, any other score as it is."""

    name: str
    higher_is_better: bool
    points: bool
    digits: int

    @property
    def factor(self) -> float:
        """What a score is multiplied by before it is shown."""
        return 100.0 if self.points else 1.0

    @property
    def unit(self) -> str:
        """The unit of a difference, with a leading blank where there is one."""
        return " points" if self.points else ""

    def score(self, value: float) -> str:
        """A score with its unit.

        >>> Scale("accuracy", True, points=True, digits=1).score(0.979)
        '97.9 %'
        """
        return self.number(value) + (" %" if self.points else "")

    def size(self, value: float) -> str:
        """The size of a difference with its unit.

        >>> Scale("accuracy", True, points=True, digits=1).size(0.007)
        '0.7 points'
        """
        return self.number(value) + self.unit

    def at_most(self, value: float) -> str:
        """The size of a bound, rounded up: what is said to be the most is never less than the truth.

        >>> Scale("accuracy", True, points=True, digits=1).at_most(0.00661)
        '0.7 points'
        """
        steps = math.ceil(round(max(value, 0.0) * self.factor * 10**self.digits, 6))
        return decimal(steps / 10**self.digits, self.digits) + self.unit

    def signed(self, value: float) -> str:
        """A difference with its sign and without its unit."""
        text = self.number(value)
        return text if text.startswith(MINUS) or not float(text) else "+" + text

    def span(self, low: float, high: float) -> str:
        """The two ends of an interval of scores or of differences."""
        return f"{self.number(low)} to {self.number(high)}"

    def number(self, value: float) -> str:
        """A score or a difference without its unit."""
        return decimal(value * self.factor, self.digits)


def scale(score: dict[str, Any], delta: float) -> Scale:
    """The scale of a run: as many digits as it takes to see a tenth of delta."""
    points = score.get("unit") == "points"
    wanted = 1 - math.floor(math.log10(delta * (100 if points else 1)) + 1e-9) if delta > 0 else 1
    return Scale(score.get("name", "score"), score.get("higher_is_better", True), points, min(max(wanted, 0), 6))


def decimal(value: float, digits: int) -> str:
    """A number with a true minus sign, and no sign where it rounds to zero.

    >>> decimal(-0.04, 1), decimal(2.25, 1)
    ('0.0', '2.2')
    """
    if abs(value) >= 1e7:
        return f"{value:.3g}".replace("-", MINUS)
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if not float(text) else MINUS)


def plain(value: float | None) -> str:
    """A number as a person would type it.

    >>> plain(0.05), plain(1.5), plain(64.0)
    ('0.05', '1.5', '64')
    """
    return "" if value is None else f"{value:.4g}".replace("-", MINUS)


def amount(value: float) -> str:
    """A large number in words.

    >>> amount(61440), amount(2.5e6), amount(0)
    ('61.4 thousand', '2.5 million', '0')
    """
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return plain(value)


def duration(seconds: float) -> str:
    """Seconds in the two largest units.

    >>> duration(214), duration(42.4), duration(7260)
    ('3 min 34 s', '42 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def listing(names: Sequence[str]) -> str:
    """One or more names as a sentence has them.

    >>> listing(["batch", "layer", "none"])
    'batch, layer and "none"'
    """
    *first, end = map(called, names)
    return f"{', '.join(first)} and {end}" if first else end


def called(name: str | None) -> str:
    """An arm's name inside a sentence: in quotes where it would read as a plain word.

    >>> called("batch"), called("none")
    ('batch', '"none"')
    """
    return f'"{name}"' if name in ("none", "keep") else name or ""


def count(number: int, noun: str) -> str:
    """A number and its noun.

    >>> count(1, "trial"), count(2, "trial")
    ('1 trial', '2 trials')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shortened(names: Sequence[str], width: int = 18) -> dict[str, str]:
    """A short label for each name, cut in the middle, no two alike.

    >>> shortened(["batch", "a-very-long-name-of-an-arm"], width=11)
    {'batch': 'batch', 'a-very-long-name-of-an-arm': 'a-very…-arm'}
    """
    labels: dict[str, str] = {}
    for name in names:
        cut = name if len(name) <= width else f"{name[: width - 5]}\u2026{name[-4:]}"
        again = sum(label.split("\u00a0")[0] == cut for label in labels.values())
        labels[name] = f"{cut}\u00a0{again + 1}" if again else cut
    return labels
