"""An LSTM with and without norms: permuted digits and the adding problem, in training mode and in evaluation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.data import Arrays, Batches
from normwise.data.sequences import adding, sequence_digits
from normwise.experiment.defaults import rate_factor
from normwise.layers.recurrent import LSTM

HIDDEN, BATCH, EPOCHS, CLIP = 32, 32, 6, 1.0
ADDING_STEPS, ADDING_SAMPLES = 30, 1500
NOISE = 0.1  # on the first state: the first steps of many digits are alike
RATES = (0.001, 0.0032, 0.01, 0.032, 0.1, 0.32)
NORMS = ("none", "layer", "batch", "shared")


class SharedLSTM(nn.Module):
    """An LSTM whose batch norms share statistics over all time steps, the simple way that does not work."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(inputs, 4 * hidden)
        self.from_state = nn.Linear(hidden, 4 * hidden, bias=False)
        self.norm_input, self.norm_state, self.norm_cell = (nn.BatchNorm1d(n) for n in (4 * hidden, 4 * hidden, hidden))
        for norm in (self.norm_input, self.norm_state, self.norm_cell):
            nn.init.constant_(norm.weight, 0.1)  # as for the norm per step (Cooijmans et al., 2017)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.norm_cell.num_features)
        if self.training:
            h = h + NOISE * torch.randn_like(h)
        for step in x.unbind(1):
            gates = self.norm_input(self.from_input(step)) + self.norm_state(self.from_state(h))
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.norm_cell(c).tanh()
        return h


class Reader(nn.Module):
    """Reads a sequence and answers at its end."""

    def __init__(self, inputs: int, outputs: int, norm: str, weight: float | None = None) -> None:
        super().__init__()
        noise = NOISE if norm == "batch" else 0.0
        plain = LSTM(inputs, HIDDEN, batch_first=True, norm=norm if norm != "shared" else "none", state_noise=noise)
        self.lstm = SharedLSTM(inputs, HIDDEN) if norm == "shared" else plain
        self.answer = nn.Linear(HIDDEN, outputs)
        for name, parameter in self.lstm.named_parameters():
            if weight is not None and name.startswith("norm_") and "bias" not in name:
                nn.init.constant_(parameter, weight)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.lstm, SharedLSTM):
            return self.answer(self.lstm(x))
        return self.answer(self.lstm(x)[0][:, -1])


def measure(run: Run) -> Measures:
    """`judge`: accuracy (digits) or minus log10 of the squared error (adding); `mode_gap`: the score on training
    samples in training mode minus that in evaluation mode."""
    given = run.settings
    train, validation, judge = samples(given["task"], run.seed)
    outputs = 10 if given["task"] == "digits" else 1
    weight = float(given["weight"]) if "weight" in given else None
    model = Reader(train.inputs.shape[2], outputs, given["norm"], weight)
    fit(model, train, run.rate, run.seed)
    shown = train.subset(range(320))
    with torch.no_grad():
        in_training = score(model.train(), shown)
    gap = in_training - score(model.eval(), shown)
    return {"validation": score(model, validation), "judge": score(model, judge), "mode_gap": gap}


def samples(task: str, seed: int) -> tuple[Arrays, Arrays, Arrays]:
    """Training, validation and judge samples of a seed."""
    generator = torch.Generator().manual_seed(seed)
    if task == "adding":
        sizes = (ADDING_SAMPLES, 400, 800)
        train, validation, judge = (adding(size, ADDING_STEPS, generator) for size in sizes)
        return train, validation, judge
    data = sequence_digits().train
    assert isinstance(data, Arrays)
    order = torch.randperm(len(data), generator=generator)
    train, validation, judge = (data.subset(part) for part in order[:1796].split([1000, 296, 500]))
    return train, validation, judge


def fit(model: Reader, data: Arrays, rate: float, seed: int) -> None:
    """Trains in place: Adam, one-cycle, gradients clipped; stops where the loss is not finite."""
    batches = Batches(data, BATCH, shuffle=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    total, step = EPOCHS * len(batches), 0
    for _ in range(EPOCHS):
        for x, y in batches:
            optimizer.param_groups[0]["lr"] = rate * rate_factor(step, total)
            optimizer.zero_grad()
            loss = _loss(model(x), y)
            if not loss.isfinite():
                return
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            step += 1


def score(model: Reader, data: Arrays) -> float:
    """The score in the mode that the model is in; batches of the training size, as they decide in training mode."""
    with torch.no_grad():
        outputs = torch.cat([model(x) for x in data.inputs.split(BATCH)])
    if not outputs.isfinite().all():
        return 0.0
    if data.targets.is_floating_point():
        return -math.log10(float(F.mse_loss(outputs[:, 0], data.targets)))
    return float((outputs.argmax(1) == data.targets).float().mean())


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs[:, 0], y) if y.is_floating_point() else F.cross_entropy(outputs, y)


RECURRENT = Experiment(
    "recurrent",
    measure,
    (
        *(cell(norm=norm, task="digits") for norm in NORMS),
        cell(norm="batch", task="digits", weight=1),
        *(cell(norm=norm, task="adding") for norm in ("none", "layer", "batch", "shared")),
    ),
    seconds=2.0,
    seeds=16,
    rates=RATES,
    rate_of=lambda text: text.removesuffix(",weight=1"),
)
