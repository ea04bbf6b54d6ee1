"""Pictures that measurements left in the run's folder, put into the content as data addresses."""

import base64
from pathlib import Path
from typing import Any

FOLDER = "pictures"


def add_pictures(claims: list[dict[str, Any]], folder: Path) -> None:
    """Adds to each claim's figure the pictures whose names begin with its id (`I1-2-instance.png`), and the note
    that lies beside them (`I1.txt`)."""
    for claim in claims:
        note = folder / FOLDER / f"{claim['id']}.txt"
        claim["figure"]["pictures_note"] = note.read_text() if note.is_file() else ""
        claim["figure"]["pictures"] = [
            {"name": path.stem.removeprefix(f"{claim['id']}-").partition("-")[2], "address": _address(path)}
            for path in sorted((folder / FOLDER).glob(f"{claim['id']}-*.png"))
        ]


def _address(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
