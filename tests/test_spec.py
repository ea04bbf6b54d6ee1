"""Specs: parsing, building, reading, and which norms are the same."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import normwise as nw
from normwise.errors import UsageError
from normwise.layers import NORMS
from normwise.layers.cards import catalogue, table
from normwise.layers.spec import NormSpec, NormState, build, parse, read, signature


def found(module: nn.Module) -> NormState:
    state = read(module)
    assert state is not None
    return state


@pytest.mark.parametrize("text", [*NORMS, "group:8", "group:size=16"])
def test_text_to_spec_and_back(text: str) -> None:
    spec = parse(f" {text} ")
    assert str(spec) == text
    assert parse(spec) is spec
    assert hash(spec) == hash(parse(text))


def test_first_option_may_be_named() -> None:
    assert parse("group:groups=8") == parse("group:8") == NormSpec("group", (("groups", 8),))


@pytest.mark.parametrize("name", NORMS)
def test_the_order_of_options_says_nothing(name: str) -> None:
    given = [f"{key}={number}" for number, key in enumerate(NORMS[name].options, 1)]
    spec = parse(name + ":" * bool(given) + ",".join(given))
    turned = parse(name + ":" * bool(given) + ",".join(reversed(given)))
    assert turned == spec == parse(str(turned))
    assert len(spec.options) == len(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("btach", "unknown norm 'btach', known are: none, batch, .*; did you mean batch?"),
        ("keep", "keep is for compare and swap: each layer stays as it is .*; to build one, name one of: none, batch"),
        ("nonsense", r"unknown norm 'nonsense', known are: [^;]*\.$"),
        ("group:", "group: an option must follow the colon, got 'group:'; write group without it."),
        ("group:many", "group: groups must be a whole number, got 'many'."),
        ("group:2.5", "group: groups must be a whole number, got '2.5'."),
        ("group:width=4", "group: the known options are: groups, size; got 'width=4'."),
        ("group:4,5", "group: the known options are: groups, size; got '5'."),
        ("group:4,groups=5", "group: each option may be given once, got 'group:4,groups=5'."),
        ("batch:3", "batch: the known options are: none; got '3'."),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_channels_in_the_place_of_the_spec_are_told() -> None:
    with pytest.raises(UsageError, match=r"must be given as a spec such as 'group:8', got 16; the channels come after"):
        build(16, "batch")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "channels", "groups"),
    [
        ("group", 64, 8),
        ("group", 30, 6),
        ("group", 7, 7),
        ("group", 11, 1),
        ("group:4", 12, 4),
        ("group:size=16", 64, 4),
    ],
)
def test_number_of_groups(text: str, channels: int, groups: int) -> None:
    assert build(text, channels).num_groups == groups


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group:4", "divisible by groups, got 30 and 4; 1, 2, 3, 5, 6, 10, 15 or 30 would do."),
        ("group:size=4", "divisible by size, got 30 and 4; 1, 2, 3, 5, 6, 10, 15 or 30 would do."),
        ("group:0", "divisible by groups, got 30 and 0"),
        ("group:3,size=10", "takes groups or size, got groups=3 and size=10; leave one out."),
    ],
)
def test_groups_that_do_not_divide(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(text, 30)


@pytest.mark.parametrize("size", [0, -1, 2.5, "8", None])
@pytest.mark.parametrize("text", [*NORMS, "group:2"])
def test_bad_sizes(text: str, size: Any) -> None:
    name = text.partition(":")[0]
    with pytest.raises(UsageError, match=f"^{name}: num_features must be a positive whole number, got {size!r}; give"):
        build(text, size)


@pytest.mark.parametrize("start", ["nan", "inf", "-inf"])
def test_dynamic_tanh_starts_from_a_finite_number(start: str) -> None:
    with pytest.raises(
        UsageError, match=f"DynamicTanh: start must be a finite number, got {start}; 0.5 is the paper's"
    ):
        build(f"dyt:{start}", 8)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"eps": 1e-3, "momentum": None, "bias": False}, {"affine": False, "dtype": torch.float64}],
    ids=str,
)
def test_build_and_read(name: str, options: dict[str, Any]) -> None:
    norm = build(name, 12, **options).eval()
    state = found(norm)
    carried = "eps", "momentum", "affine", "bias", "track_running_stats", "device", "dtype"
    again = build(state.spec, state.num_features, **{key: getattr(state, key) for key in carried})
    assert state.num_features == 12
    assert state.training is False
    assert state.eps == options.get("eps", 1e-5)
    learns = name not in ("adain", "mixstyle")
    assert state.affine == (learns and options.get("affine", True))
    assert repr(again) == repr(norm)
    assert signature(again) == signature(norm)
    assert found(again.eval()) == state


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.BatchNorm1d(6), "batch"),
        (nn.BatchNorm2d(6), "batch"),
        (nn.BatchNorm3d(6), "batch"),
        (nn.SyncBatchNorm(6), "sync"),
        (nn.InstanceNorm1d(6), "instance"),
        (nn.InstanceNorm2d(6), "instance"),
        (nn.InstanceNorm3d(6), "instance"),
        (nn.GroupNorm(3, 6), "group:3"),
        (nn.GroupNorm(1, 6), "layer"),
        (nn.LayerNorm(6), "layer-token"),
        (nn.RMSNorm(6), "rms-token"),
        (nw.BatchNorm2d(6), "batch"),
        (nw.InstanceNorm3d(6), "instance"),
        (nw.GroupNorm(2, 6), "group:2"),
    ],
    ids=lambda value: type(value).__module__[:3] + repr(value)[:14],
)
def test_reads_pytorchs_norms_and_ours(module: nn.Module, text: str) -> None:
    state = found(module)
    assert (str(state.spec), state.num_features) == (text, 6)


def test_what_is_read() -> None:
    norm = nn.BatchNorm2d(6, eps=1e-3, momentum=0.01, track_running_stats=False, dtype=torch.float64, bias=False).eval()
    assert found(norm) == NormState(
        NormSpec("batch"), 6, 1e-3, 0.01, True, False, False, False, torch.device("cpu"), torch.float64
    )
    bare = found(nn.InstanceNorm2d(6))
    assert (bare.affine, bare.bias, bare.device, bare.dtype) == (False, False, None, None)
    assert (found(nn.GroupNorm(2, 6)).momentum, found(nn.GroupNorm(2, 6)).track_running_stats) == (0.1, None)


class WithActivation(nn.BatchNorm2d):
    """A subclass that does more than normalize, as timm's BatchNormAct2d."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


