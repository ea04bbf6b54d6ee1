"""What a new norm layer takes over from the old one: values, running statistics, hooks."""

from typing import Any

import torch
from torch import nn


def carry_state(old: nn.Module, new: nn.Module) -> str:
    """Weight, bias and running statistics stay the same tensors where type and shape agree."""
    own = getattr(new, "own_affine", False) or getattr(old, "own_affine", False)
    for name in () if own else ("weight", "bias"):  # grn's weight means something else
        _hand_over(old._parameters, new._parameters, name)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        _hand_over(old._buffers, new._buffers, name)
    if getattr(new, "learn", 1) == 0:  # frozen:0
        new.requires_grad_(False)
    if getattr(old, "mix", 0):  # nw.adapt
        vars(new)["mix"] = vars(old)["mix"]
    held = [name for name in getattr(old, "frozen_affine", ()) if new._parameters.get(name) is old._parameters[name]]
    if held:  # nw.freeze
        vars(new)["frozen_affine"] = tuple(held)
    before, after = (module._buffers.get("running_mean") is not None for module in (old, new))
    if before and not after:
        return "the remembered mean and variance are not used any more"
    if after and not before:
        return "starts with mean 0 and variance 1 remembered; train or recalibrate before eval"
    return ""


def _hand_over(old: dict[str, Any], new: dict[str, Any], name: str) -> None:
    mine, theirs = old.get(name), new.get(name)
    if mine is None or theirs is None:
        return
    if (mine.shape, mine.dtype, mine.device) == (theirs.shape, theirs.dtype, theirs.device):
        new[name] = mine
        return
    with torch.no_grad():
        theirs.copy_(mine if mine.dim() <= theirs.dim() else mine[0])  # of several domains the first
    theirs.requires_grad_(mine.requires_grad)


def carry_hooks(old: nn.Module, new: nn.Module) -> str:
    """Hooks on forward and backward go on working, and so do their handles: both modules share the dicts."""
    for name in _HOOKS:
        vars(new)[name] = vars(old)[name]
    lost = [name.strip("_") for name in _LOST if vars(old).get(name)]
    carried = any(vars(old)[name] for name in _HOOKS if name.endswith("hooks") and vars(old)[name])
    kept = ["hooks carried over"] if carried else []
    return "; ".join(kept + [f"{name} left behind" for name in lost])


_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip
_LOST = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
