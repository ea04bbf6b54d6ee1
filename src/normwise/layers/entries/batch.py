"""Norms that pool across the batch, and the channel affine they leave when nothing is pooled."""

from normwise.layers.batch import BatchNorm
from normwise.layers.entries.promises import CONSTANT
from normwise.layers.entry import NormEntry
from normwise.layers.within import ChannelAffine

ENTRIES = (
    NormEntry(
        name="none",
        cls=ChannelAffine,
        fixed=True,
        summary="no normalization: a learned weight and bias per channel",
        formula="y = x * weight + bias",
        pools="nothing",
        when="as the control arm: what does normalization buy at all?",
        when_not="deep plain networks without careful initialization",
        evidence="De and Smith, 2020: residual networks train without a norm once each branch starts small",
        cannot={CONSTANT: "it does not subtract the mean"},
    ),
    NormEntry(
        name="batch",
        cls=BatchNorm,
        fixed=True,
        axes=("N,HW",),
        summary="standardizes each channel over the batch; remembers the statistics for evaluation",
        formula="y = (x - mean_c) / sqrt(var_c + eps) * weight + bias",
        pools="instances and positions, each channel by itself",
        when="many values per statistic (N*H*W); fast inference: it folds into the convolution before it",
        when_not="few values per statistic, batches that are no random draw, accumulated gradients",
        paper="Ioffe and Szegedy, 2015, arXiv:1502.03167",
        evidence="Ioffe and Szegedy, 2015: Inception reached 72.2 % in 13.3 million steps instead of 31.0. Wu and "
        "He, 2018: ResNet-50 on ImageNet, error 23.6 % at 32 images a GPU, 34.7 % at 2",
    ),
)
