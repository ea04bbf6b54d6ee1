"""The oddities are explained where they occur, and only there."""

import dataclasses

import pytest

from normwise.experiment.arms import Arm
from normwise.experiment.evidence import Evidence
from normwise.experiment.notes import notes
from normwise.experiment.plan import Plan
from normwise.experiment.trial import Result, Trial


def evidence(*arms, sizes=(8,), rates=None):
    names = tuple(arm.name for arm in arms)
    rates = rates or {(name, size): 0.1 for name in names for size in sizes}
    plan = Plan(names, sizes, {size: (0.1,) for size in sizes}, dict.fromkeys(names, 0.0), {}, 0.01)
    return Evidence(plan, arms, rates, (), "accuracy", True)


def ids(*arms, **options):
    return [note["id"] for note in notes(evidence(*arms, **options))]


BATCH = Arm("batch", values={8: 512}, smallest={8: "9"}, over_batch=True)


def with_values(count, size=2):
    return dataclasses.replace(BATCH, values={size: count}, smallest={size: "9"})


@pytest.mark.parametrize(
    ("arm", "sizes", "expected"),
    [
        (with_values(2), (2,), ["two-values"]),
        (with_values(4, 4), (4,), ["few-values"]),
        (with_values(64, 4), (4,), ["enough-values"]),
        (with_values(64, 64), (64,), []),
        (dataclasses.replace(with_values(2), over_batch=False), (2,), []),
        (Arm("instance", before_pooling=("5",)), (8,), ["before-pooling"]),
        (Arm("instance", aliases=("group:8",)), (8,), ["same-network"]),
        (Arm("group:4", as_instance=("1",)), (8,), ["group-is-instance"]),
        (Arm("none"), (8,), []),
    ],
)
def test_each_oddity_has_its_note(arm, sizes, expected):
    assert ids(arm, sizes=sizes) == expected


def test_notes_name_layer_and_number():
    note = notes(evidence(with_values(2), sizes=(2,)))[0]
    assert "'9'" in note["text"]
    assert note["arms"] == ["batch"]


def calibrated(arm, reason, **way):
    measures = {} if reason else {"full_length": 1.0}
    return Result(Trial(arm, 8, 0.1, 0, kind="calibrate", stack=16, **way), reason=reason, measures=measures)


def test_what_cannot_be_stacked_says_why():
    results = (
        calibrated("batch", "a layer has hooks"),
        calibrated("batch", "a layer has hooks", channels_last=True),
        calibrated("layer", ""),
        calibrated("layer", "no convolution", channels_last=True),
        calibrated("none", "a layer has hooks"),
    )
    arms = Arm("batch"), Arm("layer"), Arm("none")
    (note,) = notes(dataclasses.replace(evidence(*arms), results=results))
    assert (note["id"], note["arms"]) == ("one-at-a-time", ["batch", "none"])
    assert note["text"].startswith("batch at batch size 8, none at batch size 8: trials could not")
    assert note["text"].endswith("a layer has hooks.")


@pytest.mark.parametrize(("instance", "expected"), [(0.9, ["high-rate"]), (0.1, [])])
def test_higher_rate_of_instance_norm(instance, expected):
    arms = (Arm("batch"), Arm("instance"))
    assert ids(*arms, rates={("batch", 8): 0.1, ("instance", 8): instance}) == expected
