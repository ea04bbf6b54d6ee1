"""What was taken where a task is silent, as sentences printed with the verdict."""

from collections.abc import Container

from normwise.experiment import defaults
from normwise.experiment.task import LENGTH, Task

SPLITS = {
    1: "a sixth of the samples scores learning rates; for each seed the rest is split anew, "
    "two thirds to train, one third to judge",
    2: "training and judge set stay apart; a sixth of the training set scores learning rates; "
    "for each seed 80 % of each is drawn",
    3: "the sets stay apart; for each seed 80 % of the training set and of the judge set is drawn",
}


def sentences(task: Task, said: Container[str], classes: int | None) -> list[str]:
    """One sentence for each thing that `said` (the attributes that the user's task has) leaves out."""
    kept = "groups are kept together" if task.groups else "" if classes is None else "classes keep their shares"
    found = {
        "loss": "Loss: squared error (float targets)."
        if classes is None
        else f"Loss: cross-entropy over {classes} classes (integer targets).",
        "score": f"Score: {task.score_name}.",
        "optimizer": defaults.SGD,
        "schedule": defaults.ONE_CYCLE,
        "lr": f"Learning rates are centred on {task.lr:g} at batch size 32, times sqrt(batch size / 32).",
        "epochs": f"{LENGTH} {task.epochs:g} epochs (12,000 samples seen, rounded up to whole epochs).",
        "split": f"Split: {SPLITS[len(task.data().sets)]}{kept and '; ' + kept}.",
        "failed_score": f"A run that fails scores {task.failed_score:.3g}, "
        + ("as the untrained network does." if "score" in said else "as a constant prediction does."),
    }
    if "score" in said and "higher_is_better" not in said:
        found["higher_is_better"] = "A higher score is better."
    return [sentence for name, sentence in found.items() if name not in said]
