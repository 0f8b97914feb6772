"""Reads checkpoints that PyTorch saved, without PyTorch and without running anything that is in them.

Such a file is a zip of raw storages and a pickle, and a pickle is a program. Here it may call four names,
which are answered by functions of this module; anything else is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

_STORAGES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # NumPy has no such type: the bits
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Refused(ValueError):
    """What this module says of a file, in full."""


class _Sealed:
    """What is handed to a pickle: its programs can also set attributes of things that they got."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it asks to change what it was answered")


@dataclass(frozen=True)
class _Function(_Sealed):
    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


@dataclass(frozen=True)
class _StorageType(_Sealed):
    name: str


@dataclass(frozen=True)
class _Storage(_Sealed):
    type: _StorageType
    values: np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class _Tensor(_Sealed):
    array: mx.array


Progress = Callable[[int, int], None]  # tensors read, tensors in all


def read_torch_checkpoint(
    path: str | os.PathLike[str], progress: Progress = lambda done, total: None
) -> dict[str, mx.array]:
    """The tensors of a state dict, or of the one that a training checkpoint holds under `state_dict` or `model`.

    Raises `ValueError` for other files, and for a pickle that asks for anything but tensors in containers.
    """
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"there is no checkpoint {str(source)!r}")
    try:
        with zipfile.ZipFile(source) as archive:
            found = _unpickle(source, archive, progress)
    except zipfile.BadZipFile:
        raise ValueError(
            f"{source} is not a zip file, as torch.save writes since version 1.6; older files must be saved again"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{source}: expected a state dict, names with tensors, got {type(found).__name__}")
    others = [key for key, value in found.items() if not isinstance(value, _Tensor)]
    if others:
        raise ValueError(f"{source}: {others[0]!r} should be a tensor, got {type(found[others[0]]).__name__}")
    return {key: tensor.array for key, tensor in found.items()}


def _stored(source: Path, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """A file of the archive that is in it as it is: compression could unfold to any size."""
    record = archive.getinfo(name)
    if record.compress_type != zipfile.ZIP_STORED:
        raise _Refused(f"{source}: refused, because {name} is compressed, which torch.save doesn't do")
    return record


def _check_memo(source: Path, program: bytes) -> None:
    """Refuses numbers of memo entries that the program is too short to fill: Python makes room for all below them."""
    for opcode, argument, _ in pickletools.genops(program):
        if "PUT" in opcode.name and int(argument or 0) > len(program):
            raise _Refused(f"{source}: refused, because data.pkl asks for memory of {argument} entries")


def _unpickle(source: Path, archive: zipfile.ZipFile, progress: Progress) -> Any:
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ValueError(f"{source}: expected one data.pkl, as torch.save writes it, found {len(programs)}")
    folder = programs[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(_stored(source, archive, order)) != b"little":
        raise ValueError(f"{source}: only little-endian checkpoints can be read")
    record = _stored(source, archive, programs[0])
    total = sum(name.startswith(f"{folder}data/") for name in archive.namelist())
    try:
        program = archive.read(record)
        _check_memo(source, program)
        return _Unpickler(io.BytesIO(program), source, archive, folder, lambda done: progress(done, total)).load()
    except _Refused:
        raise
    except Exception as error:  # a damaged pickle fails in any way that its opcodes can
        raise ValueError(f"{source}: data.pkl can't be read: {type(error).__name__}: {error}") from None


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, program: Any, source: Path, archive: zipfile.ZipFile, folder: str, progress: Callable[[int], None]
    ) -> None:
        super().__init__(program)
        self.progress = progress
        self.source, self.archive, self.folder = source, archive, folder
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Function(self._tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Function(_parameter)
        if module == "torch" and name in _STORAGES:
            return _StorageType(name)
        raise _Refused(f"{self.source}: refused, because it asks to run {module}.{name}; only tensors are read")

    def persistent_load(self, identity: Any) -> _Storage:
        kind, storage_type, key, _, count = identity
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise _Refused(f"{self.source}: refused, because it asks for {kind!r}; only tensors are read")
        if key not in self.storages:
            dtype = _STORAGES[storage_type.name]
            record = _stored(self.source, self.archive, f"{self.folder}data/{key}")
            if record.file_size != count * dtype.itemsize:
                raise _Refused(f"{self.source}: storage {key} isn't {count} raw values of {storage_type.name}")
            self.storages[key] = _Storage(storage_type, np.frombuffer(self.archive.read(record), dtype))
            self.progress(len(self.storages))
        return self.storages[key]

    def _tensor(self, storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise _Refused(f"{self.source}: a tensor without a storage")
        values = storage.values
        numbers = [offset, *shape, *strides]
        if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise _Refused(f"{self.source}: a tensor of shape {shape} with strides {strides}")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= values.size:
            raise _Refused(f"{self.source}: a tensor of shape {shape} reaches past the end of its storage")
        if math.prod(shape) > values.size:  # with strides of 0, which could unfold to any size
            raise _Refused(f"{self.source}: a tensor of shape {shape} is larger than its storage")
        if 0 in shape:
            view = np.zeros(shape, values.dtype)
        else:
            steps = [stride * values.itemsize for stride in strides]
            view = np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)
        array = mx.array(np.ascontiguousarray(view.reshape(shape)))
        return _Tensor(array.view(mx.bfloat16) if storage.type.name == "BFloat16Storage" else array)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor
