"""An LSTM with and without norms: digits, the adding problem and text, in training mode and in evaluation."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.claims.claim import HALF, Experiment, Measures, Run, cell
from normwise.claims.experiments.training import tuning
from normwise.data import Arrays, Batches
from normwise.data.sequences import LETTERS, adding, charlm, sequence_digits
from normwise.experiment.checkpoint import Stream
from normwise.experiment.defaults import rate_factor
from normwise.layers.recurrent import LSTM
from normwise.surgery.recalibrate import recalibrate

HIDDEN, BATCH, EPOCHS, CLIP = 32, 32, 6, 1.0
ADDING_STEPS, ADDING_SAMPLES = 30, 1500
TEXT_STEPS, CHARACTERS = 16, len(LETTERS) + 1
SIZES = {"digits": (4, 10), "rows": (4, 10), "adding": (2, 1), "text": (CHARACTERS, CHARACTERS)}  # in and out
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
        states = []
        for step in x.unbind(1):
            gates = self.norm_input(self.from_input(step)) + self.norm_state(self.from_state(h))
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.norm_cell(c).tanh()
            states.append(h)
        return torch.stack(states, 1)


class Reader(nn.Module):
    """Reads a sequence and answers at its end, or after each character of a text."""

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
        text = x.dim() == 2
        steps = F.one_hot(x.long(), CHARACTERS).float() if text else x
        found = self.lstm(steps)
        states = found if isinstance(found, Tensor) else found[0]
        return self.answer(states).transpose(1, 2) if text else self.answer(states[:, -1])


def measure(run: Run) -> Measures:
    """`judge`: accuracy (digits), minus log10 of the squared error (adding) or minus bits per character (text);
    `mode_gap`: the score on training samples in training mode minus that in evaluation mode; `remembered`,
    `fresh` and `batch_statistics`: the judge score in evaluation, so with fresh statistics, and in training mode."""
    given = run.settings
    train, validation, judge = samples(given["task"], run.seed)
    inputs, outputs = SIZES[given["task"]]
    weight = float(given["weight"]) if "weight" in given else None
    model = Reader(inputs, outputs, given["norm"], weight)
    stopped = fit(model, train, run.rate, run.seed, EPOCHS * (0.5 if "length" in given else 1))
    found = {"validation": score(model.eval(), validation), "judge": score(model, judge), "diverged": float(stopped)}
    if tuning(run.seed):
        return found
    shown = train.subset(range(320))
    evaluated = score(model, shown)
    with torch.no_grad():
        found["mode_gap"] = score(model.train(), shown) - evaluated
        if given["norm"] in ("batch", "shared"):
            found |= {"remembered": found["judge"], "batch_statistics": score(model, judge)}
            found["fresh"] = score(_refreshed(model, train), judge)
    return found


def _refreshed(model: Reader, data: Arrays) -> Reader:
    """A copy, in evaluation, whose statistics are those of all training samples."""
    model = copy.deepcopy(model)
    recalibrate(model, Batches(data, 250), call=lambda model, batch: model(batch[0]))
    return model.eval()


def samples(task: str, seed: int) -> tuple[Arrays, Arrays, Arrays]:
    """Training, validation and judge samples of a seed."""
    generator = torch.Generator().manual_seed(seed)
    if task == "adding":
        sizes = (ADDING_SAMPLES, 400, 800)
        train, validation, judge = (adding(size, ADDING_STEPS, generator) for size in sizes)
        return train, validation, judge
    data = charlm() if task == "text" else sequence_digits(permuted=task == "digits")
    assert isinstance(data.train, Arrays)
    sizes = [1000, 296, 500]
    order = torch.randperm(len(data.train), generator=generator)
    train, validation, judge = (data.train.subset(part) for part in order[: sum(sizes)].split(sizes))
    if task == "text":
        assert isinstance(data.judge, Arrays)
        judge = data.judge.subset(torch.randperm(len(data.judge), generator=generator)[: sizes[2]])
        train, validation, judge = (_shorter(part) for part in (train, validation, judge))
    return train, validation, judge


def fit(model: Reader, data: Arrays, rate: float, seed: int, epochs: float) -> bool:
    """Trains in place: Adam, one-cycle, gradients clipped; stops where the loss is not finite, and says so."""
    batches = Batches(data, BATCH, shuffle=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    total = round(epochs * len(batches))
    for step, (x, y) in zip(range(total), Stream(batches), strict=False):
        optimizer.param_groups[0]["lr"] = rate * rate_factor(step, total)
        optimizer.zero_grad()
        loss = _loss(model(x), y)
        if not loss.isfinite():
            return True
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return False


def score(model: Reader, data: Arrays) -> float:
    """The score in the mode that the model is in; batches of the training size, as they decide in training mode."""
    with torch.no_grad():
        outputs = torch.cat([model(x) for x in data.inputs.split(BATCH)])
    if not outputs.isfinite().all():
        return -10.0 if data.targets.dim() == 2 else 0.0
    if data.targets.is_floating_point():
        return -math.log10(float(F.mse_loss(outputs[:, 0], data.targets)))
    if data.targets.dim() == 2:
        return -min(float(F.cross_entropy(outputs, data.targets)) / math.log(2), 10.0)
    return float((outputs.argmax(1) == data.targets).float().mean())


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs[:, 0], y) if y.is_floating_point() else F.cross_entropy(outputs, y)


def _shorter(samples: Arrays) -> Arrays:
    return Arrays(samples.inputs[:, :TEXT_STEPS], samples.targets[:, :TEXT_STEPS])


DIGITS = tuple(cell(norm=norm, task="digits") for norm in NORMS)
TEXT = tuple(cell(norm=norm, task="text") for norm in ("none", "layer", "batch"))
ADDING = tuple(cell(norm=norm, task="adding") for norm in ("none", "layer", "batch"))

RECURRENT = Experiment(
    "recurrent",
    measure,
    (
        *DIGITS,
        cell(norm="batch", task="digits", weight=1),
        *(cell(norm=norm, task="rows") for norm in NORMS),
        *ADDING,
        *TEXT,
        *(text + HALF for text in DIGITS),
    ),
    seconds=1.5,
    seeds=14,
    rates=RATES,
    rate_of=lambda text: text.removesuffix(",weight=1").removesuffix(HALF).replace("rows", "digits"),
    rivals=(DIGITS,),
)
