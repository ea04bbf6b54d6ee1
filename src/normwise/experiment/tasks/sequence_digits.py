"""The task `sequence-digits`: an LSTM reads a digit in mixed-up pieces of four pixels; its norm is the arm."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from normwise.data import Data
from normwise.data.sequences import sequence_digits
from normwise.layers.recurrent import LSTM


class Reader(nn.Module):
    """An LSTM and a linear layer on its last output: (N, T, 4) to (N, 10).

    >>> Reader()(torch.zeros(3, 16, 4)).shape
    torch.Size([3, 10])
    """

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = LSTM(4, hidden, batch_first=True, norm="batch", state_noise=0.1)
        self.answer = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.lstm(x)[0][:, -1])


class SequenceDigits:
    """The task as `compare` sees it: accuracy, Adam."""

    name, lr, epochs = "sequence-digits", 0.01, 8

    def model(self) -> nn.Module:
        return Reader()

    def data(self) -> Data:
        return sequence_digits()

    def optimizer(self, params: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=lr)
