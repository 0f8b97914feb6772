"""Folders of a model: found on disk or on the hub, read and written. Nothing in them is executed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from natten_mlx.models import arguments
from natten_mlx.models.config import read_json
from natten_mlx.models.torch_files import read_torch_checkpoint

TORCH = "pytorch_model.bin"  # of a transformers model that PyTorch saved
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((?:/[A-Za-z0-9][\w.-]*)*)")
TRANSFORMERS, DIFFUSERS = "model", "diffusion_pytorch_model"  # what these libraries call the file of weights
# Not whatever is there: a repository may hold a pipeline of many models.
_WEIGHTS = tuple(
    f"{stem}{end}"
    for stem in (TRANSFORMERS, DIFFUSERS)
    for end in (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json")
)
_FILES = ("config.json", "preprocessor_config.json", *_WEIGHTS)

# From the name of a parameter here to the names under which a checkpoint stores its parts, one below the other.
Names = Callable[[str], tuple[str, ...]]


def find_model(name: str | os.PathLike[str]) -> Path:
    """The folder of a model, as `find_folder`: with safetensors, or where there are none, with a pytorch_model.bin."""
    folder = find_folder(name)
    if folder == Path(name) or any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        return folder
    return find_folder(name, (*_FILES, TORCH))


def find_folder(name: str | os.PathLike[str], files: Sequence[str] = _FILES) -> Path:
    """The folder of a model: `name` itself, or what the hub has under `owner/model`, or in a folder of it under
    `owner/model/folder`: `files`, downloaded once and kept in the hub's cache.

    Raises `ValueError` if there is neither, and says where it was looked for.
    """
    folder = arguments.path("load", "path_or_hub_name", name, "the path of a folder or a name on the hub")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(
            f"{folder} is a file; expected a folder with config.json and safetensors, or a name on the hub"
        )
    match = _HUB_NAME.fullmatch(str(name))
    if match is None:
        raise ValueError(f"there is no folder {str(name)!r}, and a name on the hub looks like owner/model")
    repository, inner = match[1], match[2].removeprefix("/")
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        raise ValueError(
            f"there is no folder {str(name)!r}, and loading it from the hub needs huggingface_hub: "
            "pip install 'natten-mlx[models]'"
        ) from None
    patterns = [f"{inner}/{file}" if inner else file for file in files]
    try:
        found = Path(snapshot_download(repository, allow_patterns=patterns)) / inner
    except Exception as error:  # of requests, httpx and huggingface_hub, whichever version is installed
        reason = " ".join(str(error).split()) or type(error).__name__  # the last lines say that one must log in
        raise ValueError(
            f"can't load {str(name)!r}: looked for {', '.join(patterns)} in {constants.ENDPOINT}/{repository} and in "
            f"the cache {constants.HF_HUB_CACHE}, and there is no folder of that name here ({reason})"
        ) from None
    if not found.is_dir():
        raise ValueError(f"{repository} on the hub has no folder {inner!r} with {', '.join(files)}")
    return found


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by their stored names, and the file that each of them came from.

    `source` is their file, or the index of several.
    """

    source: Path
    arrays: dict[str, mx.array]
    files: dict[str, Path]

    def where(self, key: str) -> Path:
        """The file that has a tensor, or should have it."""
        return self.files.get(key, self.source)


