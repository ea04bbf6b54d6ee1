"""How a norm's memory is written: once a step, under checkpoints, compilers and function transforms too."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any, ClassVar, ParamSpec, cast
from warnings import warn

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, _unwrap_for_grad, is_batchedtensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter as transform
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

from normwise.ops import faked, transformed
from normwise.table import convert, wide

_STATISTICS = ("running_mean", "running_var")
P = ParamSpec("P")


def recomputing() -> bool:
    """True while a checkpoint runs a forward again: that happens inside the backward pass, which no export has."""
    return not torch.compiler.is_exporting() and torch._C._current_graph_task_id() != -1


def compiling() -> bool:
    """True where only the running program will know whether it is a recomputation; an export has none."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def written(*mutated: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """For a function that writes to those of its arguments: it counts once a step, whoever runs it.

    In compiled code it is an operator, `normwise::NAME`, which asks when it runs whether a checkpoint
    runs its forward again; elsewhere the caller asks.
    """

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        @wraps(function)
        def unless_again(*args: P.args, **kwargs: P.kwargs) -> None:
            if not recomputing():
                function(*args, **kwargs)

        name: Any = getattr(function, "__name__", "")
        op = torch.library.custom_op(f"normwise::{name}", unless_again, mutates_args=mutated)

        @wraps(function)
        def write(*args: Any) -> None:
            with torch.no_grad():
                if compiling():
                    op(*(t.detach() if isinstance(t, Tensor) and t.requires_grad else t for t in args))
                elif not transformed():
                    function(*args)  # pyright: ignore[reportCallIssue]
                else:
                    _under_transforms(function, args)

        return cast(Callable[P, None], write)

    return decorate


@written("mean", "var", "seen", "skipped")
def move(
    mean: Tensor,
    var: Tensor,
    seen: Tensor,
    skipped: Tensor | None,
    new_mean: Tensor,
    new_var: Tensor,
    present: Tensor | None,
    momentum: float | None,
    root: float | None,
) -> None:
    """Moves remembered mean and variance on by one batch: `mean += momentum * (new_mean - mean)`, in place.

    `momentum=None`: the plain average over all batches. Shapes (C,), or (K, C) for K memories (then
    `seen` has shape (K,), and `present` says which of them the batch met). A batch with inf or NaN
    leaves its memory as it is and is counted in `skipped`. With `root` (the norm's eps) it is the
    deviation `sqrt(var + root)` that moves on, and `var` holds its square less root.
    """
    pairs = [(old, convert(new, old.dtype)) for old, new in ((mean, new_mean), (var, new_var))]
    ok = (new_mean + new_var).isfinite().all(-1)
    taken = ok if present is None else ok & present
    seen.add_(taken)
    weight = momentum if momentum is not None else 1 / seen.clamp(min=1).unsqueeze(-1).to(mean.dtype)
    for old, new in pairs:
        if old is var and root is not None:
            deviation = (old + root).sqrt()
            deviation = deviation + ((new + root).sqrt() - deviation) * weight
            old.copy_(torch.where(taken.unsqueeze(-1), deviation**2 - root, old))
        else:
            old.add_(torch.where(taken.unsqueeze(-1), new - old, 0) * weight)
    if skipped is not None:
        skipped.add_((~ok if present is None else ~ok & present).sum())


@written("pool", "skipped")
def add_batch(
    pool: Tensor, skipped: Tensor | None, mean: Tensor, var: Tensor, count: Tensor, between: bool, correction: int
) -> None:
    """Adds a batch's moments to a pool of shape (3, ...): mean, spread, count, in place.

    The spread is the sum of variances, each times its count less `correction`; and with `between` of
    what batches deviate from the joint mean (Chan et al., 1979). What is not finite is left out, and
    counted in `skipped`.
    """
    ok = (mean + var).isfinite().all(-1, keepdim=True)
    if skipped is not None:
        skipped.add_((~ok & (count > 0).any(-1, keepdim=True)).sum())
    center, spread, total = pool.unbind()
    count = torch.where(ok, convert(count, pool.dtype), 0)
    share = count / (total + count).clamp(min=1)
    step = torch.where(ok, convert(mean, pool.dtype) - center, 0)
    own = torch.where(ok, convert(var, pool.dtype), 0)
    spread.add_(own * (count - correction).clamp(min=0))
    if between:
        spread.add_(step**2 * total * share)
    center.add_(step * share)
    total.add_(count)


class Skipping(nn.Module):
    """A memory that stays wide, and counts the batches with inf or NaN which it left out and tells of the first.

    A copy, in a file too, goes on by itself: it knows nothing of the `with` that was open around this one.
    """

    passing: ClassVar[tuple[str, ...]] = ("pool",)  # what a `with` gives back at its end
    skipped: Tensor | None = None  # no buffer: the state_dict and what DDP broadcasts stay PyTorch's
    _told = False

    def train(self, mode: bool = True) -> "Skipping":
        if mode != self.training:
            self._tell()  # on other devices the count is asked for only here: it waits for them
        return super().train(mode)

    def start_counting(self, device: Any) -> None:
        """From 0, and the next such batch is told."""
        self.skipped, self._told = torch.zeros((), dtype=torch.int64, device=device), False

    @property
    def _counter(self) -> Tensor | None:
        """What to write the count to: under a function transform nothing."""
        return self.skipped if compiling() or not transformed() else None

    def _tell(self) -> None:
        if self._told or type(self.skipped) is not Tensor or self.skipped.is_meta or faked() or not int(self.skipped):
            return
        self._told = True
        warn(
            f"{type(self).__name__}({self.num_features}): a batch with inf or NaN was left out of the running "
            "statistics, as all further ones will be; `skipped` counts them. Look for it in the data, the "
            "layers before, or the learning rate.",
            stacklevel=2,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self.passing}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._widen(self._buffers)  # assign=True takes the tensors of a half-precision checkpoint

    def _apply(self, fn: Any, recurse: bool = True) -> "Skipping":
        before = {name: self._buffers[name] for name in _STATISTICS}
        super()._apply(fn, recurse)
        self._widen(before)
        if self.skipped is not None:
            self.skipped = torch.zeros_like(fn(self.skipped)) if self.skipped.is_meta else fn(self.skipped)
        return self

    def _widen(self, values: dict[str, Tensor | None]) -> None:
        for name in _STATISTICS:
            value, mine = values[name], self._buffers[name]
            if value is not None and mine is not None and mine.dtype != wide(mine.dtype):
                self._buffers[name] = value.to(mine.device, wide(mine.dtype))


def _under_transforms(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Steps out of torch.func.grad and the like, which forbid writes to what they do not differentiate."""
    with ExitStack() as outside:
        while transformed() and transform().key() in (TransformType.Grad, TransformType.Jvp):
            level = transform().level()
            args = tuple(_unwrap_for_grad(t, level) if isinstance(t, Tensor) else t for t in args)
            outside.enter_context(temporarily_pop_interpreter_stack())
        if any(isinstance(t, Tensor) and is_batchedtensor(t) for t in args) and not is_batchedtensor(args[0]):
            raise RuntimeError(
                "running statistics cannot be updated under vmap unless the buffers are mapped too: each slice "
                "would write its own value to one place; call eval(), nw.freeze(model), or build the norm with "
                "track_running_stats=False."
            )
        function(*args)
