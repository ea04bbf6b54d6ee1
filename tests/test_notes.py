"""The oddities are explained where they occur, and only there."""

import dataclasses

import pytest

from normwise.experiment.arms import Arm
from normwise.experiment.evidence import Evidence
from normwise.experiment.notes import notes
from normwise.experiment.plan import Plan


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


@pytest.mark.parametrize(("instance", "expected"), [(0.9, ["high-rate"]), (0.1, [])])
def test_higher_rate_of_instance_norm(instance, expected):
    arms = (Arm("batch"), Arm("instance"))
    assert ids(*arms, rates={("batch", 8): 0.1, ("instance", 8): instance}) == expected