class Renamed(nn.BatchNorm2d):
    """A subclass that changes nothing."""


def test_reads_no_more_than_it_knows() -> None:
    assert read(nn.Conv2d(3, 3, 1)) is None
    assert read(WithActivation(6)) is None
    assert read(nn.LayerNorm([6, 4, 4])) is None
    assert str(found(Renamed(6)).spec) == "batch"


def test_a_lazy_norm_must_know_its_channels() -> None:
    lazy = nn.LazyBatchNorm2d()
    with pytest.raises(UsageError, match="LazyBatchNorm2d must know its channels; run one batch"):
        read(lazy)
    lazy(torch.randn(4, 5, 3, 3))
    assert found(lazy).num_features == 5


def test_signatures() -> None:
    assert (
        signature(build("group:6", 6))
        == signature(build("instance", 6))
        == signature(nn.InstanceNorm2d(6, affine=True))
    )
    assert signature(build("group:1", 6)) == signature(build("layer", 6)) == signature(nn.GroupNorm(1, 6))
    assert signature(build("group", 6)) == signature(build("instance", 6))
    assert signature(build("layer", 1)) == signature(build("instance", 1))
    assert signature(build("batch", 6)) == signature(nn.BatchNorm2d(6)) == signature(nw.BatchNorm2d(6).eval())
    assert signature(build("none", 6, eps=1e-3)) == signature(build("none", 6))
    assert signature(nn.Conv2d(3, 3, 1)) is None
    variants: list[dict[str, Any]] = [
        {"eps": 1e-3}, {"momentum": 0.2}, {"bias": False}, {"affine": False}, {"track_running_stats": False}
    ]  # fmt: skip
    different = [
        *(build(name, 6) for name in NORMS),
        *(build("batch", 6, **options) for options in variants),
        build("batch", 5),
        build("group:2", 6),
        build("instance", 6, track_running_stats=True),
    ]
    assert signature(different.pop(list(NORMS).index("group"))) == signature(build("instance", 6))
    assert len({signature(norm) for norm in different}) == len(different)


@pytest.mark.parametrize("name", NORMS)
def test_every_entry_explains_itself(name: str) -> None:
    entry = NORMS[name]
    assert entry.name == name
    assert all((entry.summary, entry.formula, entry.pools, entry.when, entry.when_not))
    assert entry.paper == "" or re.fullmatch(r".+, \d{4}, arXiv:\d{4}\.\d{5}", entry.paper)
    assert set("".join(entry.axes).replace("C/g", "C").replace(",", "")) <= set("NCHWF")
    assert bool(entry.option) == bool(entry.options)


def test_catalogue() -> None:
    content = catalogue()
    assert content["schema"] == 1
    assert [norm["name"] for norm in content["norms"]] == list(NORMS)
    assert table(80).row_count == len(NORMS) + 1  # and keep
