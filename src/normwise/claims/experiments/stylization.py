"""Feed-forward stylization of a photograph held out, by norm, on original, contrast- and style-normalized images."""

import copy
import math
import statistics
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from normwise.claims.claim import Experiment, Measures, Run, cell
from normwise.claims.experiments.training import remembers, tuning
from normwise.data.photos import crops, photo_names, photographs
from normwise.experiment.evaluate import forget_statistics
from normwise.experiment.tasks.stylize import Losses, Stylize, features, losses, stylizer
from normwise.surgery.recalibrate import recalibrate
from normwise.surgery.swap import swap

STEPS, BATCH, CROP, LOOK = 160, 4, 40, 10
TEXTURE, OTHER = Stylize.texture, "grass" if Stylize.texture == "brick" else "blobs"
NORMS = ("none", "batch", "instance")
KINDS = ("original", "contrast", "style")
RATES = (0.001, 0.0032, 0.01, 0.032, 0.1, 0.32)
DIVERGED = 1.0  # times the first loss that was looked at
SHOWN = 1  # the seed whose pictures are kept


def measure(run: Run) -> Measures:
    """`log_area`: log10 of the style loss averaged over training, on crops of a photograph that is not trained on;
    the norm sees these crops as a batch. `log_total`: the same of the whole loss. `log_end`, `log_content`: style and
    content loss at the end, in evaluation mode."""
    kind, norm = run.settings["images"], run.settings["norm"]
    names, held_out = list(photographs()), held_out_photo(run.seed)
    photos = images(kind)
    generator = torch.Generator().manual_seed(run.seed)
    test = crops([photos[held_out]], BATCH, CROP, generator)
    model = swap(stylizer(), norm).model
    seen = train(model, [photos[name] for name in names if name != held_out], test, run.rate, generator)
    with torch.no_grad():
        end = losses(model.eval()(test), test, TEXTURE)
        sides = _sides(model, test, [photos[name] for name in names if name != held_out], run.seed)
    if run.seed % 1000 == SHOWN:
        _leave(
            run.folder, model, photos[held_out], f"I1-{KINDS.index(kind)}{NORMS.index(norm)}-{norm} on {kind} images"
        )
    found = {name: _log10(statistics.mean(part)) for name, part in seen.items()}
    return {
        **found,
        **{f"half_{name}": _log10(statistics.mean(part[: len(part) // 2])) for name, part in seen.items()},
        **sides,
        "diverged": float(not seen["log_total"][-1] <= DIVERGED * seen["log_total"][0]),
        "log_end": _log10(float(end.style)),
        "log_content": _log10(float(end.content)),
        "validation": -found["log_total"],
    }


def _sides(model: nn.Module, test: Tensor, photos: list[Tensor], seed: int) -> Measures:
    """log10 of the style loss at the end by statistics: those remembered, fresh ones, those of the test crops."""
    if not remembers(model) or tuning(seed):
        return {}
    found = {"remembered": model.eval(), "batch_statistics": forget_statistics(model)}
    found["fresh"] = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    recalibrate(found["fresh"], [crops(photos, 16, CROP, generator) for _ in range(8)])
    return {name: _log10(float(losses(one(test), test, TEXTURE).style)) for name, one in found.items()}


def held_out_photo(seed: int) -> str:
    """Which photograph a seed is judged on: the last two are for choosing rates, so that none has a part in both.

    >>> held_out_photo(900) == held_out_photo(1)
    False
    """
    names = photo_names()
    judged = max(1, len(names) - 2)
    chosen = names[judged:]
    return chosen[seed % len(chosen)] if seed % 1000 >= 900 else names[seed % judged]


def train(
    model: nn.Module, photos: list[Tensor], test: Tensor, rate: float, generator: torch.Generator
) -> dict[str, list[float]]:
    """Trains in place with Adam; style and whole loss on the test crops every ten steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    seen: dict[str, list[float]] = {"log_area": [], "log_total": []}
    for step in range(STEPS):
        x = crops(photos, BATCH, CROP, generator)
        optimizer.zero_grad()
        losses(model(x), x, TEXTURE).total.backward()
        optimizer.step()
        if step % LOOK == LOOK - 1:
            found = _look(model, test)
            seen["log_area"].append(float(found.style))
            seen["log_total"].append(float(found.total))
    return seen


@lru_cache(maxsize=3)
def images(kind: str) -> dict[str, Tensor]:
    """The photographs as they are; with every channel's histogram made flat; or all in the style of another
    texture, by a network with instance norm that is trained once per process."""
    photos = photographs()
    if kind == "contrast":
        return {name: _equalized(photo) for name, photo in photos.items()}
    if kind == "style":
        model = _other_stylizer()
        with torch.no_grad():
            return {name: model(_even(photo)[None])[0] for name, photo in photos.items()}
    return photos


def _equalized(photo: Tensor) -> Tensor:
    """Each value becomes its rank among those of its channel."""
    flat = photo.flatten(1)
    return (flat.argsort(1).argsort(1).float() / flat.shape[1]).view_as(photo)


def _even(photo: Tensor) -> Tensor:
    height, width = photo.shape[1:]
    return photo[:, : height // 2 * 2, : width // 2 * 2]


def _other_stylizer() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = swap(stylizer(), "instance").model
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(STEPS):
            x = crops(list(photographs().values()), BATCH, CROP, generator)
            optimizer.zero_grad()
            losses(model(x), x, OTHER).total.backward()
            optimizer.step()
    return model.eval()


def _look(model: nn.Module, test: Tensor) -> Losses:
    """The losses on the test crops; what the norms remember stays as it was."""
    state = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        found = losses(model(test), test, TEXTURE)
        for name, value in model.named_buffers():
            value.copy_(state[name])
    return found


def _log10(value: float) -> float:
    return math.log10(min(value, 1e6)) if value == value else 6.0


def _leave(folder: Path, model: nn.Module, photo: Tensor, name: str) -> None:
    """Keeps the stylized photograph for the page."""
    from PIL import Image

    (folder / "pictures").mkdir(exist_ok=True)
    with torch.no_grad():
        output = model.train()(_even(photo)[None])[0]
    (folder / "pictures" / "I1.txt").write_text(f"The loss is taken on the features of {features().name}.")
    pixels = (output.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")


STYLIZATION = Experiment(
    "stylization",
    measure,
    tuple(cell(norm=norm, images=kind) for kind in KINDS for norm in NORMS),
    seconds=2.2,
    seeds=8,
    most=max(1, len(photo_names()) - 2),
    rates=RATES,
    rate_of=lambda text: cell(norm=text.partition(",")[0].removeprefix("norm="), images="original"),
    rivals=(tuple(cell(norm=norm, images="original") for norm in ("batch", "instance")),),
)
