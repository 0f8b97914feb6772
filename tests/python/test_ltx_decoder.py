"""The video decoder against the public implementation's results (tests/data/models), tiles, memory, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import natten_mlx
from harness import assert_near, to_numpy
from natten_mlx import models
from natten_mlx.models import ltx_network
from natten_mlx.models.ltx_tiles import Canvas, blend, feature_stream, intervals

DATA = Path(__file__).parents[1] / "data" / "models" / "ltx_decoder"
NAMES = pytest.mark.parametrize("name", ["mini", "steps"])


def expected(name: str) -> dict[str, Any]:
    with np.load(DATA / name / "expected.npz") as stored:
        arrays = {key: np.asarray(stored[key], np.float32) for key in stored}
    for key in ("latents", "noise", "sample"):
        arrays[key] = np.moveaxis(arrays[key], 1, -1)
    steps = int(arrays.pop("num_inference_steps"))
    return {**arrays, "steps": steps, "mx": (mx.array(arrays["latents"]), mx.array(arrays["noise"]), steps)}


def copy(name: str, folder: Path, **changes: Any) -> Path:
    """The checkpoint in a folder of its own, with other values in its config.json."""
    shutil.copytree(DATA / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@NAMES
def test_context_and_sample(tier: str, name: str) -> None:
    model, _ = models.load(DATA / name)
    wanted = expected(name)
    context = model.decoder.context(model.decoder.features(wanted["mx"][0]))
    assert_near(context, wanted["context"], 1e-5)
    assert_near(model(*wanted["mx"]), wanted["sample"], 5e-5)


@NAMES
def test_after_save_and_load(name: str, tmp_path: Path) -> None:
    model, config = models.load(DATA / name)
    models.save(model, tmp_path)
    again, config_again = models.load(tmp_path)
    assert config_again == config
    wanted = expected(name)
    assert mx.array_equal(again(*wanted["mx"]), model(*wanted["mx"]))
    written = mx.load(str(tmp_path / "diffusion_pytorch_model.safetensors"))
    given = mx.load(str(DATA / name / "diffusion_pytorch_model.safetensors"))
    assert written.keys() == given.keys()
    assert all(mx.array_equal(written[key], given[key]) for key in given)
    stored = json.loads((DATA / name / "config.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text()).items() <= stored.items()


@NAMES
def test_bfloat16(tier: str, name: str) -> None:
    model, _ = models.load(DATA / name, dtype="bfloat16")
    assert {p.dtype for _, p in tree_flatten(model.parameters())} == {mx.bfloat16}
    wanted = expected(name)
    video = model(*wanted["mx"])
    assert video.dtype == mx.bfloat16
    error = np.abs(to_numpy(video) - wanted["sample"])
    # What diffusers' own model errs by in bfloat16: on average, and at the worst pixel.
    mean, worst = {"mini": (0.0024, 0.065), "steps": (0.0017, 0.084)}[name]
    assert error.mean() < 1.2 * mean * np.abs(wanted["sample"]).max()
    assert error.max() < 1.5 * worst * np.abs(wanted["sample"]).max()


def test_the_statistics_of_the_latents_do_not_train() -> None:
    model, _ = models.load(DATA / "mini")
    names = {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert not names & {"latents_mean", "latents_std"}
    model.latents_mean, model.latents_std = mx.full((8,), 0.5), mx.full((8,), 3.0)
    assert mx.allclose(model.denormalize(mx.full((1, 1, 1, 1, 8), 2.0)), mx.array(6.5))


def test_gradients_reach_every_parameter(tier: str) -> None:
    model, _ = models.load(DATA / "mini")
    latents, noise, _ = expected("mini")["mx"]
    gradients = mx.grad(lambda p: (model.update(p) and model(latents, noise) ** 2).mean())(model.trainable_parameters())
    for name, gradient in tree_flatten(gradients):
        assert mx.isfinite(gradient).all()
        assert mx.abs(gradient).max() > 0, name


def peak_of(call: Callable[[], Any]) -> int:
    """Bytes of arrays that a call has at once, beside those that were there."""
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(call())
    return mx.get_peak_memory() - before


def test_the_mlp_in_tiles_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = ltx_network.SwiGlu(16)
    x = mx.random.normal((2, 3, 500, 16))
    mx.eval(mlp.parameters(), x)
    whole, peak = to_numpy(mlp(x)), peak_of(lambda: mlp(x))
    monkeypatch.setattr(ltx_network, "_MLP_TOKENS", 70)
    assert_near(mlp(x), whole, 1e-6)
    assert peak > 8 * x.nbytes  # two hidden layers at least
    assert peak_of(lambda: mlp(x)) < 5 * x.nbytes  # 5.8 if the tiles did not wait for each other


@pytest.mark.skipif(not natten_mlx.has_nanobind(), reason="the tier pure has the weights of a block of queries at once")
def test_nothing_of_the_attention_is_materialised() -> None:
    attend = ltx_network.attention(16, 8, (11, 11, 11))
    x = mx.random.normal((1, 11, 16, 16, 16))
    mx.eval(attend.parameters(), x)
    with natten_mlx.backend("nanobind"):
        assert peak_of(lambda: attend(x)) < 20 * x.nbytes  # the weights of every query: 2662 times


def test_patches_and_back() -> None:
    pixels = mx.random.normal((2, 3, 8, 12, 3))
    packed = ltx_network.patchify(pixels, 4)
    assert packed.shape == (2, 3, 2, 3, 48)
    assert packed[1, 2, 1, 2, 2 * 16 + 3 * 4 + 1] == pixels[1, 2, 1 * 4 + 1, 2 * 4 + 3, 2]
    assert mx.array_equal(ltx_network.unpatchify(packed, 4), pixels)


# Tiles


def tiled_by_hand(model: Any, latents: mx.array, noise: np.ndarray, steps: int, tiling: models.Tiling) -> np.ndarray:
    """What the public implementation does, all of it in memory: decodes the tiles, then blends them in place. It agrees
    with that implementation's results where there are some (tiled.npz), and tells the rest of the tilings."""
    decoder, config = model.decoder, model.config
    st, sh, sw = config.decoder_upsample_strides[-1]
    scale = (st, sh * config.patch_size, sw * config.patch_size)
    size = [tiling.frames // scale[0], tiling.height // scale[1], tiling.width // scale[2]]
    step = [tiling.frames_stride // scale[0], tiling.height_stride // scale[1], tiling.width_stride // scale[2]]
    features = decoder.features(latents)
    ghosts = config.decoder_stage_kernels[0][0] // 2 * 2 * config.temporal_compression_ratio // st
    cells = [features.shape[1] - ghosts, features.shape[2], features.shape[3]]
    least = [
        max(k, -(-k5 // s))
        for k, k5, s in zip(config.decoder_stage_kernels[-1], config.decoder_stage5_kernel, (st, sh, sw), strict=True)
    ]
    spans = []
    for axis in range(3):
        starts = [0] if cells[axis] <= size[axis] else list(range(0, cells[axis], step[axis]))
        while len(starts) > 1 and cells[axis] - starts[-1] < least[axis]:
            starts.pop()
        ends = [min(start + size[axis], cells[axis]) for start in starts[:-1]] + [cells[axis]]
        spans.append(list(zip(starts, ends, strict=True)))
    tiles: dict[tuple[int, int, int], np.ndarray] = {}
    for i, (t0, t1) in enumerate(spans[0]):
        for j, (h0, h1) in enumerate(spans[1]):
            for k, (w0, w1) in enumerate(spans[2]):
                last = t1 == cells[0]
                part = features[:, t0 : features.shape[1] if last else t1, h0:h1, w0:w1]
                context = decoder.context(part, first=t0 == 0, last=last)
                begin = max(t0 * st - (st - 1), 0)
                start = noise[
                    :, begin : begin + context.shape[1], h0 * scale[1] : h1 * scale[1], w0 * scale[2] : w1 * scale[2]
                ]
                tiles[i, j, k] = to_numpy(decoder.denoise(context, mx.array(start), steps)).copy()

    def fade(before: np.ndarray, tile: np.ndarray, extent: int, axis: int) -> None:
        before, tile = np.moveaxis(before, axis, 0), np.moveaxis(tile, axis, 0)
        extent = min(len(before), len(tile), extent)
        for place in range(extent):
            weight = place / extent
            tile[place] = before[len(before) - extent + place] * (1 - weight) + tile[place] * weight

    overlap = [(size[axis] - step[axis]) * scale[axis] for axis in range(3)]
    groups = []
    for i in range(len(spans[0])):
        rows = []
        for j in range(len(spans[1])):
            row = []
            for k in range(len(spans[2])):
                if j:
                    fade(tiles[i, j - 1, k], tiles[i, j, k], overlap[1], 2)
                if k:
                    fade(tiles[i, j, k - 1], tiles[i, j, k], overlap[2], 3)
                height = step[1] * scale[1] if j < len(spans[1]) - 1 else None
                width = step[2] * scale[2] if k < len(spans[2]) - 1 else None
                row.append(tiles[i, j, k][:, :, :height, :width])
            rows.append(np.concatenate(row, axis=3))
        groups.append(np.concatenate(rows, axis=2))
    result = []
    for i, group in enumerate(groups):
        if i:
            fade(groups[i - 1], group, overlap[0], 1)
        result.append(group if i == len(groups) - 1 else group[:, : step[0] * st - (st - 1 if i == 0 else 0)])
    return np.concatenate(result, axis=1)


TILINGS = {
    "time": models.Tiling(10, 999, 999, 6, 999, 999),
    "time, without an overlap": models.Tiling(8, 999, 999, 8, 999, 999),
    "time, more than half shared": models.Tiling(12, 999, 999, 4, 999, 999),
    "space, more than half shared": models.Tiling(999, 80, 80, 999, 16, 24),
    "space": models.Tiling(999, 64, 48, 999, 48, 32),
    "space, short remnants": models.Tiling(999, 80, 72, 999, 72, 64),
    "all": models.Tiling(10, 64, 64, 6, 40, 48),
    "one tile": models.Tiling(),
}


@pytest.mark.sampled(5)
@NAMES
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
def test_tiles_as_in_the_public_implementation(name: str, tiling: models.Tiling) -> None:
    mx.random.seed(0)
    model, config = models.load(DATA / name)
    latents = mx.random.normal((1, 4, 3, 4, config.latent_channels))
    noise = np.random.default_rng(0).standard_normal(model.video_shape(latents)).astype(np.float32)
    steps = expected(name)["steps"]
    wanted = tiled_by_hand(model, latents, noise, steps, tiling)
    assert wanted.shape == model.video_shape(latents) == (1, 25, 96, 128, 3)
    assert_near(model(latents, mx.array(noise), steps, tiling=tiling), wanted, 5e-5)


@pytest.mark.sampled(5)
@NAMES
@pytest.mark.parametrize("tiling", ["time", "all", "space, short remnants"])
def test_tiles_against_the_public_implementation(tier: str, name: str, tiling: str) -> None:
    model, config = models.load(DATA / name)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, 3, 4, config.latent_channels)).astype(np.float32)
    noise = rng.standard_normal((1, 25, 96, 128, 3)).astype(np.float32)
    video = model(mx.array(latents), mx.array(noise), expected(name)["steps"], tiling=TILINGS[tiling])
    with np.load(DATA / name / "tiled.npz") as stored:  # every eighth pixel
        assert_near(video[0, :, 3::8, 3::8], stored[tiling.removeprefix("space, ")], 5e-5)


def test_a_batch_in_tiles() -> None:
    mx.random.seed(0)
    model, _ = models.load(DATA / "mini")
    latents = mx.random.normal((2, 3, 3, 4, 8))
    noise = mx.random.normal(model.video_shape(latents))
    both = to_numpy(model(latents, noise, tiling=TILINGS["all"]))
    for sample in range(2):
        alone = model(latents[sample : sample + 1], noise[sample : sample + 1], tiling=TILINGS["all"])
        assert_near(alone, both[sample : sample + 1], 1e-5)


@NAMES
def test_one_tile_is_the_whole_video(tier: str, name: str) -> None:
    model, _ = models.load(DATA / name)
    wanted = expected(name)
    assert_near(model(*wanted["mx"], tiling=True), wanted["sample"], 5e-5)


@NAMES
@pytest.mark.parametrize("frames", [3, 4, 9])
def test_the_features_frame_by_frame_are_the_features(tier: str, name: str, frames: int) -> None:
    mx.random.seed(0)
    model, config = models.load(DATA / name)
    latents = mx.random.normal((1, frames, 4, 3, config.latent_channels))
    whole = to_numpy(model.decoder.features(latents))
    for size, stride in ((1, 1), (4, 3), (7, 7), (100, 100)):
        stream = feature_stream(model.decoder, latents)
        assert stream.length == whole.shape[1]
        for start in range(0, stream.length, stride):
            stop = min(start + size, stream.length)
            assert_near(stream.frames(start, stop), whole[:, start:stop], 1e-5)


def test_seams_of_half_precision_are_blended_in_float32() -> None:
    before, tile = mx.full((1, 1, 30, 2, 3), 1.0, mx.bfloat16), mx.full((1, 1, 26, 2, 3), -1.0, mx.bfloat16)
    blended = blend(before, tile, 24, axis=2)
    assert blended.dtype == mx.bfloat16
    wanted = mx.array([1 - 2 * min(place / 24, 1) for place in range(26)]).astype(mx.bfloat16)
    assert mx.array_equal(blended[0, 0, :, 1, 2], wanted)


def test_intervals() -> None:
    assert intervals(10, 10, 4, 3) == [(0, 10)]
    assert intervals(11, 10, 7, 3) == [(0, 10), (7, 11)]
    assert intervals(11, 10, 7, 5) == [(0, 11)]  # what would be left is smaller than a window
    assert intervals(20, 6, 6, 3) == [(0, 6), (6, 12), (12, 20)]


def test_pieces_come_in_order_and_progress_is_told() -> None:
    mx.random.seed(0)
    model, _ = models.load(DATA / "mini")
    latents, key = mx.random.normal((1, 4, 3, 4, 8)), mx.random.key(3)
    told: list[tuple[int, int]] = []
    pieces = list(model.frames(latents, key=key, tiling=TILINGS["all"], progress=lambda *x: told.append(x)))
    assert sum(piece.shape[1] for piece in pieces) == 25
    assert len(pieces) > 2
    assert told == [(done, told[-1][1]) for done in range(1, told[-1][1] + 1)]
    assert mx.array_equal(mx.concatenate(pieces, axis=1), model(latents, key=key, tiling=TILINGS["all"]))
    told.clear()
    model(latents, key=key, progress=lambda *x: told.append(x))
    assert told == [(1, 1)]


def test_noise_depends_on_key_and_frame_only() -> None:
    model, _ = models.load(DATA / "mini")
    latents = mx.random.normal((1, 3, 3, 4, 8))
    canvas = Canvas(model.video_shape(latents), mx.float32, None, mx.random.key(5))
    whole = canvas.frames(0, 17)
    assert mx.array_equal(canvas.frames(4, 9), whole[:, 4:9])
    assert abs(whole.std().item() - 1) < 0.01
    assert mx.array_equal(model(latents, key=mx.random.key(5)), model(latents, whole))
    assert not mx.array_equal(model(latents), model(latents))  # drawn anew
    mx.random.seed(1)
    first = model(latents)
    mx.random.seed(1)
    assert mx.array_equal(model(latents), first)


@pytest.mark.sampled(0)
def test_memory_of_tiles_does_not_grow_with_the_video() -> None:
    model, _ = models.load(DATA / "mini")
    tiling = models.Tiling(12, 72, 72, 8, 64, 64)

    def peak(frames: int, tiling: models.Tiling | None) -> int:
        latents = mx.random.normal((1, frames, 3, 3, 8), key=mx.random.key(0))
        mx.eval(latents)

        def decode() -> None:
            for piece in model.frames(latents, key=mx.random.key(0), tiling=tiling):
                mx.eval(piece)

        return peak_of(decode)

    peaks = [peak(frames, tiling) for frames in (6, 12, 24)]
    assert max(peaks) < 1.05 * peaks[0], peaks
    assert peak(12, None) > 2 * peaks[0]  # the instrument sees what is not cut into tiles


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, r"'_class_name' 'LTX2VideoDiffusionDecoderModel', got 'AutoencoderKL'"),
        ({"decoder_model_output_type": "eps"}, r"config\.json: 'decoder_model_output_type' must be one of 'x0', 'v'"),
        ({"decoder_head_dim": 12}, r"config\.json: 'decoder_head_dim' must be a multiple of 8, got 12"),
        (
            {"decoder_stage_channels": [64, 32, 16, 16, 8]},
            r"'decoder_stage_channels' must be multiples of decoder_head_dim",
        ),
        ({"decoder_stage_channels": [64]}, r"'decoder_stage_channels' must be a list of at least two stages"),
        (
            {"decoder_upsample_channel_reductions": [2, 2, 2, 1]},
            r"reductions' must be the steps of decoder_stage_channels",
        ),
        ({"decoder_stage_depths": [1, 1, 1, 1]}, r"'decoder_stage_depths' must be a list of 5 positive integers"),
        ({"decoder_stage_depths": [1, 1, 1, 10**9, 1]}, r"'decoder_stage_depths' must be at most 1000 blocks in all"),
        ({"decoder_stage_kernels": [[3, 3, 3]] * 3}, r"'decoder_stage_kernels' must be 4 lists of 3, 3, 3, 3 integers"),
        ({"decoder_stage_kernels": [[3, 3]] * 4}, r"'decoder_stage_kernels' must be 4 lists of 3, 3, 3, 3 integers"),
        (
            {"decoder_upsample_strides": [[3, 2, 2]] + [[1, 2, 2]] * 3},
            r"'decoder_upsample_strides' must be 1 or 2 in time",
        ),
        ({"temporal_compression_ratio": 4}, r"'temporal_compression_ratio' must be 8, to which patch_size and"),
        ({"scaling_factor": 0}, r"'scaling_factor' must be a number"),
        ({"latent_channels": 10**30}, r"config\.json: asks for a size that no array can have: 'latent_channels'"),
        ({"decoder_num_inference_steps": 0}, r"'decoder_num_inference_steps' must be an integer of at least 1, got 0"),
        ({"decoder_gated": True}, r"config\.json: 'decoder_gated' is unknown to this decoder, got True; expected"),
        ({"latent_channel": 8}, r"'latent_channel' is unknown .*, got 8; did you mean 'latent_channels'\?"),
    ],
)
def test_a_config_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        models.load(copy("mini", tmp_path, **changes))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    copy("mini", tmp_path, decoder_stage5_kernel=[3, 3, 3], decoder_t_emb_dim=16)
    with pytest.raises(
        ValueError, match=r"t_embedder\.timestep_embedder\.linear_1\.weight' has shape \[32, 256\]|shared_adaln"
    ):
        models.load(tmp_path)
    copy("mini", tmp_path, decoder_stage_depths=[1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: holds 'decoder\.diff_blocks\.1\."):
        models.load(tmp_path)
    copy("mini", tmp_path, decoder_stage_depths=[1, 1, 2, 1, 2])
    with pytest.raises(ValueError, match=r"model\.safetensors: the weights have no 'decoder\.det_stages\.2\.1\."):
        models.load(tmp_path)
    with pytest.raises(ValueError, match="holds a video decoder, which has no backbone"):
        models.load(DATA / "mini", backbone=True)


def test_latents_that_do_not_fit() -> None:
    model, _ = models.load(DATA / "mini")

    def latents(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
        return mx.zeros(shape, dtype)

    for bad in (latents(1, 8, 2, 3, 4), latents(2, 3, 4, 8), latents(1, 0, 3, 4, 8)):
        with pytest.raises(
            ValueError, match=r"\[LtxDecoder\] expected latents of shape \[B, frames, height, width, 8\]"
        ):
            model(bad)
    with pytest.raises(ValueError, match=r"expected latents of a floating type, got .*int32"):
        model(latents(1, 2, 3, 4, 8, dtype=mx.int32))
    with pytest.raises(
        ValueError,
        match=r"latents of 2x2x4 \(frames, height, width\) are too small: stage 1 .* of 3x3x3 on a grid of 4x2x4",
    ):
        model(latents(1, 2, 2, 4, 8))
    with pytest.raises(ValueError, match=r"too small: stage 5 attends windows of 5x7x7 on a grid of 1x24x32"):
        model(latents(1, 1, 3, 4, 8))
    with pytest.raises(
        ValueError, match=r"noise must have the video's shape \[1, 9, 96, 128, 3\], got \[1, 9, 96, 96, 3\]"
    ):
        model(latents(1, 2, 3, 4, 8), mx.zeros((1, 9, 96, 96, 3)))
    for steps in (0, True, 1.5):
        with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
            model(latents(1, 2, 3, 4, 8), steps=steps)
    with pytest.raises(ValueError, match="expected latents"):
        model.frames(latents(1, 8, 2, 3, 4))  # at once, not at the first piece


def test_arguments_of_other_types() -> None:
    model, _ = models.load(DATA / "mini")
    good, shape = mx.zeros((1, 2, 3, 4, 8)), r"\[B, frames, height, width, 8\]"
    for bad in (np.zeros((1, 2, 3, 4, 8), np.float32), None):
        with pytest.raises(
            ValueError, match=rf"\[LtxDecoder\] latents must be an mlx\.core\.array of shape {shape}, got"
        ):
            model(bad)
        with pytest.raises(ValueError, match=r"latents must be an mlx\.core\.array of shape \[\.\.\., 8\], got"):
            model.denormalize(bad)
    with pytest.raises(ValueError, match=r"\[LtxDecoder\] noise must be an mlx\.core\.array of .* got ndarray"):
        model(good, np.zeros((1, 9, 96, 128, 3), np.float32))
    for bad in (mx.zeros((1, 2, 3, 4, 7)), mx.zeros((1, 2, 3, 4, 1)), mx.array(1.0)):
        with pytest.raises(ValueError, match=r"\[LtxDecoder\] expected latents of shape \[\.\.\., 8\], got \["):
            model.denormalize(bad)
    for bad in (0, mx.array(0), mx.zeros((2,))):
        with pytest.raises(ValueError, match=r"\[LtxDecoder\] key must be a key of mx\.random\.key\(seed\), got"):
            model(good, key=bad)
    for bad in ("yes", 1, (80, 768, 768)):
        with pytest.raises(ValueError, match=r"\[LtxDecoder\] tiling must be a Tiling, True, False or None, got"):
            model.frames(good, tiling=bad)
    noise = mx.random.normal(model.video_shape(good))
    assert mx.array_equal(model(good, noise, np.int64(2)), model(good, noise, 2))


def test_sizes_of_tiles_are_integers() -> None:
    for bad in (8.0, "8", None, True):
        with pytest.raises(ValueError, match=r"\[Tiling\] frames must be an integer, got"):
            models.Tiling(frames=bad, frames_stride=4)
    with pytest.raises(ValueError, match=r"\[Tiling\] frames_stride must be an integer, got 4\.0"):
        models.Tiling(frames=8, frames_stride=4.0)
    assert models.Tiling(frames=np.int64(8), frames_stride=4) == models.Tiling(frames=8, frames_stride=4)


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        (models.Tiling(frames_stride=90), r"\[Tiling\] frames and frames_stride must be at least 2"),
        (models.Tiling(height_stride=4), r"\[Tiling\] height and height_stride must be at least 8"),
        (models.Tiling(width=32, width_stride=16), r"\[Tiling\] width must be at least 40, the largest window, got 32"),
    ],
)
def test_tiles_that_do_not_fit(tiling: models.Tiling, message: str) -> None:
    model, _ = models.load(DATA / "mini")
    with pytest.raises(ValueError, match=message):
        model(mx.zeros((1, 2, 3, 4, 8)), tiling=tiling)
