"""I1: instance normalization keeps style consistent."""

from normwise.claims.claim import Chart, Claim, Part, Published, Seed, cell, gap
from normwise.claims.experiments.stylization import STEPS


def advantage(kind: str, measure: str, seed: Seed) -> float:
    return gap(cell(norm="instance", images=kind), cell(norm="batch", images=kind), measure)(seed)


def both(kind: str) -> tuple[str, str]:
    return cell(norm="instance", images=kind), cell(norm="batch", images=kind)


I1 = Claim(
    id="I1",
    title="Style consistency",
    statement="Instance normalization removes each image's own style and suits style transfer and generation.",
    row="Use case",
    parts=(
        Part(
            "style loss",
            "log10 of the area under the style-loss curve, instance minus batch norm, on photographs held out",
            gap(*both("original"), "log_area"),
            "stylization",
            sign=-1,
            delta=0.05,
            refuted_by="batch norm reaches the style as fast",
            unit="decades",
        ),
        Part(
            "whole loss",
            "log10 of the area under the curve of style and content loss, instance minus batch norm",
            gap(*both("original"), "log_total"),
            "stylization",
            sign=-1,
            delta=0.02,
            refuted_by="what is won in style is lost in content",
            unit="decades",
        ),
        Part(
            "less so on images of one style",
            "the same advantage in style loss on images that were all given another texture's style first, minus "
            "that on the original images",
            lambda seed: advantage("style", "log_area", seed) - advantage("original", "log_area", seed),
            "stylization",
            sign=1,
            delta=0.05,
            refuted_by="instance norm is as much better on images of one style: it is not style that it removes",
            unit="decades",
        ),
        Part(
            "contrast and light are removed",
            "largest change of the output, in standard deviations, when contrast and brightness of every channel "
            "change",
            lambda seed: seed[cell(norm="instance", flat="here", eps=1e-5)]["change"],
            "amplify",
            sign=0,
            delta=0.01,
            refuted_by="instance norm is not invariant to a channel's contrast and brightness",
        ),
    ),
    design=(
        f"A feed-forward stylization network of five convolutions, {STEPS} steps of 4 crops, Adam, the rate tuned for "
        "each norm by the whole loss; a perceptual loss (Gram matrices and features). Each seed holds another "
        "photograph out and is judged on it, so that the interval is one over photographs. Images as they are, with "
        "every channel's histogram made flat, or all in another texture's style."
    ),
    chart=Chart(
        "stylization",
        "images",
        "log_area",
        "norm",
        "images",
        "log10 of the area under the style-loss curve",
        "Lower is better; on photographs that were not trained on. Below, one of them by each network.",
    ),
    published=(
        Published(
            "instance norm's advantage stays when contrast is normalized and shrinks much when style is",
            "Huang and Belongie, Arbitrary style transfer in real-time, 2017, figure 1",
            "abstract",
        ),
    ),
    pilot="the weight of the content loss, the number of steps, the size of crops and the grid of rates",
    limits="A small network, a short training, few photographs; which network the loss rests on is said below.",
)
