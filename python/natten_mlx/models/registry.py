"""`load` and `save`: which model a folder holds, and what is written for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from natten_mlx.models import dinat, images, ltx_config, ltx_decoder, ltx_network
from natten_mlx.models.config import read_json, sizes_of
from natten_mlx.models.files import DIFFUSERS, TRANSFORMERS, find_model, read_weights, stored_weights, write_folder

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def load(
    path_or_hub_name: str | os.PathLike[str], dtype: mx.Dtype | str | None = None, *, backbone: bool = False
) -> tuple[Any, Any]:
    """Loads a model from a folder with config.json and safetensors, or from the hub.

    NAT and DiNAT may also be a pytorch_model.bin, as their authors' are on the hub: `torch_files` reads it without
    running anything that is in it.

    Args:
        path_or_hub_name: A folder, or a name such as `shi-labs/dinat-mini-in1k-224`, or `owner/pipeline/folder`.
        dtype: Of the weights, and so of the computation; default: that of the file.
        backbone: The feature maps instead of the classes (NAT and DiNAT).

    Returns:
        (model, config): a `Dinat` or `DinatBackbone` with its `DinatConfig`, or an `LtxDecoder` with its
        `LtxDecoderConfig`. The model is in evaluation mode, until `model.train()`.

    Raises:
        ValueError: nothing was found under this name; a configuration that asks for something unknown; weights that are
            missing, left over or of another shape. The message names file and key.
    """
    wanted = as_dtype(dtype)
    folder = find_model(path_or_hub_name)
    source = folder / "config.json"
    values = read_json(source)
    model: nn.Module
    config: dinat.DinatConfig | ltx_config.LtxDecoderConfig
    with sizes_of(str(source)):
        if values.get("_class_name") == ltx_config.CLASS_NAME:
            if backbone:
                raise ValueError(f"{folder} holds a video decoder, which has no backbone")
            config = ltx_config.LtxDecoderConfig.from_dict(values, str(source))
            model = ltx_decoder.load_ltx_decoder(read_weights(folder, DIFFUSERS), config)
        elif values.get("model_type") in dinat.FAMILIES:
            config = dinat.DinatConfig.from_dict(values, str(source))
            model = dinat.load_dinat(read_weights(folder, TRANSFORMERS), config, backbone)
            model.preprocessing = images.stored(folder)
        else:
            raise ValueError(
                f"{source}: 'model_type' must be one of {', '.join(map(repr, dinat.FAMILIES))}, or '_class_name' "
                f"{ltx_config.CLASS_NAME!r}, got {values.get('model_type', values.get('_class_name'))!r}"
            )
    if wanted is not None:
        model.set_dtype(wanted)
        mx.eval(model.parameters())
    model.eval()
    return model, config


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes config.json and safetensors with the hub's names into the folder `path`, so that `load` and the public
    implementation read them.

    Of NAT and DiNAT also preprocessor_config.json: the one that the model was loaded with; otherwise, where the folder
    has none, that of the authors' evaluation at 224x224.

    Raises:
        ValueError: not a model of `natten_mlx.models`, or `path` is a file.
    """
    if isinstance(model, ltx_decoder.LtxDecoder):
        write_folder(path, model.config.to_dict(), DIFFUSERS, stored_weights(model, ltx_network.hub_names))
        return
    if not isinstance(model, (dinat.Dinat, dinat.DinatBackbone)):
        raise ValueError(f"save expects a model of natten_mlx.models, got {type(model).__name__}")
    config, family = model.config.to_dict(), model.config.model_type
    if isinstance(model, dinat.Dinat):
        config["architectures"] = [f"{family.capitalize()}ForImageClassification"]
        prefix = f"{family}."
    else:
        config["architectures"] = [f"{family.capitalize()}Backbone"]
        config["out_features"] = list(model.norms)
        prefix = ""
    write_folder(path, config, TRANSFORMERS, stored_weights(model, dinat.hub_names(prefix)))
    if model.preprocessing is not None:
        images.store(path, model.preprocessing)
    elif images.stored(Path(path)) is None:
        images.Preprocessor.of_the_authors().save(path)


def as_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    """One of the floating types that weights have, by itself or by name."""
    if dtype is None:
        return None
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype}")
    return found
