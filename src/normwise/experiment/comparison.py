"""What `compare` found, as Python gives it and as files: results.json, results.csv, report.html."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normwise.files import write_atomic
from normwise.report import page

Content = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison found: the verdict, the scorecard, and every trial behind them.

    >>> Comparison({"verdict": {"statement": "Take batch: ..."}})
    Comparison(Take batch: ...)
    """

    content: Content

    @property
    def verdict(self) -> Content:
        return self.content["verdict"]

    @property
    def scorecard(self) -> Content:
        return self.content["scorecard"]

    @property
    def results(self) -> list[Content]:
        return self.content["results"]

    def save(self, path: str | Path) -> None:
        """Writes the report as one HTML file."""
        page.write(self.content, path)

    def to_json(self, path: str | Path) -> None:
        """Writes everything as JSON (docs: "results.json")."""
        write_atomic(path, json.dumps(self.content, allow_nan=False, indent=1))

    def to_csv(self, path: str | Path) -> None:
        """Writes one line per trial."""
        write_atomic(path, _csv(self.results))

    def __repr__(self) -> str:
        return f"Comparison({self.verdict['statement']})"


def _csv(rows: Sequence[Content]) -> str:
    fixed = [
        "arm",
        "batch_size",
        "learning_rate",
        "seed",
        "length",
        "stage",
        "status",
        "reason",
        "seconds",
        "key",
    ]
    measures = sorted({name for row in rows for name in row["measures"]})
    file = io.StringIO()
    writer = csv.DictWriter(file, fixed + measures, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows({**row, **row["measures"]} for row in rows)
    return file.getvalue()
