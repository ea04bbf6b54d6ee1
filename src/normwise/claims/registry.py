"""The list of claims, in the textbook's order, and of the experiments they look at."""

from normwise.claims.claim import Claim, Experiment
from normwise.claims.experiments.amplify import AMPLIFY
from normwise.claims.experiments.costs import COSTS
from normwise.claims.experiments.gains import GAINS_EXPERIMENT
from normwise.claims.experiments.growth import GROWTH
from normwise.claims.experiments.language import LANGUAGE
from normwise.claims.experiments.mates import MATES
from normwise.claims.experiments.recurrent import RECURRENT
from normwise.claims.experiments.regularize import REGULARIZE
from normwise.claims.experiments.shift import SHIFT
from normwise.claims.experiments.sizes import SIZES_EXPERIMENT
from normwise.claims.experiments.speed import SPEED
from normwise.claims.experiments.style import STYLE
from normwise.claims.experiments.stylization import STYLIZATION
from normwise.claims.textbook.b1 import B1
from normwise.claims.textbook.b2 import B2
from normwise.claims.textbook.b3 import B3
from normwise.claims.textbook.b4 import B4
from normwise.claims.textbook.b5 import B5
from normwise.claims.textbook.b6 import B6
from normwise.claims.textbook.b7 import B7
from normwise.claims.textbook.h1 import H1
from normwise.claims.textbook.h2 import H2
from normwise.claims.textbook.i1 import I1
from normwise.claims.textbook.i2 import I2
from normwise.claims.textbook.i3 import I3
from normwise.claims.textbook.i4 import I4
from normwise.claims.textbook.i5 import I5
from normwise.claims.textbook.i6 import I6
from normwise.claims.textbook.i7 import I7
from normwise.claims.textbook.r1 import R1
from normwise.errors import UsageError
from normwise.loading import hint

CLAIMS: dict[str, Claim] = {
    claim.id: claim for claim in (B1, B2, B3, B4, B5, B6, B7, I1, I2, I3, I4, I5, I6, I7, R1, H1, H2)
}
EXPERIMENTS: dict[str, Experiment] = {
    one.name: one
    for one in (
        AMPLIFY,
        COSTS,
        GAINS_EXPERIMENT,
        GROWTH,
        LANGUAGE,
        MATES,
        RECURRENT,
        REGULARIZE,
        SHIFT,
        SIZES_EXPERIMENT,
        SPEED,
        STYLE,
        STYLIZATION,
    )
}


def find(name: str) -> Claim:
    """The claim of a name, in capitals or not.

    >>> find("b6").id
    'B6'
    """
    if name.upper() not in CLAIMS:
        raise UsageError(f"unknown claim {name!r}, known are: {', '.join(CLAIMS)}{hint(name.upper(), CLAIMS)}")
    return CLAIMS[name.upper()]
