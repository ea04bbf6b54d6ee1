"""A task that trains in milliseconds: two clouds of points, a network with two norms."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import normwise as nw


def model():
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 2),
    )


def data():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(240) % 2
    inputs = torch.randn(240, 4, generator=generator) + targets[:, None]
    return TensorDataset(inputs, targets)


def broken_model():
    return nn.Linear(4, 2)


def small_planes():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def nan_data():
    inputs, targets = data().tensors
    inputs = inputs.clone()
    inputs[3, 1] = float("nan")
    return TensorDataset(inputs, targets)


def noisy_model():
    """Prints, and draws its weights with NumPy."""
    print("building the model")
    made = model()
    made[0].weight = nn.Parameter(torch.tensor(np.random.randn(8, 4) / 2, dtype=torch.float32))
    return made


class Points(Dataset):
    """Samples that are dicts."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Dicts:
    """Batches that are dicts, with a loss and a score of its own: an error, so less is better."""

    epochs, delta, higher_is_better, score_name = 1, 0.02, False, "error"

    def model(self):
        return model()

    def data(self):
        inputs, targets = data().tensors
        return Points([{"points": x, "label": y} for x, y in zip(inputs, targets, strict=True)])

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch["points"]), batch["label"])

    def score(self, model, loader):
        model.eval()
        with torch.no_grad():
            wrong = [(model(b["points"]).argmax(1) != b["label"]).float() for b in loader]
        return torch.cat(wrong).mean().item()


class Unscored:
    """A score of its own and no delta."""

    model, data = staticmethod(model), staticmethod(data)
    epochs = 1

    def score(self, model, loader):
        return 1.0


@nw.task(lr=0.1, epochs=2, delta=0.05)
def own_loop(trial):
    """A loop of the user's own, with a report after each epoch."""
    inputs, targets = data().tensors
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(trial.seed))
    train, validation, judge = order[:120], order[120:160], order[160:]
    torch.manual_seed(trial.seed)
    net = trial.norm(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=trial.lr, momentum=0.9)

    def accuracy(index):
        net.eval()
        with torch.no_grad():
            return (net(inputs[index]).argmax(1) == targets[index]).double().mean().item()

    for epoch in range(trial.epochs):
        net.train()
        for start in range(0, len(train), trial.batch_size):
            index = train[start : start + trial.batch_size]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[index]), targets[index]).backward()
            optimizer.step()
        trial.report(epoch + 1, accuracy(validation))
    return nw.Scores(accuracy(validation), accuracy(judge))