def read_weights(folder: Path, stem: str) -> Checkpoint:
    """The tensors of `stem`.safetensors, of the files that `stem`.safetensors.index.json lists, or of a
    pytorch_model.bin, nothing of which is executed."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    arrays: dict[str, mx.array] = {}
    files: dict[str, Path] = {}
    source = single if single.exists() else index
    if single.exists():
        paths = [single]
    elif index.exists():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise ValueError(f"{index}: 'weight_map' must map the names of tensors to files")
        if any(Path(name).name != name for name in listed.values()):
            raise ValueError(f"{index}: 'weight_map' must name files of the same folder")
        files = {key: folder / name for key, name in listed.items()}
        paths = sorted(set(files.values()))
    elif stem == TRANSFORMERS and (folder / TORCH).exists():
        arrays = read_torch_checkpoint(folder / TORCH)
        return Checkpoint(folder / TORCH, arrays, dict.fromkeys(arrays, folder / TORCH))
    else:
        others = f", {index.name} nor {TORCH}" if stem == TRANSFORMERS else f" nor {index.name}"
        raise ValueError(
            f"{folder} has neither {single.name}{others}; the authors' .pth files must be converted first, see "
            "natten-mlx convert --help"
        )
    for path in paths:
        found = read_safetensors(path)
        arrays |= found
        files |= dict.fromkeys(found, path)
    return Checkpoint(source, arrays, files)


def read_safetensors(path: Path) -> dict[str, mx.array]:
    """The tensors of one file."""
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}")
    try:
        found = mx.load(str(path), format="safetensors")
        mx.eval(found)
    except Exception as error:
        raise ValueError(f"{path} is not a safetensors file that MLX can read: {error}") from None
    assert isinstance(found, dict)
    return found


def fill(
    model: nn.Module, checkpoint: Checkpoint, names: Names, unused: Callable[[str], bool] = lambda _: False
) -> None:
    """Sets every parameter of `model`, and uses every tensor of the checkpoint but those that `unused` admits.

    Raises `ValueError` for tensors that are missing, left over, of another shape or not of a floating type.
    """
    left = {key for key in checkpoint.arrays if not unused(key)}
    loaded = []
    for name, parameter in _parameters(model):
        keys = names(name)
        missing = [key for key in keys if key not in checkpoint.arrays]
        if missing:
            raise ValueError(
                f"{checkpoint.where(missing[0])}: the weights have no {missing[0]!r}, which {type(model).__name__} "
                f"needs for its {name} of shape {list(parameter.shape)}"
            )
        left -= set(keys)
        parts = [checkpoint.arrays[key] for key in keys]
        expected = _stored_shape(parameter, len(keys))
        for key, part in zip(keys, parts, strict=True):
            if list(part.shape) != expected:
                found = f"{key!r} has shape {list(part.shape)}"
                raise ValueError(f"{checkpoint.where(key)}: {found}, the configuration asks for {expected}")
            if not mx.issubdtype(part.dtype, mx.floating):
                raise ValueError(f"{checkpoint.where(key)}: {key!r} must be of a floating type, got {part.dtype}")
        loaded.append((name, _join(parts, parameter)))
    if left:
        key = min(left)
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        kind = f"a {type(model).__name__} of this configuration"
        raise ValueError(f"{checkpoint.where(key)}: holds {key!r}{more}, which {kind} doesn't have")
    model.load_weights(loaded)
    mx.eval(model.parameters())


def stored_weights(model: nn.Module, names: Names) -> dict[str, mx.array]:
    """The parameters of `model` under the names, and in the layout, in which a checkpoint stores them."""
    stored: dict[str, mx.array] = {}
    for name, parameter in _parameters(model):
        keys = names(name)
        shape = _stored_shape(parameter, len(keys))
        array = mx.moveaxis(parameter, -1, 1) if parameter.ndim == 4 else parameter
        for key, part in zip(keys, mx.split(array, len(keys)), strict=True):
            stored[key] = mx.contiguous(part.reshape(shape))
    return stored


def _stored_shape(parameter: mx.array, parts: int) -> list[int]:
    """Of each tensor that `parameter` is made of. Four axes are a convolution, whose channels come first there."""
    shape = list(parameter.shape)
    if len(shape) == 4:
        shape = [shape[0], shape[3], shape[1], shape[2]]
    if parts == 1:
        return shape
    return shape[1:] if shape[0] == parts else [shape[0] // parts, *shape[1:]]


def _parameters(model: nn.Module) -> list[tuple[str, mx.array]]:
    return cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))


def _join(parts: list[mx.array], parameter: mx.array) -> mx.array:
    if parameter.ndim == 4:
        return mx.moveaxis(parts[0], 1, -1)
    return mx.concatenate(parts).reshape(parameter.shape) if len(parts) > 1 else parts[0]


def write_folder(
    folder: str | os.PathLike[str], config: Mapping[str, Any], stem: str, weights: dict[str, mx.array]
) -> None:
    """Writes config.json and `stem`.safetensors into a folder, which is made if need be."""
    target = arguments.path("save", "path", folder, "the path of a folder")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; expected a folder to write into")
    target.mkdir(parents=True, exist_ok=True)
    mx.eval(weights)
    part = target / f"{stem}.part.safetensors"  # complete, or not there: somebody may be reading the old one
    mx.save_safetensors(str(part), weights, metadata={"format": "pt"})
    os.replace(part, target / f"{stem}.safetensors")
    (target / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
