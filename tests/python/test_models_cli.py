"""`natten-mlx classify`, `decode` and `convert` on the small reference models."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import natten_mlx
from harness import run_python
from natten_mlx import models
from natten_mlx.cli import main
from natten_mlx.models.video import to_bytes
from test_dinat import as_backbone, original_weights, torch_save

DATA = Path(__file__).parents[1] / "data" / "models"
DECODER = DATA / "ltx_decoder" / "mini"
DECODE = ["--model", str(DECODER), "--channels-first"]


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(DATA / "dinat" / "mini", folder)
    models.Preprocessor(size=(64, 64)).save(folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def latents() -> str:
    return str(DECODER / "expected.npz")


@pytest.fixture(autouse=True)
def tier_is_restored() -> None:
    yield
    natten_mlx.set_backend("auto")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_classify(classifier: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, config = models.load(classifier)
    chances = mx.softmax(model(models.Preprocessor.load(classifier)([image])))[0].tolist()
    order = sorted(range(7), key=lambda index: -chances[index])
    assert main(["classify", str(image), str(image), "--model", str(classifier), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == lines[3:]
    assert lines[0] == str(image)
    assert lines[1:3] == [f"  {100 * chances[index]:5.1f} %  {config.id2label[index]}" for index in order[:2]]


def test_classify_what_was_saved(
    classifier: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it was loaded, and a model that was made here."""
    assert main(["classify", str(image), "--model", str(classifier)]) == 0
    before = capsys.readouterr().out
    models.save(models.load(classifier)[0], tmp_path / "again")
    assert main(["classify", str(image), "--model", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == before
    config = models.DinatConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 2), dilations=((2,), (1,)), kernel_size=3)
    models.save(models.Dinat(config), tmp_path / "made")
    assert main(["classify", str(image), "--model", str(tmp_path / "made")]) == 0
    assert capsys.readouterr().out.count("LABEL_") == 2


@pytest.mark.parametrize("name", ["pure", "nanobind"])
def test_classify_on_a_tier_and_in_half_precision(
    name: str, classifier: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "classify",
        str(image),
        "--model",
        str(classifier),
        "--top",
        "1",
        "--tier",
        name,
        "--dtype",
        "bfloat16",
    ]
    assert main(arguments) == 0
    assert "LABEL_" in capsys.readouterr().out
    assert natten_mlx.get_backend() == name


