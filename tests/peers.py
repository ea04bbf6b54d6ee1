"""Runs in another Python, with Keras and Flax: their layers before and after a training batch, as one .npz file.

    python tests/peers.py FOLDER

FOLDER/x.npz holds x (N, H, W, C) and, for the way back, arrays by `<library>.<name>`.
"""

# pyright: reportMissingImports=false

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
import flax.linen as linen
import jax.numpy as jnp
import keras
import numpy as np
from flax import nnx

GROUPS = 2


def main(folder: Path) -> None:
    given = dict(np.load(folder / "x.npz"))
    x, made = given["x"], {}
    layers = {
        "batch": keras.layers.BatchNormalization(),
        "layer-token": keras.layers.LayerNormalization(),
        "group": keras.layers.GroupNormalization(GROUPS),
    }
    for name, layer in layers.items():
        layer.build(x.shape)
        layer.set_weights([given[f"start.{i}"] for i in range(len(layer.weights))])
        if name == "batch":
            layer(x, training=True)
        for attribute in ("gamma", "beta", "moving_mean", "moving_variance"):
            if hasattr(layer, attribute):
                made[f"keras.{name}.{attribute}"] = np.asarray(getattr(layer, attribute))
        made[f"keras.{name}.y"] = np.asarray(layer(x, training=False))
    flax_layers(x, given, made)
    back(x, given, made)
    config = layers["batch"].get_config()
    made["config.keras"] = config["epsilon"], config["momentum"]
    np.savez(folder / "made.npz", **made)


def flax_layers(x, given, made):
    batch = linen.BatchNorm(use_running_average=False)
    params = {"scale": jnp.asarray(given["start.0"]), "bias": jnp.asarray(given["start.1"])}
    stats = {"mean": jnp.asarray(given["start.2"]), "var": jnp.asarray(given["start.3"])}
    _, new = batch.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    made["linen.batch.mean"], made["linen.batch.var"] = new["batch_stats"]["mean"], new["batch_stats"]["var"]
    made["linen.batch.y"] = linen.BatchNorm(use_running_average=True).apply({"params": params, **new}, x)
    made["linen.layer-token.y"] = linen.LayerNorm().apply({"params": params}, x)
    made["linen.group.y"] = linen.GroupNorm(GROUPS).apply({"params": params}, x)
    module = nnx.BatchNorm(x.shape[-1], rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = params["scale"], params["bias"]
    module(jnp.asarray(x), use_running_average=False)
    for name in ("scale", "bias", "mean", "var"):
        made[f"nnx.batch.{name}"] = np.asarray(getattr(module, name)[...])
    made["config.nnx"] = module.epsilon, module.momentum
    made["nnx.batch.y"] = module(jnp.asarray(x), use_running_average=True)


def back(x, given, made):
    """What normwise wrote, evaluated here."""
    layer = keras.layers.BatchNormalization(epsilon=float(given["to.epsilon"]), momentum=float(given["to.momentum"]))
    layer.build(x.shape)
    names = "gamma", "beta", "moving_mean", "moving_variance"
    layer.set_weights([given[f"to.keras.{name}"] for name in names])
    made["back.keras.y"] = np.asarray(layer(x, training=False))
    variables = {
        "params": {name: given[f"to.flax.{name}"] for name in ("scale", "bias")},
        "batch_stats": {name: given[f"to.flax.{name}"] for name in ("mean", "var")},
    }
    layer = linen.BatchNorm(use_running_average=True, epsilon=float(given["to.epsilon"]))
    made["back.flax.y"] = layer.apply(variables, x)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
