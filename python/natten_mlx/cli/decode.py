"""`natten-mlx decode`: latents of LTX-2.5 into pictures or a video."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import MODEL_DTYPES

if TYPE_CHECKING:
    from natten_mlx import models

HELP = "decode video latents with LTX-2.5's diffusion decoder"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("latents", metavar="LATENTS", help=".safetensors, .npz or .npy: [1, frames, height, width, C]")
    parser.add_argument("--model", required=True, metavar="NAME_OR_FOLDER", help="of the decoder")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="out.mp4, or out.png (several: numbered)")
    parser.add_argument("--channels-first", action="store_true", help="the latents are stored [1, C, frames, ...]")
    parser.add_argument("--denormalize", action="store_true", help="they are not denormalised yet")
    parser.add_argument("--steps", type=int, metavar="N", help="of the diffusion (default: the model's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of its noise (default: 0)")
    parser.add_argument("--fps", type=float, default=24.0, metavar="N", help="frames per second (default: 24)")
    parser.add_argument("--whole", action="store_true", help="in one piece, not in tiles: takes much memory")
    tiles = parser.add_argument_group("tiles (defaults: the public implementation's)")
    for axis in ("frames", "height", "width"):
        tiles.add_argument(f"--tile-{axis}", type=int, metavar="N", help=f"{axis} of a tile")
        tiles.add_argument(f"--tile-{axis}-stride", type=int, metavar="N", help="from one tile's start to the next's")
    parser.add_argument("--tier", help="run the attention on this tier (default: the current choice)")
    parser.add_argument("--dtype", choices=MODEL_DTYPES, help="of the weights (default: as stored)")


def run(args: argparse.Namespace) -> int:
    import mlx.core as mx
    from rich.console import Console

    import natten_mlx
    from natten_mlx import models
    from natten_mlx.cli.progress import progress_bar
    from natten_mlx.models.video import check_output, read_latents, write_video

    if not 0.01 <= args.fps <= 1000:
        raise InputError(f"--fps expects a number from 0.01 to 1000, got {args.fps:g}")
    if not 0 <= args.seed < 2**64:
        raise InputError(f"--seed expects a number from 0 to 2^64 - 1, got {args.seed}")
    check_output(args.output)
    latents = read_latents(args.latents, args.channels_first)
    if latents.shape[0] != 1:
        raise InputError(f"{args.latents}: expected the latents of one video, got a batch of {latents.shape[0]}")
    if args.tier is not None:
        natten_mlx.set_backend(args.tier)
    with Console(stderr=True).status(f"loading {args.model}"):
        model, config = models.load(args.model, args.dtype)
    if not isinstance(model, models.LtxDecoder):
        raise InputError(f"{args.model} holds a {type(model).__name__}, which doesn't decode latents")
    channels = config.latent_channels
    if latents.shape[-1] != channels:
        hint = f"; axis 1 has {channels}: --channels-first?" if latents.shape[1] == channels else ""
        raise InputError(
            f"{args.latents}: expected {channels} channels on the last axis, got {latents.shape[-1]}{hint}"
        )
    if args.denormalize:
        latents = model.denormalize(latents)
    try:
        frames = model.video_shape(latents)[1]
    except ValueError as error:
        raise InputError(f"{args.latents}: {error}") from None
    with progress_bar("decoding tiles") as progress:
        pieces = model.frames(
            latents,
            steps=args.steps,
            key=mx.random.key(args.seed),
            tiling=None if args.whole else _tiling(args),
            progress=progress,
        )
        written = write_video(pieces, frames, args.output, args.fps)
    print("\n".join(map(str, written)))
    return 0


def _tiling(args: argparse.Namespace) -> models.Tiling:
    """The tiles asked for; a size alone keeps the overlap that the defaults have, as far as it fits."""
    from natten_mlx import models

    default = models.Tiling()
    values: dict[str, int] = {}
    for axis in ("frames", "height", "width"):
        size, stride = getattr(default, axis), getattr(default, f"{axis}_stride")
        given, given_stride = getattr(args, f"tile_{axis}"), getattr(args, f"tile_{axis}_stride")
        if given is not None:
            size, stride = given, max(given - (size - stride), given // 2)
        values |= {axis: size, f"{axis}_stride": stride if given_stride is None else given_stride}
    return models.Tiling(**values)