def test_classify_what_cannot_be_classified(
    classifier: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", str(classifier))
    assert "there is no image 'b.png'" in fails(capsys, "classify", str(image), "b.png", *model)
    (tmp_path / "text.png").write_text("text")
    assert "is not an image that Pillow can read" in fails(capsys, "classify", str(tmp_path / "text.png"), *model)
    assert "--top expects a positive number" in fails(capsys, "classify", str(image), *model, "--top", "0")
    assert "Unknown backend 'x'" in fails(capsys, "classify", str(image), *model, "--tier", "x")
    message = fails(capsys, "classify", str(image), "--model", str(DATA / "dinat" / "mini"))
    assert "has no preprocessor_config.json" in message
    assert "which doesn't classify images" in fails(capsys, "classify", str(image), "--model", str(DECODER))
    assert "there is no folder 'nowhere'" in fails(capsys, "classify", str(image), "--model", "nowhere")
    broken, _ = models.load(classifier)
    broken.head.bias = broken.head.bias * float("nan")
    models.save(broken, tmp_path / "broken")
    assert "scores are NaN" in fails(capsys, "classify", str(image), "--model", str(tmp_path / "broken"))


def test_classify_without_a_network(image: Path, tmp_path: Path) -> None:
    code = f"""
        import sys
        from natten_mlx.cli import main
        sys.exit(main(["classify", {str(image)!r}, "--model", "shi-labs/dinat-mini-in1k-224"]))
    """
    result = run_python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    for part in ("natten-mlx classify: error: can't load 'shi-labs/dinat-mini-in1k-224'", "config.json", str(tmp_path)):
        assert part in result.stderr
    assert "Traceback" not in result.stderr


def decoded(tiling: models.Tiling | None) -> np.ndarray:
    model, _ = models.load(DECODER)
    latents = mx.moveaxis(mx.load(str(DECODER / "expected.npz"))["latents"], 1, -1)
    return to_bytes(model(latents, key=mx.random.key(3), tiling=tiling))[0]


def test_decode_into_pictures(latents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", latents, *DECODE, "-o", str(tmp_path / "out.png"), "--seed", "3", "--whole"]) == 0
    files = sorted(tmp_path.glob("out*"))
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    assert [file.name for file in files] == [f"out-{number:04d}.png" for number in range(9)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), decoded(None))


def test_decode_into_a_video(latents: str, tmp_path: Path) -> None:
    import imageio.v2

    path = tmp_path / "out.mp4"
    tiles = ["--tile-frames", "8", "--tile-frames-stride", "6", "--tile-width", "64", "--tile-height", "72"]
    assert main(["decode", latents, *DECODE, "-o", str(path), "--seed", "3", "--fps", "12", *tiles]) == 0
    reader = imageio.v2.get_reader(path)
    assert reader.get_meta_data()["fps"] == 12
    frames = np.stack(list(reader.iter_data()))
    # Compressed, and its colors at half the resolution: the brightness is about the same.
    wanted = decoded(models.Tiling(8, 72, 64, 6, 36, 32))
    assert frames.shape == wanted.shape == (9, 96, 128, 3)
    brightness = [(x @ [0.299, 0.587, 0.114]).ravel() for x in (frames, wanted)]
    assert np.corrcoef(*brightness)[0, 1] > 0.9


def test_decode_other_files_of_latents(tmp_path: Path) -> None:
    given = mx.load(str(DECODER / "expected.npz"))["latents"]
    last = mx.contiguous(mx.moveaxis(given, 1, -1))
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"latents": last, "other": mx.zeros(1)})
    mx.save_safetensors(str(tmp_path / "b.safetensors"), {"z": last})
    np.save(tmp_path / "c.npy", np.array(last))
    for name in ("a.safetensors", "b.safetensors", "c.npy"):
        output = tmp_path / f"{name}.png"
        assert (
            main(["decode", str(tmp_path / name), "--model", str(DECODER), "-o", str(output), "--dtype", "bfloat16"])
            == 0
        )
        assert (tmp_path / f"{name}-0000.png").exists()
    arguments = ["decode", str(tmp_path / "b.safetensors"), "--model", str(DECODER), "-o", str(tmp_path / "d.png")]
    assert main([*arguments, "--denormalize", "--steps", "2", "--tier", "pure"]) == 0


