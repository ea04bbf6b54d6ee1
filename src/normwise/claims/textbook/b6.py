"""B6: batch normalization improves gradient flow."""

from collections.abc import Callable

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, Table, cell, gap
from normwise.claims.theory import growth

VALUES = (8, 32, 128)
NONE, BATCH = cell(net="mlp", norm="none", values=32, gain=1), cell(net="mlp", norm="batch", values=32)


SKIP = {norm: cell(net="skip", norm=norm, values=32, gain=1) for norm in ("none", "batch")}


def stepped(norm: str, steps: int, rate: float = 0.01) -> str:
    return cell(net="mlp", norm=norm, values=32, gain=1, steps=steps, rate=rate)


def drift(of: str) -> str:
    return f"|log of the growth per layer|, {of}"


def agreement(values: int) -> Callable[[Seed], float]:
    """How far the measured growth is from the formula, relative."""
    text = cell(net="mlp", norm="batch", values=values)
    return lambda seed: seed[text]["growth"] / growth(values) - 1


def at_half_gain(seed: Seed) -> float:
    none, batch = (seed[cell(net="mlp", norm=norm, values=32, gain=0.5)] for norm in ("none", "batch"))
    return abs(none["log_growth"]) - abs(batch["log_growth"])


B6 = Claim(
    id="B6",
    title="Better gradient flow",
    statement="Batch normalization improves the flow of gradients through deep networks.",
    row="Impact on gradient flow",
    parts=(
        Part(
            "at initialization",
            drift("without norm minus with batch norm; plain ReLU network, He's initialization"),
            gap(NONE, BATCH, "log_growth", abs),
            "growth",
            sign=1,
            delta=0.1,
            refuted_by="gradients grow faster from layer to layer with batch norm than without",
        ),
        Part(
            "initial weights half as large",
            drift("without norm minus with batch norm"),
            at_half_gain,
            "growth",
            sign=1,
            delta=0.1,
            refuted_by="batch norm does not repair a wrong scale of the weights",
        ),
        Part(
            "inputs stay apart",
            "mean cosine between the last activations of two inputs, batch norm minus none",
            gap(BATCH, NONE, "likeness"),
            "growth",
            sign=-1,
            delta=0.1,
            refuted_by="batch norm lets all inputs become alike as much as a network without norms",
        ),
        Part(
            "with skip connections",
            drift("without norm minus with batch norm; each layer beside a skip connection"),
            gap(SKIP["none"], SKIP["batch"], "log_growth", abs),
            "growth",
            sign=1,
            delta=0.1,
            refuted_by="skip connections keep the gradients of a network without norms as even",
        ),
        Part(
            "after ten steps",
            drift("without norm minus with batch norm; after ten steps of SGD at rate 0.01"),
            gap(stepped("none", 10), stepped("batch", 10), "log_growth", abs),
            "growth",
            sign=1,
            delta=0.1,
            refuted_by="ten steps do not bring batch norm's gradients back",
        ),
        *(
            Part(
                f"theory at batch {values}",
                f"growth per layer over the formula's {growth(values):.3f}, minus 1",
                agreement(values),
                "growth",
                sign=0,
                delta=0.02,
                unit="%",
                refuted_by="the measured growth is more than 2 % away from the formula",
            )
            for values in VALUES
        ),
    ),
    design=(
        "Plain ReLU networks at initialization: 24 linear layers of width 500, or 20 convolutions of 64 channels on "
        "16 images of random numbers. The squared gradient with respect to each norm's input, and its growth from "
        "layer to layer towards the input (slope of the logarithm), over network draws. Besides, the linear layers "
        "each beside a skip connection, or after steps of SGD on random inputs with random classes."
    ),
    chart=Chart(
        "growth",
        "values",
        "growth",
        "norm",
        "values per statistic",
        "growth of the squared gradient per layer",
        "By how many values stand behind one statistic: N x H x W for batch norm, H x W for instance norm. The line is "
        "the mean-field formula, which was made for batch norm.",
        only={"gain": None},
        log_x=True,
        theory=growth,
    ),
    tables=(
        Table(
            "Growth of the squared gradient per layer in training",
            "growth",
            {
                f"{norm}, rate {rate}": {
                    "at initialization": (NONE if norm == "none" else BATCH, "growth"),
                    "after 1 step": (stepped(norm, 1, rate), "growth"),
                    "after 10 steps": (stepped(norm, 10, rate), "growth"),
                }
                for norm, rate in (("none", 0.01), ("batch", 0.01), ("batch", 0.1))
            },
        ),
    ),
    pilot=(
        "the rates of the steps of SGD, as at 0.1 the network without norms breaks; the parts, as a few seeds of "
        "the growth at initialization had been seen, and one or two of those on skip connections and on ten steps"
    ),
    published=(
        Published(
            "batch norm makes gradients of deep ReLU networks explode at initialization, by pi / (pi - 1) = 1.467 a "
            "layer in the limit, for every nonlinearity; after one step the network reaches a stable equilibrium",
            "Yang et al., A mean field theory of batch normalization, 2019",
            "read",
        ),
        Published(
            "activation norms stop growth in residual networks", "Lubana et al., Beyond BatchNorm, 2021", "abstract"
        ),
    ),
    limits="The verdict is on initialization, without skip connections; He's initialization is the fair rival.",
)
