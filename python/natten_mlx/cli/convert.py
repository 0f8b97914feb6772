"""`natten-mlx convert`: checkpoints that PyTorch saved into a folder of safetensors, without running them."""

from __future__ import annotations

import argparse

from natten_mlx.cli.arguments import MODEL_DTYPES

HELP = "convert a checkpoint of NAT or DiNAT that PyTorch saved, without running anything in it"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="CHECKPOINT",
        help="a .pth of the authors, a pytorch_model.bin, or a name on the hub that has one",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="gets config.json and model.safetensors"
    )
    parser.add_argument("--family", choices=("nat", "dinat"), help="default: as the file's name begins")
    parser.add_argument(
        "--image-size", type=int, default=224, metavar="N", help="trained for (default: 224): dilations"
    )
    parser.add_argument("--dtype", choices=MODEL_DTYPES, help="of the weights written (default: as stored)")
    parser.add_argument("--config", metavar="FILE", help="config.json, instead of one derived from the weights")


def run(args: argparse.Namespace) -> int:
    from natten_mlx import models
    from natten_mlx.cli import InputError
    from natten_mlx.cli.progress import progress_bar

    if args.image_size < 32:
        raise InputError(f"--image-size expects at least 32, got {args.image_size}")
    with progress_bar("reading tensors") as progress:
        model = models.convert(
            args.source,
            args.output,
            family=args.family,
            image_size=args.image_size,
            config=args.config,
            dtype=args.dtype,
            progress=progress,
        )
    is_classifier = isinstance(model, models.Dinat)
    gives = f"{len(model.config.id2label)} classes" if is_classifier else f"maps {', '.join(model.norms)}"
    print(f"{args.output}: {type(model).__name__}, {model.config.model_type}, {gives}")
    return 0
