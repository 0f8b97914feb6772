"""Image files to the arrays that a model wants, as its preprocessor_config.json says."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from natten_mlx.models import arguments
from natten_mlx.models.config import Fields, is_number, read_json
from natten_mlx.models.files import find_folder

if TYPE_CHECKING:
    from PIL import Image

FILE = "preprocessor_config.json"
_PROCESSORS = (
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "ViTFeatureExtractor",
    "BitImageProcessor",
    "BitImageProcessorFast",
)
# Keys that some of `do_...` switch off, and those that say nothing about the computation here.
_OPTIONAL = {"size", "crop_size", "rescale_factor", "image_mean", "image_std"}
_MEANINGLESS = (
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "default_to_square",
    "device", "data_format", "input_data_format", "return_tensors", "disable_grouping",
)  # fmt: skip
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BILINEAR, _BICUBIC = 2, 3  # Pillow's numbers, which the files use
_LARGEST = 2**14  # side that an image is resized to, and number that its pixels meet


@dataclass(frozen=True)
class Preprocessor:
    """Resize, crop, scale and normalise, each where asked for, in this order.

    `size` is (height, width), or one number for the shorter side; `crop` is (height, width).
    """

    size: tuple[int, int] | int | None = (224, 224)
    resample: int = _BILINEAR
    crop: tuple[int, int] | None = None
    factor: float | None = 1 / 255
    mean: tuple[float, ...] | None = _IMAGENET_MEAN
    std: tuple[float, ...] | None = _IMAGENET_STD

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"[Preprocessor] mean and std: both or none, got {self.mean!r} and {self.std!r}")
        for name, value in _read(self.to_dict(), "[Preprocessor]").items():
            object.__setattr__(self, name, value)

    @classmethod
    def load(cls, path_or_hub_name: str | os.PathLike[str]) -> Preprocessor:
        """Reads preprocessor_config.json of a folder or of a name on the hub. Raises `ValueError` as `load` does."""
        path = find_folder(path_or_hub_name) / FILE
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = FILE) -> Preprocessor:
        """Reads and checks the content of a preprocessor_config.json."""
        return cls(**_read(values, source))

    @classmethod
    def of_the_authors(cls, image_size: int = 224) -> Preprocessor:
        """That of the authors' evaluation, of a model for this size."""
        image_size = arguments.integer("Preprocessor", "image_size", image_size, 1)
        resized = math.floor(image_size / 0.875) if image_size < 384 else image_size
        return cls(size=resized, resample=_BICUBIC, crop=(image_size, image_size))

    def to_dict(self) -> dict[str, Any]:
        """The content of a preprocessor_config.json."""
        is_short = isinstance(self.size, int)
        values = {
            "image_processor_type": "BitImageProcessor" if self.crop or is_short else "ViTImageProcessor",
            "do_resize": self.size is not None,
            "size": {"shortest_edge": self.size} if is_short else _object(self.size),
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "crop_size": _object(self.crop),
            "do_rescale": self.factor is not None,
            "rescale_factor": self.factor,
            "do_normalize": self.mean is not None,
            "image_mean": _list(self.mean),
            "image_std": _list(self.std),
        }
        return {key: value for key, value in values.items() if value is not None}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes preprocessor_config.json into a folder."""
        store(folder, (json.dumps(self.to_dict(), indent=2) + "\n").encode())

    def __call__(self, images: Sequence[str | os.PathLike[str] | Image.Image]) -> mx.array:
        """Files or Pillow images, all of one size after resizing -> [B, H, W, 3] float32."""
        if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
            raise ValueError(f"[Preprocessor] images must be a list of files or Pillow images, got {images!r}")
        arrays = [self._prepare(image) for image in images]
        if not arrays:
            raise ValueError("expected at least one image")
        for image, array in zip(images, arrays, strict=True):
            if array.shape != arrays[0].shape:
                shapes = f"{array.shape[:2]} and {arrays[0].shape[:2]}"
                raise ValueError(f"{image} has another size than the images before it after resizing: {shapes}")
        return mx.array(np.stack(arrays))

    def _prepare(self, image: str | os.PathLike[str] | Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        picture = open_image(image)
        if 0 in picture.size:
            raise ValueError(
                f"{image}: {picture.height}x{picture.width} pixels: an image has at least one on each side"
            )
        if self.size is not None:
            size = self.size
            if isinstance(size, int):
                short, long = sorted(picture.size)
                scaled = int(size * long / short)
                if scaled > max(long, _LARGEST):
                    raise ValueError(
                        f"{image}: {picture.height}x{picture.width} pixels are too narrow: with {size} on the shorter "
                        f"side the longer one would have {scaled}, and at most {_LARGEST} are made"
                    )
                size = (size, scaled) if picture.height <= picture.width else (scaled, size)
            picture = picture.resize((size[1], size[0]), self.resample)
        if self.crop is not None:
            top, left = (picture.height - self.crop[0]) // 2, (picture.width - self.crop[1]) // 2
            if top < 0 or left < 0:
                raise ValueError(f"{image}: {picture.height}x{picture.width} pixels can't be cropped to {self.crop}")
            picture = picture.crop((left, top, left + self.crop[1], top + self.crop[0]))
        array = np.asarray(picture, np.float32)
        if self.factor is not None:
            array = array * np.float32(self.factor)
        if self.mean is not None and self.std is not None:
            array = ((array - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)).astype(np.float32)
        return array


def stored(folder: Path) -> bytes | None:
    """A folder's preprocessor_config.json, read as it is: whether it can be used shows where it is."""
    path = folder / FILE
    return path.read_bytes() if path.is_file() else None


