"""What a model is made of, kept so that it can be put back: the same objects, not copies."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from normwise.layers.running import Running


class _Record(NamedTuple):
    module: nn.Module
    kind: type[nn.Module]
    attributes: dict[str, Any]
    containers: list[tuple[Any, Any]]  # a dict, list or set held by the module, and a copy of it


class Snapshot:
    """Every module's class, attributes, hooks, tensors (but parameters by value too), what learns; optimizer groups.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> before, norm = Snapshot(model), model[1]
    >>> model[1] = nn.Identity()
    >>> before.restore()
    >>> model[1] is norm
    True
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._records = [_record(module) for module in model.modules()]
        self._values = [(each, each.detach().clone()) for each in _written(model) if _has_value(each)]
        self._learns = [(p, p.requires_grad) for p in model.parameters() if not is_lazy(p)]
        self._optimizer = optimizer
        groups = optimizer.param_groups if optimizer is not None else []
        self._groups = [(group, list(group["params"]), list(group.get("param_names", ()))) for group in groups]
        self._state = dict(optimizer.state) if optimizer is not None else {}

    def restore(self) -> None:
        """Puts everything back, whatever happened since."""
        for module, kind, attributes, containers in self._records:
            if module.__class__ is not kind:
                module.__class__ = kind
            _refill(vars(module), attributes)
            for container, copy in containers:
                _refill(container, copy)
        for buffer, value in self._values:
            _write(buffer, value)
        for parameter, learns in self._learns:
            if parameter.requires_grad != learns:
                parameter.requires_grad_(learns)
        self._restore_groups()
        if self._optimizer is not None:
            _refill(self._optimizer.state, self._state)

    def undo(self) -> Callable[[], None]:
        """A function that later takes back what differs now, and nothing that changes after now."""
        steps = [step for record in self._records for step in _differences(record)]
        values = [(buffer, value) for buffer, value in self._values if not torch.equal(buffer, value)]
        switched = [(parameter, learns) for parameter, learns in self._learns if parameter.requires_grad != learns]
        state = self._optimizer.state if self._optimizer is not None else {}
        lost = {parameter: kept for parameter, kept in self._state.items() if parameter not in state}

        def run() -> None:
            for step in steps:
                step()
            for buffer, value in values:
                _write(buffer, value)
            for parameter, learns in switched:
                parameter.requires_grad_(learns)
            self._restore_groups()
            if self._optimizer is not None:
                state.update(lost)
                known = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
                for parameter in [p for p in state if id(p) not in known]:
                    del state[parameter]

        return run

    def _restore_groups(self) -> None:
        for group, parameters, names in self._groups:
            group["params"][:] = parameters  # in place: LBFGS and schedulers hold this very list
            if "param_names" in group:
                group["param_names"][:] = names


def _record(module: nn.Module) -> _Record:
    attributes = dict(vars(module))
    containers = [(v, v.copy()) for v in attributes.values() if isinstance(v, dict | list | set)]
    return _Record(module, module.__class__, attributes, containers)


def _differences(record: _Record) -> Iterator[Callable[[], None]]:
    module, kind, attributes, containers = record
    for now, before in [(vars(module), attributes), *containers]:
        if not isinstance(now, MutableMapping):
            if _members(now) != _members(before):
                yield lambda now=now, before=before: _refill(now, before)
            continue
        put = {name: value for name, value in before.items() if name not in now or now[name] is not value}
        drop = [name for name in now if name not in before]
        if put or drop:
            order = list(before)
            yield lambda now=now, put=put, drop=drop, order=order: _put_back(now, put, drop, order)
    if module.__class__ is not kind:
        yield lambda: _return_to(kind, module)


def _return_to(kind: type[nn.Module], module: nn.Module) -> None:
    """Ours keep their statistics in float32 in half precision too, and PyTorch's cannot read them."""
    ours = Running in type(module).__mro__ and not issubclass(kind, Running)
    if ours and (getattr(module, "frozen", False) or getattr(module, "mix", 0)):
        return  # frozen or adapted since, of which PyTorch's know nothing
    if is_parametrized(module):
        return  # since: its class is one that was made for it, upon ours
    module.__class__ = kind
    weight = module._parameters.get("weight")
    if isinstance(module, _NormBase) and weight is not None and weight.dtype in (torch.float16, torch.bfloat16):
        for name in ("running_mean", "running_var"):
            statistic = module._buffers.get(name)
            if statistic is not None:
                module._buffers[name] = statistic.to(weight.dtype)


def _members(container: Any) -> Any:
    """By identity: comparing tensors by value would be slow and ambiguous."""
    return [id(each) for each in container] if isinstance(container, list) else {id(each) for each in container}


def _put_back(now: MutableMapping[str, Any], put: dict[str, Any], drop: list[str], order: list[str]) -> None:
    """Entries return, to their places; a module that returns takes the mode of the one that stood in for it."""
    for name, value in put.items():
        stand_in = now.get(name)
        if isinstance(value, nn.Module) and isinstance(stand_in, nn.Module) and value.training != stand_in.training:
            value.train(stand_in.training)
        now[name] = value
    for name in drop:
        now.pop(name, None)
    if list(now) != order:
        _refill(now, {name: now[name] for name in dict.fromkeys([*order, *now]) if name in now})


def _refill(container: Any, content: Any) -> None:
    """In place, because handles of hooks and the like point at this very container."""
    if isinstance(container, list):
        container[:] = content
        return
    if isinstance(container, set):
        container.clear()
        container.update(content)
        return
    if list(container) != list(content):
        container.clear()
    for key, value in content.items():  # not update: a Counter would add
        container[key] = value


def _written(model: nn.Module) -> Iterator[Tensor]:
    """What a forward may write to in place: buffers, and tensors that are plain attributes."""
    yield from model.buffers()
    for module in model.modules():
        own = [each for each in vars(module).values() if isinstance(each, Tensor)]
        yield from (each for each in own if each.layout == torch.strided)


def _has_value(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and not tensor.is_meta


def _write(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        if not torch.equal(tensor, value):  # an unneeded write would count as an in-place change for autograd
            tensor.copy_(value)
