"""Norms that blend batch and instance statistics."""

from normwise.layers.blend import BatchInstanceNorm, IBNorm, SwitchableNorm
from normwise.layers.enhanced import InstanceEnhancedNorm
from normwise.layers.entries.promises import CONSTANT, PIXELS
from normwise.layers.entry import NormEntry

ENTRIES = (
    NormEntry(
        name="batch-instance",
        cls=BatchInstanceNorm,
        axes=("N,HW", "HW"),
        summary="blends batch and instance norm by a learned gate per channel, which starts at batch",
        formula="y = (gate * batch(x) + (1 - gate) * instance(x)) * weight + bias",
        pools="as batch and as instance",
        when="some channels carry style that helps, others style that disturbs",
        when_not="inference must fold into the convolution; few values per statistic",
        paper="Nam and Kim, 2018, arXiv:1805.07925",
        evidence="Nam and Kim, 2018: instance norm alone harms classification, the gated blend does better than batch",
    ),
    NormEntry(
        name="switchable",
        cls=SwitchableNorm,
        axes=("HW", "C,HW", "N,HW"),
        summary="learns how much of instance, layer and batch statistics to take, starting at equal thirds",
        formula="y = (x - sum w_k mean_k) / sqrt(sum v_k var_k + eps) * weight + bias",
        pools="as instance, layer and batch",
        when="one network must serve several batch sizes",
        when_not="inference must fold into the convolution",
        paper="Luo et al., 2019, arXiv:1806.10779",
        evidence="Luo et al., 2019: ResNet-50 on ImageNet, 76.9 % correct at 32 images a GPU and 75.6 % at 2; batch "
        "76.4 % and 65.3 %",
    ),
    NormEntry(
        name="ibn",
        cls=IBNorm,
        axes=("HW", "N,HW"),
        summary="instance norm for the first channels, batch norm for the rest",
        formula="y = (x - mean) / sqrt(var + eps) * weight + bias, moments of nc for c < ratio * C, else of c",
        pools="as instance for the first channels, as batch for the rest",
        when="early layers of a network that must stand other lighting or style",
        when_not="late layers; planes of few values; inference must fold into the convolution",
        paper="Pan et al., 2018, arXiv:1807.09441",
        evidence="Pan et al., 2018: ResNet-50 on ImageNet, error 24.3 % to 22.5 %; from GTA to Cityscapes, mean IoU "
        "29.0 to 33.9",
        options={"ratio": float},
        option="ratio, the share of instance norm (default 0.5)",
        cannot={PIXELS: "one value has no variance, instance norm's half would be the bias: refused"},
    ),
    NormEntry(
        name="instance-enhanced",
        cls=InstanceEnhancedNorm,
        axes=("N,HW", "HW"),
        summary="batch norm whose weight each instance's own mean turns up or down: attention without a layer",
        formula="y = (x - mean_c) / sqrt(var_c + eps) * weight * sigmoid(gain * mean_nc + offset) + bias",
        pools="as batch, and as instance for the attention",
        when="a residual network that would carry channel attention, without its layers",
        when_not="inference must fold into the convolution; few values per statistic",
        paper="Liang et al., 2020, arXiv:1908.04008",
        evidence="Liang et al., 2020: ResNet-164 on CIFAR-100, 74.3 % correct with batch norm, 77.1 % with it",
        cannot={CONSTANT: "the attention follows the mean"},
    ),
)
