"""H2: layer and group normalization take batch normalization's place."""

from normwise.claims.claim import Chart, Claim, Part, Published, cell, gap
from normwise.claims.experiments.sizes import place
from normwise.claims.textbook.b4 import B4

LAYER, RMS, DYT = (cell(norm=norm) for norm in ("layer-token", "rms-token", "dyt"))

H2 = Claim(
    id="H2",
    title="Layer and group normalization",
    statement="Layer and group normalization take batch normalization's place where batches are small.",
    row="Dependence on batch size",
    parts=(
        Part(
            "few values per statistic",
            "accuracy, group minus batch norm; perceptron at batch 2 and 4, mean",
            lambda seed: sum(
                gap(place("group:8", "mlp", size), place("batch", "mlp", size), "judge")(seed) / 2 for size in (2, 4)
            ),
            "sizes",
            sign=1,
            delta=0.02,
            refuted_by="group norm is no better where batches are small",
            unit="points",
        ),
        Part(
            "usual batches",
            "accuracy, group minus batch norm; CNN at batch 32",
            gap(place("group:8", "cnn", 32), place("batch", "cnn", 32), "judge"),
            "sizes",
            sign=0,
            delta=0.01,
            refuted_by="at usual batches the two are not alike",
            unit="points",
        ),
        Part(
            "RMS norm is enough",
            "bits per character of a transformer, RMS minus layer norm",
            gap(RMS, LAYER, "judge"),
            "language",
            sign=0,
            delta=0.02,
            refuted_by="leaving the mean out changes the result",
            unit="bits",
        ),
        Part(
            "no norm but a curve",
            "bits per character of a transformer, dynamic tanh minus layer norm",
            gap(DYT, LAYER, "judge"),
            "language",
            sign=0,
            delta=0.02,
            refuted_by="dynamic tanh does not reach layer norm",
            unit="bits",
        ),
    ),
    design=f"The networks of B4, and a transformer of two blocks on Python's help texts. {B4.design}",
    chart=Chart(
        "language",
        "norm",
        "judge",
        "",
        "norm",
        "bits per character",
        "A small transformer on Python's help texts: lower is better. The first two parts are drawn under B4.",
        only={"length": None},
    ),
    published=(
        B4.published[0],
        Published(
            "ViT-B 82.3, dynamic tanh 82.5; DiT-XL FID 19.94, dynamic tanh 20.83",
            "Zhu et al., Transformers without normalization, 2025",
            "repository",
        ),
    ),
    pilot=f"of the networks of B4: {B4.pilot}",
    limits="The rate is tuned for each norm; dynamic tanh's alpha is not.",
)
