"""Norms that treat each position by itself."""

from torch import nn

from normwise.layers.axis import DynamicTanh
from normwise.layers.channel import ChannelLayerNorm, ChannelRMSNorm
from normwise.layers.entries.promises import CONSTANT, ONE_ACTIVATION
from normwise.layers.entry import NormEntry
from normwise.layers.position import layer_token, rms_token

ENTRIES = (
    NormEntry(
        name="layer-token",
        cls=nn.LayerNorm,
        make=layer_token,
        axes=("F",),
        summary="standardizes the features of each token (PyTorch's LayerNorm on the last axis)",
        formula="y = (x - mean) / sqrt(var + eps) * weight + bias",
        pools="features, each position by itself: padding reaches no other, so it takes no mask",
        when="transformers and recurrent networks",
        when_not="channels are on axis 1: that is layer or group; training in half precision on the CPU, where "
        "PyTorch sums the gradients of weight and bias in the half type (nw.functional.layer_norm does not)",
        paper="Ba, Kiros and Hinton, 2016, arXiv:1607.06450",
        kind="position",
    ),
    NormEntry(
        name="rms-token",
        cls=nn.RMSNorm,
        make=rms_token,
        axes=("F",),
        summary="divides the features of each token by their root mean square",
        formula="y = x / sqrt(mean(x^2) + eps) * weight",
        pools="features, each position by itself: padding reaches no other, so it takes no mask",
        when="transformers: cheaper than layer-token",
        when_not="the mean of the features must be removed",
        paper="Zhang and Sennrich, 2019, arXiv:1910.07467",
        kind="position",
        cannot={CONSTANT: "it does not subtract the mean"},
        evidence="Zhang and Sennrich, 2019: 7 to 64 % less running time than layer norm",
    ),
    NormEntry(
        name="channel-layer",
        cls=ChannelLayerNorm,
        axes=("C",),
        summary="standardizes the channels of each position (layer norm with channels on axis 1, nothing permuted)",
        formula="y = (x - mean_np) / sqrt(var_np + eps) * weight + bias",
        pools="channels, each position by itself",
        when="networks like ConvNeXt",
        when_not="plain residual networks made for batch norm; features on the last axis: that is layer-token",
        paper="Ba, Kiros and Hinton, 2016, arXiv:1607.06450",
        evidence="Liu et al., 2022: ConvNeXt-T on ImageNet, 81.4 % with batch norm, 81.5 % with this; in a plain "
        "ResNet it does worse",
        cannot={ONE_ACTIVATION: "ordinary PyTorch operations, which keep what each of them needs"},
    ),
    NormEntry(
        name="channel-rms",
        cls=ChannelRMSNorm,
        axes=("C",),
        summary="divides the channels of each position by their root mean square, with channels on axis 1",
        formula="y = x / sqrt(mean_np(x^2) + eps) * weight + bias",
        pools="channels, each position by itself",
        when="as channel-layer, cheaper",
        when_not="the mean of the channels must be removed; features on the last axis: that is rms-token",
        paper="Zhang and Sennrich, 2019, arXiv:1910.07467",
        cannot={
            CONSTANT: "it does not subtract the mean",
            ONE_ACTIVATION: "ordinary PyTorch operations, which keep what each of them needs",
        },
    ),
    NormEntry(
        name="dyt",
        cls=DynamicTanh,
        summary="squashes every value by itself: dynamic tanh, which measures nothing",
        formula="y = tanh(alpha * x) * weight + bias",
        pools="nothing",
        when="transformers, as a stand-in for layer norm",
        when_not="convolutions in place of batch norm; without tuning its start",
        paper="Zhu et al., 2025, arXiv:2503.10622",
        evidence="Zhu et al., 2025: ViT-B on ImageNet, 82.5 % against layer norm's 82.3 %, ConvNeXt-B 83.7 % both; "
        "DiT-XL is worse, FID 20.8 against 19.9",
        options={"start": float, "axis": int},
        option="start of alpha (default 0.5); axis of the features, 1 (default) or -1; swap takes the layer's",
        cannot={
            CONSTANT: "it does not subtract the mean",
            ONE_ACTIVATION: "ordinary PyTorch operations, which keep what each of them needs",
        },
    ),
)
