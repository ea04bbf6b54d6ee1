"""The `swap` command: a model by name in, a folder with plan and weights out."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from normwise.errors import UsageError
from normwise.files import write_atomic
from normwise.loading import call, describe, load_object
from normwise.surgery.plan import Plan
from normwise.surgery.swap import swap

FILES = ("plan.json", "weights.safetensors")


def swap_and_save(
    model: str, to: str, *, where: str = "*", out: Path | None = None, dry_run: bool = False
) -> tuple[Plan, str]:
    """Swaps the norms of the model that `package.module:function` makes; writes plan.json and weights.safetensors.

    Returns the plan, and in words the plan and what was written. Without `out` it must be a dry run.
    Raises UsageError for what cannot work; then nothing is written.
    """
    if out is None and not dry_run:
        raise UsageError("swap must know where to write: give -o FOLDER, or --dry-run to see the plan only")
    made = call(load_object(model), model)
    if not isinstance(made, nn.Module):
        raise UsageError(f"{model} must return a torch.nn.Module, got {describe(made)}")
    plan = swap(made, read_spec(to), where=where, dry_run=dry_run)
    if out is None or dry_run:
        return plan, repr(plan)
    return plan, f"{plan!r}\n{save(plan, out)}"


def read_spec(text: str) -> str | dict[str, str]:
    """A spec text, a JSON mapping of patterns, or @file with either.

    >>> read_spec('{"layer1.*": "ibn", "*": "batch"}')
    {'layer1.*': 'ibn', '*': 'batch'}
    """
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text().strip()
        except OSError as error:
            raise UsageError(f"the spec file {text[1:]} cannot be read ({error.strerror})") from error
    if not text.startswith("{"):
        return text
    try:
        mapping: Any = json.loads(text)
    except ValueError as error:
        raise UsageError(f'a mapping of patterns must be JSON such as {{"*": "batch"}}: {error}') from error
    return mapping


def save(plan: Plan, out: Path) -> str:
    """Writes the changed weights, then the plan that tells what they belong to; the sentence that says so."""
    from safetensors.torch import save as to_bytes

    try:
        replaced = any((out / name).exists() for name in FILES)
        out.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous().clone() for name, tensor in plan.model.state_dict().items()}
        write_atomic(out / "weights.safetensors", to_bytes(weights))
        write_atomic(out / "plan.json", plan.to_json())
    except OSError as error:
        raise UsageError(
            f"{out} must be a folder that can be written to ({error.strerror}); take another -o"
        ) from error
    earlier = " (replaced an earlier swap's)" if replaced else ""
    own = "" if plan.changes else "; no layer was changed: these are the model's own weights"
    return f"written to {out}: {', '.join(FILES)}{earlier}{own}"
