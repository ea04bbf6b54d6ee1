"""Puts a finished run of `normwise claims` where the documentation and `--budget quick` read it.

normwise claims --out RUN
normwise claims --budget quick --seed 1 --out QUICK
normwise claims --seed 1 --out SECOND
python benchmarks/record_claims.py RUN [QUICK [SECOND]]

Of the second run, with another seed, only the verdicts are kept: a test reads that none is turned round.
"""

import json
import sys
from pathlib import Path
from typing import Any

from normwise.claims.registry import CLAIMS
from normwise.files import write_atomic

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "benchmarks" / "recorded" / "claims"
RATES = ROOT / "src" / "normwise" / "claims" / "rates.json"


def main(run: Path, quick: Path | None = None, second: Path | None = None) -> None:
    """Copies results and keeps the tuned rates; a run that was interrupted or lacks claims is refused."""
    content = json.loads((run / "results.json").read_text())
    missing = CLAIMS.keys() - {claim["id"] for claim in content["claims"]}
    if missing or not content["config"]["finished"]:
        raise SystemExit(f"{run} is not a finished run of all claims; missing: {sorted(missing)}")
    RECORDED.mkdir(parents=True, exist_ok=True)
    write_atomic(RECORDED / "results.json", json.dumps(worded(content), indent=1))
    write_atomic(RATES, json.dumps(content["config"]["rates"], indent=1, sort_keys=True) + "\n")
    if quick:
        short = json.loads((quick / "results.json").read_text())
        write_atomic(RECORDED / "quick.json", json.dumps(worded(short), indent=1))
    if second:
        other = json.loads((second / "results.json").read_text())
        write_atomic(RECORDED / "second.json", json.dumps(verdicts(other), indent=1))


def worded(content: dict[str, Any]) -> dict[str, Any]:
    """The content with today's captions and limits, which say nothing that was measured, and without its pictures,
    half a megabyte that the documentation does not show."""
    for claim in content["claims"]:
        today = CLAIMS[claim["id"]]
        claim |= {"row": today.row, "limits": today.limits}
        claim["figure"] |= {"caption": today.chart.caption, "x_title": today.chart.x_title, "pictures": []}
    return content


def verdicts(content: dict[str, Any]) -> dict[str, Any]:
    """What each claim and each part of it was found to be, with the number behind it."""
    kept = "name", "verdict", "mean", "low", "high", "seeds"
    claims = [
        {
            "id": claim["id"],
            "verdict": claim["verdict"],
            "parts": [{k: part[k] for k in kept} for part in claim["parts"]],
        }
        for claim in content["claims"]
    ]
    return {"claims": claims, "config": content["config"]}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