def store(folder: str | os.PathLike[str], content: bytes) -> None:
    """Writes it."""
    (Path(folder) / FILE).write_bytes(content)


def open_image(image: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """An RGB picture, turned as its EXIF data says. Raises `ValueError` for a file that is no image."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ValueError("reading images needs Pillow: pip install 'natten-mlx[models]'") from None
    if isinstance(image, Image.Image):
        return _rgb(image, str(image))
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(f"[Preprocessor] an image must be a file or a Pillow image, got {type(image).__name__}")
    name = os.fspath(image)
    if not Path(image).is_file():
        raise ValueError(f"there is no image {name!r}")
    try:
        with Image.open(image) as opened:
            turned = ImageOps.exif_transpose(opened)
            turned.load()
            depth = 16 if opened.format == "PNG" and opened.mode == "I" else None  # as some versions of Pillow call it
    except Exception as error:  # each decoder of Pillow has its own
        raise ValueError(f"{name} is not an image that Pillow can read: {error}") from None
    return _rgb(turned, name, depth)


def _rgb(picture: Image.Image, name: str, depth: int | None = None) -> Image.Image:
    """8 bits a channel: Pillow would cut off what is above 255."""
    from PIL import Image

    if depth == 16 or picture.mode.startswith("I;16"):
        picture = Image.fromarray(np.round(np.asarray(picture, np.float32) / 257).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError(f"{name}: expected pixels of 8 or 16 bits a channel, got Pillow's mode {picture.mode!r}")
    return picture.convert("RGB")


def _read(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The arguments of a `Preprocessor`, from the content of a preprocessor_config.json."""
    fields = Fields(values, source)
    fields.values = {key: value for key, value in values.items() if value is not None}  # null: the default
    key = "image_processor_type" if "image_processor_type" in values else "feature_extractor_type"
    fields.choice(key, "ViTImageProcessor", _PROCESSORS)
    size: tuple[int, int] | int | None = None
    if fields.boolean("do_resize", True):
        size = _size(fields, "size", {"height": 224, "width": 224})
    crop: tuple[int, int] | None = None
    if fields.boolean("do_center_crop", False):
        cropped = _size(fields, "crop_size", {"height": 224, "width": 224})
        if isinstance(cropped, int):
            raise fields.error("crop_size", "a number, or an object with height and width")
        crop = cropped
    resample = fields.integer("resample", _BILINEAR, least=0)
    if resample > 5:
        raise fields.error("resample", "a filter of Pillow, 0 to 5")
    does_rescale, does_normalize = fields.boolean("do_rescale", True), fields.boolean("do_normalize", True)
    found = {
        "size": size,
        "resample": resample,
        "crop": crop,
        "factor": fields.number("rescale_factor", 1 / 255, below=_LARGEST) if does_rescale else None,
        "mean": _channels(fields, "image_mean", (0.5, 0.5, 0.5)) if does_normalize else None,
        "std": _channels(fields, "image_std", (0.5, 0.5, 0.5), above=1e-6) if does_normalize else None,
    }
    fields.asked |= _OPTIONAL
    fields.refuse_unknown("image processors of NAT and DiNAT", _MEANINGLESS)
    return found


def _size(fields: Fields, key: str, default: dict[str, int]) -> tuple[int, int] | int:
    value = fields.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value}
    if isinstance(value, dict):
        numbers = {name: number for name, number in value.items() if type(number) is int and 0 < number <= _LARGEST}
        if numbers.keys() == value.keys() == {"height", "width"}:
            return numbers["height"], numbers["width"]
        if numbers.keys() == value.keys() == {"shortest_edge"}:
            return numbers["shortest_edge"]
    what = "a number, or an object with height and width, or with shortest_edge"
    raise fields.error(key, f"{what}, of 1 to {_LARGEST} pixels")


def _object(size: Any) -> Any:
    pair = isinstance(size, (tuple, list)) and len(size) == 2
    return {"height": size[0], "width": size[1]} if pair else size


def _list(numbers: Any) -> Any:
    return list(numbers) if isinstance(numbers, tuple) else numbers


def _channels(fields: Fields, key: str, default: tuple[float, ...], above: float = -_LARGEST) -> tuple[float, ...]:
    value = fields.get(key, list(default))
    usable = isinstance(value, list) and len(value) == 3 and all(is_number(x) and above < x < _LARGEST for x in value)
    if not usable:
        raise fields.error(key, f"three numbers above {above:g} and below {_LARGEST}")
    return tuple(float(x) for x in value)
