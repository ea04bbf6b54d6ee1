"""I4: instance normalization amplifies noise."""

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, cell, gap
from normwise.claims.textbook.b7 import B7


def text(norm: str, flat: str, eps: float = 1e-5) -> str:
    return cell(norm=norm, flat=flat, eps=eps)


def drop(norm: str, seed: Seed) -> float:
    return seed[cell(norm=norm)]["judge"] - seed[cell(norm=norm)]["noise"]


I4 = Claim(
    id="I4",
    title="Amplification of noise",
    statement="Instance normalization amplifies noise where an image has little variance.",
    row="Use case",
    parts=(
        Part(
            "channel flat in this image",
            "log10 of the noise's gain, instance minus batch norm",
            gap(text("instance", "here"), text("batch", "here"), "log_gain"),
            "amplify",
            sign=1,
            delta=0.5,
            refuted_by="instance norm amplifies no more than batch norm where one image is flat",
            unit="decades",
        ),
        Part(
            "channel flat in all images",
            "log10 of the noise's gain, instance minus batch norm",
            gap(text("instance", "everywhere"), text("batch", "everywhere"), "log_gain"),
            "amplify",
            sign=1,
            delta=0.5,
            refuted_by="batch norm amplifies as much where all images are flat",
            unit="decades",
        ),
        Part(
            "within a channel",
            "signal to noise in a textured channel after instance norm over that before, minus 1",
            lambda seed: seed[text("instance", "here")]["snr"] - 1,
            "amplify",
            sign=0,
            delta=0.01,
            refuted_by="the norm changes the ratio of signal to noise within a channel",
        ),
        Part(
            "a larger eps",
            "log10 of the noise's gain with eps 0.1, minus that with 0.00001; instance norm",
            gap(text("instance", "here", 0.1), text("instance", "here"), "log_gain"),
            "amplify",
            sign=-1,
            delta=0.5,
            refuted_by="eps does not tame the gain",
            unit="decades",
        ),
        Part(
            "end to end",
            "accuracy lost to Gaussian noise on the test images, instance minus batch norm",
            lambda seed: drop("instance", seed) - drop("batch", seed),
            "shift",
            sign=1,
            delta=0.02,
            refuted_by="a trained network with instance norm loses no more",
            unit="points",
        ),
    ),
    design=(
        "Smooth textures of deviation 1 with noise of 0.01; one channel is flat, in one image or in all. What the "
        "norm makes of the noise there. End to end: the networks of B7, trained on clean images."
    ),
    chart=Chart(
        "amplify",
        "eps",
        "log_gain",
        "norm",
        "eps",
        "log10 of the noise's gain",
        "The gain in a channel that is flat in one image: 0 is as loud as before, 2 a hundred times as loud. That of a "
        "channel that is flat in all images stands in the numbers.",
        only={"flat": "here"},
        log_x=True,
    ),
    published=(
        Published("no paper was found that measures it", "own search", "none"),
        Published(
            "near-zero variance lets batch norm amplify the noise to signal level",
            "Cooijmans et al., Recurrent batch normalization, 2017",
            "read",
        ),
    ),
    pilot=f"of the part end to end: {B7.pilot}",
    limits="Within a plane a norm scales and shifts, which leaves signal against noise as it was.",
)