def test_decode_what_cannot_be_decoded(
    latents: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("-o", str(tmp_path / "out.png"))
    message = fails(capsys, "decode", latents, "--model", str(DECODER), *output)
    assert "expected 8 channels on the last axis, got 4; axis 1 has 8: --channels-first?" in message
    assert "there is no file of latents" in fails(capsys, "decode", str(tmp_path / "x.npz"), *DECODE, *output)
    for name, content, expected in (
        ("x.txt", b"", "expected a .safetensors, .npz or .npy file"),
        ("x.npz", b"text", "is not a file of arrays that NumPy can read: it is damaged, of another format"),
        ("x.npy", b"", "is not a file of arrays that NumPy can read"),
        ("x.safetensors", b"text", "is not a safetensors file"),
    ):
        (tmp_path / name).write_bytes(content)
        message = fails(capsys, "decode", str(tmp_path / name), *DECODE, *output)
        assert expected in " ".join(message.split())
        assert "pickle" not in message
    np.savez(tmp_path / "objects.npz", latents=np.array([None]))
    assert "pickle" not in fails(capsys, "decode", str(tmp_path / "objects.npz"), *DECODE, *output)
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    assert "expected an array 'latents', got 'a', 'b'" in fails(
        capsys, "decode", str(tmp_path / "two.npz"), *DECODE, *output
    )
    np.save(tmp_path / "flat.npy", np.zeros((3, 4)))
    assert "expected latents of shape [B, C, F, H, W], got [3, 4]" in fails(
        capsys, "decode", str(tmp_path / "flat.npy"), *DECODE, *output
    )
    np.save(tmp_path / "batch.npy", np.zeros((2, 8, 2, 3, 4), np.float32))
    assert "got a batch of 2" in fails(capsys, "decode", str(tmp_path / "batch.npy"), *DECODE, *output)
    np.save(tmp_path / "small.npy", np.zeros((1, 8, 2, 2, 4), np.float32))
    message = fails(capsys, "decode", str(tmp_path / "small.npy"), *DECODE, *output)
    assert f"{tmp_path / 'small.npy'}: " in message and "are too small: stage 1" in message
    np.save(tmp_path / "nan.npy", np.full((1, 8, 2, 3, 4), np.nan, np.float32))
    assert "holds NaN" in fails(capsys, "decode", str(tmp_path / "nan.npy"), *DECODE, *output)
    assert "a name that ends in .png, .mp4" in fails(capsys, "decode", latents, *DECODE, "-o", "out.txt")
    assert "there is no folder" in fails(capsys, "decode", latents, *DECODE, "-o", str(tmp_path / "no" / "out.mp4"))
    for fps in ("0", "inf", "1e-9", "1e9"):
        assert "--fps expects a number from 0.01 to 1000" in fails(
            capsys, "decode", latents, *DECODE, *output, "--fps", fps
        )
    for seed in ("-1", str(2**64)):
        assert "--seed expects a number from 0 to 2^64 - 1" in fails(
            capsys, "decode", latents, *DECODE, *output, "--seed", seed
        )
    (tmp_path / "folder.mp4").mkdir()
    message = fails(capsys, "decode", latents, *DECODE, "-o", str(tmp_path / "folder.mp4"))
    assert message.endswith("folder.mp4: it is a folder\n")
    assert "steps must be an integer" in fails(capsys, "decode", latents, *DECODE, *output, "--steps", "0")
    assert "[Tiling] width must be at least 40" in fails(
        capsys, "decode", latents, *DECODE, *output, "--tile-width", "32"
    )
    (tmp_path / "taken-0000.png").mkdir()
    assert "taken-0000.png" in fails(capsys, "decode", latents, *DECODE, "-o", str(tmp_path / "taken.png"))
    message = fails(capsys, "decode", latents, "--model", str(classifier), *output)
    assert "holds a Dinat, which doesn't decode latents" in message
    assert not list(tmp_path.glob("out*"))


def test_a_video_that_ffmpeg_cannot_write(latents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.mp4").symlink_to(tmp_path / "nowhere" / "out.mp4")
    message = fails(capsys, "decode", latents, *DECODE, "-o", str(tmp_path / "out.mp4"))
    assert f"ffmpeg can't write {tmp_path / 'out.mp4'}: " in message and message.count("\n") == 1


def test_convert(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch_save(tmp_path / "nat_mini.pth", original_weights("mini"), monkeypatch)
    assert main(["convert", str(tmp_path / "nat_mini.pth"), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: Dinat, nat, 7 classes\n"
    assert main(["classify", str(image), "--model", str(tmp_path / "out")]) == 0
    arguments = ["convert", str(tmp_path / "nat_mini.pth"), "-o", str(tmp_path / "half"), "--dtype", "float16"]
    assert main(arguments) == 0
    written = mx.load(str(tmp_path / "half" / "model.safetensors"))
    assert {array.dtype for array in written.values()} == {mx.float16}
    assert "there is no checkpoint" in fails(capsys, "convert", str(tmp_path / "x.pth"), "-o", str(tmp_path / "o"))
    message = fails(capsys, "convert", str(tmp_path / "out"), "-o", str(tmp_path / "o"))
    assert "out has no pytorch_model.bin to convert; its safetensors need no conversion" in message
    assert "image" in fails(capsys, "convert", str(tmp_path / "nat_mini.pth"), "-o", str(image / "inside"))
    arguments = ("convert", str(tmp_path / "nat_mini.pth"), "-o", str(tmp_path / "o"), "--image-size", "8")
    assert "--image-size expects at least 32" in fails(capsys, *arguments)


def test_convert_a_backbone(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = as_backbone("mini", tmp_path / "given")
    weights = {key: np.array(x) for key, x in mx.load(str(given / "model.safetensors")).items()}
    (given / "model.safetensors").unlink()
    torch_save(given / "pytorch_model.bin", weights, monkeypatch)
    assert main(["convert", str(given), "-o", str(tmp_path / "out")]) == 0
    maps = "maps stage1, stage2, stage3, stage4"
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: DinatBackbone, dinat, {maps}\n"
    assert "holds a backbone, which has no classes" in fails(
        capsys, "classify", str(image), "--model", str(tmp_path / "out")
    )
