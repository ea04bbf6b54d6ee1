"""Norms that pool within an instance."""

from normwise.layers.axis import GlobalResponseNorm
from normwise.layers.entries.promises import CONSTANT, ONE_ACTIVATION, PIXELS
from normwise.layers.entry import NormEntry
from normwise.layers.groups import group, layer
from normwise.layers.response import FilterResponseNorm
from normwise.layers.within import GroupNorm, InstanceNorm

ENTRIES = (
    NormEntry(
        name="instance",
        cls=InstanceNorm,
        axes=("HW",),
        summary="standardizes each channel of each instance by itself",
        formula="y = (x - mean_nc) / sqrt(var_nc + eps) * weight + bias",
        pools="positions, each instance and channel by itself",
        when="contrast and style should not matter; an output must not depend on its neighbours",
        when_not="planes of few values (1x1 to 2x2), directly before global pooling, style that is the label",
        paper="Ulyanov, Vedaldi and Lempitsky, 2016, arXiv:1607.08022",
        cannot={PIXELS: "one value has no variance, every output would be the bias: refused"},
        evidence="Wu and He, 2018: ResNet-50 on ImageNet, error 28.4 % against batch's 23.6 %. Huang and Belongie, "
        "2017: its advantage in style transfer shrinks where all images have one style already",
    ),
    NormEntry(
        name="group",
        cls=GroupNorm,
        make=group,
        axes=("C/g,HW",),
        summary="standardizes groups of channels of each instance",
        formula="y = (x - mean_ng) / sqrt(var_ng + eps) * weight + bias",
        pools="positions and the channels of a group, each instance by itself",
        when="small batches: the result does not depend on the batch",
        when_not="inference must fold into the convolution",
        paper="Wu and He, 2018, arXiv:1803.08494",
        options={"groups": int, "size": int},
        option="groups (default: the largest divisor up to 8), or size=channels per group",
        cannot={PIXELS: "where a group is one channel, one value has no variance: refused"},
        evidence="Wu and He, 2018: ResNet-50 on ImageNet, error 24.1 % at 32 images a GPU and at 2; batch 23.6 % and "
        "34.7 %. Luo et al., 2019: the same at 2 images, 75.9 % correct against 65.3 %",
    ),
    NormEntry(
        name="layer",
        cls=GroupNorm,
        make=layer,
        axes=("C,HW",),
        summary="standardizes all channels of each instance together (group:1)",
        formula="y = (x - mean_n) / sqrt(var_n + eps) * weight + bias",
        pools="positions and channels, each instance by itself",
        when="small batches, and the channels are of one kind",
        when_not="channels of different scale must stay comparable",
        paper="Ba, Kiros and Hinton, 2016, arXiv:1607.06450",
        evidence="Wu and He, 2018: ResNet-50 on ImageNet, error 25.3 % against batch's 23.6 % and group's 24.1 %",
    ),
    NormEntry(
        name="filter-response",
        cls=FilterResponseNorm,
        axes=("HW",),
        summary="divides each channel of each instance by its root mean square; a learned threshold replaces the ReLU",
        formula="y = max(x / sqrt(mean_nc(x^2) + eps) * weight + bias, threshold)",
        pools="positions, each instance and channel by itself",
        when="small batches, in place of norm and ReLU together",
        when_not="planes of one value (only the sign is left); another activation follows at once",
        paper="Singh and Krishnan, 2020, arXiv:1911.09737",
        cannot={
            CONSTANT: "it does not subtract the mean",
            ONE_ACTIVATION: "without the native kernels the threshold keeps what it compares beside x",
        },
    ),
    NormEntry(
        name="grn",
        cls=GlobalResponseNorm,
        axes=("HW",),
        summary="strengthens the channels that respond more than the instance's others do",
        formula="y = x + x * (G_c / (mean over channels of G + eps)) * weight + bias, G_c = sqrt(sum_nc(x^2))",
        pools="positions, then compares channels, each instance by itself",
        when="inside an MLP of ConvNeXt V2 (axis=-1: features on the last axis), where channels fall silent",
        when_not="as the only norm: it does not bound the scale",
        paper="Woo et al., 2023, arXiv:2301.00808",
        options={"axis": int},
        option="axis of the channels: 1 (default) or -1; swap takes the layer's",
        cannot={CONSTANT: "it does not subtract the mean"},
    ),
)
