"""Checkpoints of NAT and DiNAT that PyTorch saved, as folders that `load` and transformers read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from natten_mlx.models import arguments, dinat
from natten_mlx.models.config import read_json
from natten_mlx.models.files import TORCH, Checkpoint, fill, find_folder
from natten_mlx.models.images import FILE, Preprocessor, stored
from natten_mlx.models.registry import as_dtype, save
from natten_mlx.models.torch_files import Progress, read_torch_checkpoint

_HUB_FILES = (TORCH, "config.json", FILE)


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    family: str | None = None,
    image_size: int = 224,
    config: str | os.PathLike[str] | None = None,
    dtype: mx.Dtype | str | None = None,
    progress: Progress = lambda done, total: None,
) -> dinat.Dinat | dinat.DinatBackbone:
    """Reads a `.pth` of the authors' repository, or a `pytorch_model.bin`, and writes a model folder.

    Nothing in the checkpoint is executed: `natten_mlx.models.torch_files` says how.

    Args:
        source: The checkpoint; or a folder or a name on the hub, for its pytorch_model.bin.
        folder: Gets config.json, model.safetensors and preprocessor_config.json.
        family: `nat` or `dinat`; default: as the file's name begins. The weights of both look alike.
        image_size: That the model was trained for, from which DiNAT's dilations follow: every other block takes the
            largest that fits its feature map.
        config: A config.json; needed for the hub's names (default: the one beside the checkpoint), otherwise derived
            from the weights.
        dtype: Of the weights that are written; default: that of the checkpoint.
        progress: Called after each tensor that was read with the numbers of those read and in all.

    Returns:
        The model.

    Raises:
        ValueError: as `load`, or the checkpoint asks for more than tensors, or is of another model.
    """
    path = arguments.path("convert", "source", source, "the path of a checkpoint or a name on the hub")
    arguments.path("convert", "folder", folder, "the path of a folder")
    image_size = arguments.integer("convert", "image_size", image_size, 1)
    wanted = as_dtype(dtype)
    if path.is_dir() or (not path.exists() and path.suffix not in (".pth", ".pt", ".bin")):
        found = find_folder(source, _HUB_FILES)
        path = found / TORCH
        if not path.exists():
            more = "; its safetensors need no conversion" if any(found.glob("*.safetensors")) else ""
            raise ValueError(f"{found} has no {TORCH} to convert{more}")
    arrays = read_torch_checkpoint(path, progress)
    checkpoint = Checkpoint(path, arrays, dict.fromkeys(arrays, path))
    if "patch_embed.proj.0.weight" in arrays:
        values = (
            derive_config(path, arrays, family or _family(path), image_size)
            if config is None
            else read_json(Path(config))
        )
        model: dinat.Dinat | dinat.DinatBackbone = dinat.Dinat(dinat.DinatConfig.from_dict(values, str(config or path)))
        fill(model, checkpoint, dinat.original_names)
        _save(model, folder, wanted)
        Preprocessor.of_the_authors(image_size).save(folder)
        return model
    if not any("embeddings.patch_embeddings.projection.0.weight" in key for key in arrays):
        raise ValueError(
            f"{path} is not a checkpoint of NAT or DiNAT: it has neither 'patch_embed.proj.0.weight', as the authors' "
            "have, nor '...embeddings.patch_embeddings.projection.0.weight', as the hub's"
        )
    source_config = path.parent / "config.json" if config is None else Path(config)
    loaded = dinat.DinatConfig.from_dict(read_json(source_config), str(source_config))
    backbone = any(key.startswith("hidden_states_norms.") for key in arrays)
    model = dinat.load_dinat(checkpoint, loaded, backbone)
    model.preprocessing = stored(path.parent)
    if model.preprocessing is not None:
        Preprocessor.load(path.parent)  # an error, if it can't be used, before anything is written
    _save(model, folder, wanted)
    return model


def _save(model: nn.Module, folder: str | os.PathLike[str], dtype: mx.Dtype | None) -> None:
    if dtype is not None:
        model.set_dtype(dtype)
    save(model, folder)


def derive_config(path: Path, arrays: dict[str, mx.array], family: str, image_size: int) -> dict[str, Any]:
    """The config.json that fits the weights of a checkpoint with the authors' names."""
    depths: list[int] = []
    while f"levels.{len(depths)}.blocks.0.attn.rpb" in arrays:
        level, depth = len(depths), 0
        while f"levels.{level}.blocks.{depth}.attn.rpb" in arrays:
            depth += 1
        depths.append(depth)
    if not depths:
        raise ValueError(f"{path}: has no 'levels.0.blocks.0.attn.rpb', as NAT and DiNAT have")
    needed = ["patch_embed.norm.weight", "levels.0.blocks.0.mlp.fc1.weight", "head.weight"]
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise ValueError(f"{path}: has no {missing[0]!r}, as a classifier of the authors has")
    rpb = [arrays[f"levels.{level}.blocks.0.attn.rpb"] for level in range(len(depths))]
    if any(table.ndim != 3 for table in rpb):
        raise ValueError(f"{path}: 'attn.rpb' must have three axes: heads, and two of the window")
    embed_dim = arrays["patch_embed.norm.weight"].shape[0]
    kernel_size = (rpb[0].shape[1] + 1) // 2
    values: dict[str, Any] = {
        "model_type": family,
        "embed_dim": embed_dim,
        "num_channels": arrays["patch_embed.proj.0.weight"].shape[1],
        "depths": depths,
        "num_heads": [table.shape[0] for table in rpb],
        "kernel_size": kernel_size,
        "mlp_ratio": arrays["levels.0.blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        "qkv_bias": "levels.0.blocks.0.attn.qkv.bias" in arrays,
        "layer_scale_init_value": 1e-5 if "levels.0.blocks.0.gamma1" in arrays else 0.0,
        "id2label": {str(index): f"LABEL_{index}" for index in range(arrays["head.weight"].shape[0])},
    }
    if family == "dinat":
        largest = [max(1, image_size // 4 // 2**level // kernel_size) for level in range(len(depths))]
        values["dilations"] = [
            [1, most] * (depth // 2) + [1] * (depth % 2) for most, depth in zip(largest, depths, strict=True)
        ]
    return values


def _family(path: Path) -> str:
    for family in dinat.FAMILIES:
        if path.name.startswith(family):
            return family
    raise ValueError(
        f"{path}: say which family it is, 'nat' or 'dinat': the file's name doesn't begin with one of them"
    )
