"""A zoo of small awkward models for the tests of surgery, and a fingerprint of what must stay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12, eps=1e-3, momentum=0.01),
        nn.ReLU(),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(self.dropout(y)))
        return F.relu(y + self.down(x))


class Tied(nn.Module):
    """One norm object at two places, behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.conv2(self.norm(self.conv1(x))))


class NormTwice(nn.Module):
    """One norm, called twice in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(F.relu(self.norm(self.conv1(x)))))


class SharedConv(nn.Module):
    """One convolution for two views, each with its own norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm1, self.norm2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv(x)) + self.norm2(self.conv(x.flip(-1)))


class Crossed(nn.Module):
    """Registered in another order than called, so that pairing neighbours would pair the wrong ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm1 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class ConvUsedElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class ReturnsConv(ConvUsedElsewhere):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, self.norm(y)


class UsesWeights(ConvUsedElsewhere):
    """The forward also reads the convolution's weight itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.mean()


class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, image: Tensor, gain: Tensor) -> dict[str, Tensor]:
        return {"features": self.body(image * gain)}


class WholeDict(nn.Module):
    """Takes the batch as one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.body(batch["image"] * batch["gain"])


class OptionalGain(nn.Module):
    """With its optional argument something comes between convolution and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        return self.norm(x if gain is None else x.abs() * gain)


class Branching(nn.Module):
    """Its forward depends on values, so symbolic tracing fails."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        if x.mean() > 1e6:
            return x
        y = self.conv2(x)
        return self.norm2(y) + y.sum()


class Transformer(nn.Module):
    """A convolutional stem with batch norm, then a transformer layer with LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.RMSNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm1(self.stem(x).flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens + self.mlp(self.norm2(tokens))


class Named(nn.Module):
    """Norms in a ModuleDict and a ModuleList, and held in a plain list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)])
        self.norms = nn.ModuleDict({"first": nn.BatchNorm2d(8), "second": nn.BatchNorm2d(8)})
        self.pairs = list(zip(self.convs, self.norms.values(), strict=True))
        self.config: dict[str, Any] = {"norm": self.norms["first"]}
        self.config["self"] = self.config

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in self.pairs:
            x = F.relu(norm(conv(x)))
        return x


class Hiding(nn.Module):
    """Keeps a norm in a closure, where no surgery can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        norm = self.norm
        self.run: Callable[[Tensor], Tensor] = lambda x: norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class WithActivation(nn.BatchNorm2d):
    """A norm that does more than its name says, as timm's BatchNormAct2d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and detectron2's: everything is a buffer."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.5), ("bias", 0.5), ("running_mean", 0.25), ("running_var", 2.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)  # pyright: ignore


class Tokens(nn.Module):
    """Linear then BatchNorm1d on (N, L, C), where the norm works on L; here L == C."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6))


def upsampling() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, bias=False, output_padding=0),
        nn.BatchNorm2d(4, affine=False),
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(8),
    )


def norm_first() -> nn.Module:
    early, late = nn.BatchNorm2d(3), nn.BatchNorm2d(8)
    return nn.Sequential(early, nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), late, nn.Conv2d(8, 4, 1))


def instances() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8),
        nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    )


def untracked() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.BatchNorm2d(8, momentum=None)
    )


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.GroupNorm(2, 4))


def sequences() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 6, 2), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Conv1d(6, 4, 2), nn.GroupNorm(1, 4))


def pooled() -> nn.Module:
    """Ends in planes of one value."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))


def parametrized() -> nn.Module:
    conv, norm = parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)
    return nn.Sequential(conv, norm, nn.Conv2d(8, 8, 3), parametrizations.weight_norm(nn.BatchNorm2d(8)))


def half() -> nn.Module:
    return plain().bfloat16()


def image() -> Tensor:
    return torch.randn(4, 3, 9, 9)


class Specimen(NamedTuple):
    make: Callable[[], nn.Module]
    example: Callable[[], Any] = image


ZOO: dict[str, Specimen] = {
    "plain": Specimen(plain),
    "residual": Specimen(Residual),
    "tied": Specimen(Tied),
    "norm-twice": Specimen(NormTwice),
    "shared-conv": Specimen(SharedConv),
    "crossed": Specimen(Crossed),
    "conv-used-elsewhere": Specimen(ConvUsedElsewhere),
    "returns-conv": Specimen(ReturnsConv),
    "uses-weights": Specimen(UsesWeights),
    "dict-input": Specimen(DictInput, lambda: {"image": image(), "gain": torch.rand(4, 1, 1, 1)}),
    "whole-dict": Specimen(WholeDict, lambda: {"image": image(), "gain": torch.rand(4, 1, 1, 1)}),
    "optional-gain": Specimen(OptionalGain),
    "branching": Specimen(Branching),
    "transformer": Specimen(Transformer, lambda: torch.randn(4, 3, 8, 8)),
    "named": Specimen(Named),
    "tokens": Specimen(Tokens, lambda: torch.randn(4, 6, 5)),
    "perceptron": Specimen(perceptron, lambda: torch.randn(4, 5)),
    "upsampling": Specimen(upsampling, lambda: torch.randn(4, 4, 5, 5)),
    "grouped": Specimen(grouped, lambda: torch.randn(4, 4, 7, 7)),
    "norm-first": Specimen(norm_first),
    "instances": Specimen(instances),
    "untracked": Specimen(untracked),
    "volumes": Specimen(volumes, lambda: torch.randn(4, 2, 4, 4, 4)),
    "sequences": Specimen(sequences, lambda: torch.randn(4, 3, 9)),
    "parametrized": Specimen(parametrized),
    "half": Specimen(half, lambda: image().bfloat16()),
    "root": Specimen(lambda: nn.BatchNorm2d(3)),
}


def lively(model: nn.Module) -> nn.Module:
    """Gives norms random weights and statistics: on fresh ones too many mistakes do not show."""
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and name in ("weight", "bias", "running_mean") and tensor.dim() == 1:
                    tensor.copy_(torch.randn(tensor.shape))
                if tensor is not None and name == "running_var":
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """Everything that surgery must not touch: objects by identity, tensors also by value."""
    modules = [
        (path, id(module), type(module), module.training, _attributes(module))
        for path, module in model.named_modules(remove_duplicate=False)
    ]
    hooks = [
        [(name, list(value)) for name, value in vars(module).items() if name.endswith("hooks")]
        for module in model.modules()
    ]
    tensors = [
        (name, id(tensor), tensor.dtype, tensor.requires_grad, tensor.detach().float().numpy().tobytes())
        for named in (model.named_parameters(), model.named_buffers())
        for name, tensor in named
    ]
    return modules, hooks, tensors, list(model.state_dict()), _optimizer_print(optimizer)


def _attributes(module: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(value)) for name, value in sorted(vars(module).items()) if name[0] != "_"]


def _optimizer_print(optimizer: torch.optim.Optimizer | None) -> Any:
    if optimizer is None:
        return None
    groups = [([id(p) for p in g["params"]], g.get("param_names"), g["lr"]) for g in optimizer.param_groups]
    state = {id(p): {name: id(value) for name, value in each.items()} for p, each in optimizer.state.items()}
    return [(ids, names and list(names), lr) for ids, names, lr in groups], state


@contextmanager
def untouched(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """The model, the optimizer and the random generator are afterwards as before."""
    before, generator = fingerprint(model, optimizer), torch.get_rng_state()
    yield
    assert fingerprint(model, optimizer) == before
    assert torch.equal(torch.get_rng_state(), generator)
