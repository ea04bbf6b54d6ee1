"""How far the training of a stack has come: all that a checkpoint of it must keep."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from normwise.experiment.stack import Members, State
from normwise.experiment.train import Fit


@dataclass
class Progress:
    """The changing parts of a stack: numbers of the members, momenta, losses, dropout, and the steps that are done.

    `ended` holds the numbers of the members that diverged, as they were then.
    """

    members: Members
    velocity: Tensor
    fits: list[Fit]
    generators: list[Generator]
    ended: dict[int, State]
    done: int = field(default=0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "trained": self.members.flat,
            "velocity": self.velocity,
            "buffers": self.members.buffers,
            "fits": [fit.state_dict() | {"reason": fit.reason} for fit in self.fits],
            "generators": [generator.get_state() for generator in self.generators],
            "ended": self.ended,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Writes into the tensors that the stacked layers look at."""
        self.done = state["done"]
        kept = {"trained": self.members.flat, "velocity": self.velocity}
        with torch.no_grad():
            for name, value in kept.items():
                value.copy_(state[name])
            for name, value in self.members.buffers.items():
                value.copy_(state["buffers"][name])
        for fit, each in zip(self.fits, state["fits"], strict=True):
            fit.load_state_dict(each)
            fit.reason = each["reason"]
        for generator, each in zip(self.generators, state["generators"], strict=True):
            generator.set_state(each)
        self.ended.update(state["ended"])
