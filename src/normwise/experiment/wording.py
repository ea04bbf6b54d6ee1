"""The sentences of a verdict: always true, in the unit of the score, and rounded to the careful side."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from normwise.experiment.standing import Kind
from normwise.report.text import called

HERE = "on this data set at this training length"


@dataclass(frozen=True)
class Amounts:
    """How differences are written: accuracy in points (times 100), other scores in their own unit.

    >>> Amounts(delta=0.01, unit="points").at_most(0.0066), Amounts(delta=0.02).at_least(0.0066)
    ('0.7 points', '0.006')
    """

    delta: float
    unit: str = ""

    @property
    def factor(self) -> float:
        return 100.0 if self.unit == "points" else 1.0

    def at_most(self, amount: float) -> str:
        """Rounded up: what is said to be the most is never less than the truth."""
        return self._write(amount, math.ceil)

    def at_least(self, amount: float) -> str:
        """Rounded down; an empty text where that leaves nothing."""
        text = self._write(amount, math.floor)
        return text if any(digit in "123456789" for digit in text) else ""

    def about(self, amount: float) -> str:
        return self._write(amount, round)

    def margin(self) -> str:
        """Delta itself: `1.0`."""
        return str(float(f"{self.delta * self.factor:.6g}"))

    def _write(self, amount: float, rounding: Callable[[float], int]) -> str:
        """A tenth of delta is the last digit shown."""
        size = math.floor(math.log10(self.delta * self.factor) + 1e-9) if self.delta > 0 else -3
        digits = max(0, 1 - size)
        rounded = rounding(round(amount * self.factor * 10**digits, 6)) / 10**digits
        return f"{rounded:.{digits}f} {self.unit}".rstrip()


@dataclass(frozen=True)
class Claim:
    """What is claimed of one arm, or of one pair of norm and batch size, against its rivals.

    `bound` is its regret bound and `lead` what it is at least ahead of every rival, both at `level`.
    """

    name: str
    kind: Kind
    bound: float
    lead: float
    level: float
    rival: str = "arm"

    def sentence(self, amounts: Amounts) -> str:
        """
        >>> print(Claim("group:8", "tie", 0.0066, -0.008, level=0.95).sentence(Amounts(0.01, "points")))
        Take group:8: with 95 % confidence no other arm is more than 0.7 points better on this data set at
        this training length (delta 1.0)
        """
        where = f"{HERE} (delta {amounts.margin()})"
        if self.bound == -math.inf:
            return f"Take {self.name}: no other {self.rival} was left to compare it with {where}"
        take = f"Take {self.name}" + (" (undecided)" if self.kind == "undecided" else "")
        if self.bound == math.inf:
            return f"{take}: one seed does not tell how much better another {self.rival} is {where}"
        return f"{take}: with {100 * self.level:g} % confidence {self._comparison(amounts)} {where}"

    def _comparison(self, amounts: Amounts) -> str:
        if self.kind == "winner":
            lead = amounts.at_least(self.lead) if self.lead > 0 else ""
            return f"every other {self.rival} is {f'at least {lead} ' if lead else ''}worse"
        if self.bound <= 0:
            return f"no other {self.rival} is better"
        return f"no other {self.rival} is more than {amounts.at_most(self.bound)} better"


def length_phrase(leader: str, other: str, *, shown: bool, still: bool) -> str:
    """
    >>> length_phrase("layer", "batch", shown=True, still=False)
    'at twice the length layer leads'
    """
    leader, other = called(leader), called(other)
    if not shown:
        return f"at twice the length {leader} and {other} are not told apart"
    return f"at twice the length {leader} {f'still leads {other}' if still else 'leads'}"


def joined(claim: str, *additions: str) -> str:
    """One statement out of a claim and what is to be added to it.

    >>> joined("Take batch", "", "tied with it: layer")
    'Take batch; tied with it: layer.'
    """
    return "; ".join([claim, *(text for text in additions if text)]) + "."
