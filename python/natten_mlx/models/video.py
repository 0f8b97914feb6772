"""Decoded video into files: PNG for single frames, anything that ffmpeg writes for the rest."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from natten_mlx.models.files import read_safetensors

_MOVIES = (".mp4", ".mkv", ".mov")


def to_bytes(pixels: mx.array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels from -1 to 1, [..., 3] of any floating type -> 0 to 255, cut off at both ends. NaN is an error."""
    values = pixels.astype(mx.float32)
    if mx.isnan(values).any():
        raise ValueError("the decoded video holds NaN: the weights or the latents are not what they should be")
    return np.array(mx.round(mx.clip(values * 127.5 + 127.5, 0, 255)).astype(mx.uint8))


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises `ValueError` for a file that `write_video` can't write, before anything is decoded."""
    target = Path(path)
    if target.suffix.lower() not in (".png", *_MOVIES):
        raise ValueError(f"can't write {target}: expected a name that ends in .png, {', '.join(_MOVIES)}")
    if not target.parent.is_dir():
        raise ValueError(f"can't write {target}: there is no folder {target.parent}")
    if target.is_dir():
        raise ValueError(f"can't write {target}: it is a folder")
    try:
        if target.suffix.lower() == ".png":
            import PIL.Image  # noqa: F401
        else:
            import imageio.v2  # noqa: F401
            import imageio_ffmpeg

            imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise ValueError(f"writing {target} needs Pillow and imageio: pip install 'natten-mlx[models]'") from None


def write_video(pieces: Iterable[mx.array], frames: int, path: str | os.PathLike[str], fps: float = 24.0) -> list[Path]:
    """Writes pieces [1, f, H, W, 3] of a video as they come; returns the files.

    A single frame is one PNG; several are numbered: `out.png` becomes `out-0000.png`, `out-0001.png`, ...
    """
    target = Path(path)
    check_output(target)
    images = (image for piece in pieces for image in to_bytes(piece)[0])
    if target.suffix.lower() == ".png":
        return _write_pictures(images, frames, target)
    import imageio.v2

    # imageio would scale to sides that 16 divides; the decoder's are even, which is all that the codecs ask for.
    writer: Any = imageio.v2.get_writer(target, format="FFMPEG", fps=fps, quality=8, macro_block_size=2)
    try:
        with writer:
            for image in images:
                writer.append_data(image)
    except OSError as error:  # ends with all that ffmpeg said, its command first
        reason = str(error).strip().splitlines()[-1] if "FFMPEG" in str(error) else error
        raise OSError(f"ffmpeg can't write {target}: {reason}") from None
    return [target]


def _write_pictures(images: Iterable[np.ndarray[Any, np.dtype[np.uint8]]], frames: int, target: Path) -> list[Path]:
    from PIL import Image

    written = []
    for number, image in enumerate(images):
        name = target if frames == 1 else target.with_name(f"{target.stem}-{number:04d}{target.suffix}")
        Image.fromarray(image).save(name)
        written.append(name)
    return written


def read_latents(path: str | os.PathLike[str], channels_first: bool = False) -> mx.array:
    """Latents [B, F, H, W, C] of a .safetensors, .npz or .npy file: its array `latents`, or its only one.

    Args:
        path: The file.
        channels_first: Whether they are stored as [B, C, F, H, W], as diffusers keeps them.
    """
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"there is no file of latents {str(source)!r}")
    if source.suffix == ".safetensors":
        arrays = read_safetensors(source)
    elif source.suffix in (".npz", ".npy"):
        try:
            loaded = np.load(source, allow_pickle=False)
            arrays = (
                {name: mx.array(loaded[name]) for name in loaded} if source.suffix == ".npz" else {"": mx.array(loaded)}
            )
        except OSError as error:
            raise ValueError(f"{source} can't be read: {error.strerror or error}") from None
        except Exception:  # NumPy's own advice is to allow pickles, which are programs
            raise ValueError(
                f"{source} is not a file of arrays that NumPy can read: it is damaged, of another format, or holds "
                "something else than numbers"
            ) from None
    else:
        raise ValueError(f"{source}: expected a .safetensors, .npz or .npy file")
    if "latents" not in arrays and len(arrays) != 1:
        raise ValueError(f"{source}: expected an array 'latents', got {', '.join(map(repr, sorted(arrays))) or 'none'}")
    latents = arrays.get("latents", next(iter(arrays.values())))
    if latents.ndim != 5:
        layout = "[B, C, F, H, W]" if channels_first else "[B, F, H, W, C]"
        raise ValueError(f"{source}: expected latents of shape {layout}, got {list(latents.shape)}")
    return mx.moveaxis(latents, 1, -1) if channels_first else latents
