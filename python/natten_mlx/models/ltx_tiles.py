"""A video decoded in tiles that are blended at their seams, with memory that does not grow with its length.

Tiles are cut from the grid between stages 3 and 4, as in the public implementation: the seams are blended, what comes
before is exact. There stages 1 to 3 see all frames at once; here they are computed a few frames ahead of the tiles, and
each layer keeps only what the next windows in time still reach, with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import fields as fields_of

import mlx.core as mx

from natten_mlx.models import arguments
from natten_mlx.models.ltx_config import Size
from natten_mlx.models.ltx_network import Block, Decoder, Upsample

Progress = Callable[[int, int], None]  # tiles decoded, tiles in all


@dataclass(frozen=True)
class Tiling:
    """Sizes of the tiles that a video is decoded in, and from one tile's start to the next's, in frames and pixels.

    What two tiles share is blended linearly. The defaults are those of the public implementation.
    """

    frames: int = 80
    height: int = 768
    width: int = 768
    frames_stride: int = 56
    height_stride: int = 704
    width_stride: int = 704

    def __post_init__(self) -> None:
        for field in fields_of(self):
            value = arguments.integer("Tiling", field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def cells(self, scale: Size) -> tuple[Size, Size]:
        """Sizes and strides in cells of the grid that is tiled, `scale` frames and pixels each. Raises `ValueError`."""
        sizes, strides = [], []
        for axis, unit in zip(("frames", "height", "width"), scale, strict=True):
            size, stride = getattr(self, axis) // unit, getattr(self, f"{axis}_stride") // unit
            if not 1 <= stride <= size:
                raise ValueError(
                    f"[Tiling] {axis} and {axis}_stride must be at least {unit}, what one cell of the tiled grid "
                    f"decodes to, and the stride not above the size, got {getattr(self, axis)} and "
                    f"{getattr(self, f'{axis}_stride')}"
                )
            sizes.append(size)
            strides.append(stride)
        return (sizes[0], sizes[1], sizes[2]), (strides[0], strides[1], strides[2])


class Canvas:
    """The noise that a decode starts from, given or drawn frame by frame when it is asked for."""

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype, noise: mx.array | None, key: mx.array | None) -> None:
        self.shape, self.dtype, self.noise = shape, dtype, noise
        if noise is None:
            key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32) if key is None else key
            self.keys = mx.random.split(key, shape[1])

    def frames(self, start: int, stop: int) -> mx.array:
        """[B, stop - start, H', W', 3]"""
        if self.noise is not None:
            return self.noise[:, start:stop].astype(self.dtype)
        batch, _, *rest = self.shape
        drawn = [mx.random.normal((batch, *rest), key=self.keys[frame]) for frame in range(start, stop)]
        return mx.stack(drawn, axis=1).astype(self.dtype)


class FrameStream:
    """The frames [B, T, H, W, C] of one layer's output, computed when asked for and dropped when passed.

    Args:
        length: T.
        needs: Which frames of the source the output's frames [start, stop) are computed from.
        run: (those frames of the source, where they begin, start, stop) -> frames [start, stop).
        source: Answers `frames(start, stop)` of the layer before.
    """

    def __init__(
        self,
        length: int,
        needs: Callable[[int, int], tuple[int, int]],
        run: Callable[[mx.array, int, int, int], mx.array],
        source: Callable[[int, int], mx.array],
    ) -> None:
        self.length, self.needs, self.run, self.source = length, needs, run, source
        self.start = self.stop = 0
        self.kept: mx.array | None = None

    def frames(self, start: int, stop: int) -> mx.array:
        """Frames [start, stop). Neither may decrease from call to call: earlier frames are gone."""
        parts = [] if self.kept is None else [self.kept[:, start - self.start :]]
        if stop > self.stop:
            first, last = self.needs(self.stop, stop)
            parts.append(self.run(self.source(first, last), first, self.stop, stop))
        kept = mx.concatenate(parts, axis=1) if len(parts) > 1 else mx.contiguous(parts[0])
        mx.eval(kept)
        self.kept, self.start, self.stop = kept, start, stop
        return kept


def window_stream(block: Block, length: int, source: Callable[[int, int], mx.array]) -> FrameStream:
    """Of a block, whose windows in time are shifted inside at the video's ends."""
    kernel = block.kernel_size[0]

    def begin(frame: int) -> int:
        return min(max(frame - kernel // 2, 0), length - kernel)

    # The windows of frames [start, stop) are the same in the part that begins with the first and ends with the last.
    return FrameStream(
        length,
        lambda start, stop: (begin(start), begin(stop - 1) + kernel),
        lambda x, first, start, stop: block(x, slice(start - first, stop - first)),
        source,
    )


def upsample_stream(upsample: Upsample, length: int, source: Callable[[int, int], mx.array]) -> FrameStream:
    """Of the step between two stages; `length` frames come in."""
    stride, leading = upsample.stride[0], upsample.leading

    def run(x: mx.array, first: int, start: int, stop: int) -> mx.array:
        skipped = start + leading - first * stride
        return upsample(x, slice(skipped, skipped + stop - start))

    return FrameStream(
        length * stride - leading,
        lambda start, stop: ((start + leading) // stride, (stop - 1 + leading) // stride + 1),
        run,
        source,
    )


def feature_stream(decoder: Decoder, latents: mx.array) -> FrameStream:
    """`decoder.features(latents)`, frame by frame."""
    frames = latents.shape[1]

    def embedded(start: int, stop: int) -> mx.array:
        there = mx.minimum(mx.arange(start, stop), frames - 1)  # behind the end the last one is repeated
        return decoder.conv_in(mx.take(latents, there, axis=1))

    length = frames + decoder.config.ghosts
    source: Callable[[int, int], mx.array] = embedded
    stream: FrameStream | None = None
    for blocks, upsample in zip(decoder.det_stages[:-1], decoder.upsamples[:-1], strict=True):
        for block in blocks:
            source = window_stream(block, length, source).frames
        stream = upsample_stream(upsample, length, source)
        source, length = stream.frames, stream.length
    if stream is None:  # a single stage has nothing before it
        stream = FrameStream(length, lambda start, stop: (start, stop), lambda x, *_: x, embedded)
    return stream


def intervals(length: int, size: int, stride: int, least: int) -> list[tuple[int, int]]:
    """Where the tiles [start, stop) of an axis lie. One shorter than `least` at the end is joined to the one before."""
    if length <= size:
        return [(0, length)]
    starts = list(range(0, length, stride))
    while len(starts) > 1 and length - starts[-1] < least:
        starts.pop()
    return [(start, min(start + size, length)) for start in starts[:-1]] + [(starts[-1], length)]


def blend(before: mx.array, tile: mx.array, extent: int, axis: int) -> mx.array:
    """`tile` with its first `extent` places on an axis faded in from the last ones of the tile before it."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if extent == 0:
        return tile
    weight = mx.arange(extent, dtype=mx.float32) / extent
    weight = weight.reshape([extent if a == axis else 1 for a in range(tile.ndim)])
    tail = mx.split(before, [before.shape[axis] - extent], axis=axis)[1]
    head, rest = mx.split(tile, [extent], axis=axis)
    faded = (tail * (1 - weight) + head * weight).astype(tile.dtype)  # in float32, whatever the tiles are in
    return mx.concatenate([faded, rest], axis=axis)


def decode_tiles(
    decoder: Decoder, latents: mx.array, canvas: Canvas, steps: int, tiling: Tiling, progress: Progress | None
) -> Iterator[mx.array]:
    """The pieces of a video, in the order of time. Raises `ValueError` for tiles that no window fits into."""
    config = decoder.config
    upsample, patch = decoder.upsamples[-1], config.patch_size
    scale: Size = (upsample.stride[0], upsample.stride[1] * patch, upsample.stride[2] * patch)
    size, stride = tiling.cells(scale)
    # Every tile must hold the windows of the last two stages.
    least = [
        max(kernel, -(-kernel5 // s))
        for kernel, kernel5, s in zip(
            config.decoder_stage_kernels[-1], config.decoder_stage5_kernel, upsample.stride, strict=True
        )
    ]
    for axis, name in enumerate(("frames", "height", "width")):
        if size[axis] < least[axis]:
            pixels, wanted = size[axis] * scale[axis], least[axis] * scale[axis]
            raise ValueError(f"[Tiling] {name} must be at least {wanted}, the largest window, got {pixels}")

    return _decode(decoder, latents, canvas, steps, size, stride, scale, least, progress)


def _decode(
    decoder: Decoder,
    latents: mx.array,
    canvas: Canvas,
    steps: int,
    size: Size,
    stride: Size,
    scale: Size,
    least: list[int],
    progress: Progress | None,
) -> Iterator[mx.array]:
    config, upsample = decoder.config, decoder.upsamples[-1]
    stream = feature_stream(decoder, latents)
    ghosts = config.ghosts * math.prod(step.stride[0] for step in decoder.upsamples[:-1])
    cells = (stream.length - ghosts, canvas.shape[2] // scale[1], canvas.shape[3] // scale[2])
    tiles = [intervals(cells[axis], size[axis], stride[axis], least[axis]) for axis in range(3)]
    overlap = [(size[axis] - stride[axis]) * scale[axis] for axis in range(3)]
    total, done = math.prod(map(len, tiles)), 0

    group: mx.array | None = None
    for start, stop in tiles[0]:
        first, last = start == 0, stop == cells[0]
        features = stream.frames(start, stream.length if last else stop)
        # The video's first cell decodes to one frame fewer than the others.
        frame = start * scale[0] - (0 if first else upsample.leading)
        noise = canvas.frames(frame, stop * scale[0] - upsample.leading)
        rows: list[mx.array] = []
        above: list[mx.array] = []
        for top, bottom in tiles[1]:
            row: list[mx.array] = []
            for left, right in tiles[2]:
                context = decoder.context(features[:, :, top:bottom, left:right], first, last)
                part = noise[:, :, top * scale[1] : bottom * scale[1], left * scale[2] : right * scale[2]]
                tile = decoder.denoise(context, part, steps)
                if above:
                    tile = blend(above[len(row)], tile, overlap[1], axis=2)
                if row:
                    tile = blend(row[-1], tile, overlap[2], axis=3)
                mx.eval(tile)
                row.append(tile)
                done += 1
                if progress is not None:
                    progress(done, total)
            # Each tile counts up to where the next begins; the last one to its end.
            kept = [tile[:, :, :, : stride[2] * scale[2]] for tile in row[:-1]] + row[-1:]
            joined = mx.concatenate(kept, axis=3)
            rows.append(joined if (top, bottom) == tiles[1][-1] else joined[:, :, : stride[1] * scale[1]])
            above = row
        piece = mx.concatenate(rows, axis=2)
        if group is not None:
            piece = blend(group, piece, overlap[0], axis=1)
        group = piece
        keep = (
            piece.shape[1]
            if (start, stop) == tiles[0][-1]
            else stride[0] * scale[0] - (upsample.leading if first else 0)
        )
        kept_frames = mx.contiguous(piece[:, :keep])
        mx.eval(kept_frames, group)
        yield kept_frames
