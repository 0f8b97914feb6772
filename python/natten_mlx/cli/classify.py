"""`natten-mlx classify`: what NAT or DiNAT sees in images."""

from __future__ import annotations

import argparse
from pathlib import Path

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import MODEL_DTYPES

HELP = "classify images with NAT or DiNAT"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files that Pillow can read")
    parser.add_argument("--model", required=True, metavar="NAME_OR_FOLDER", help="such as shi-labs/dinat-mini-in1k-224")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes printed for each image (default: 5)")
    parser.add_argument("--tier", help="run the attention on this tier (default: the current choice)")
    parser.add_argument("--dtype", choices=MODEL_DTYPES, help="of the weights (default: as stored)")


def run(args: argparse.Namespace) -> int:
    import mlx.core as mx
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    import natten_mlx
    from natten_mlx import models

    if args.top < 1:
        raise InputError(f"--top expects a positive number, got {args.top}")
    missing = [path for path in args.images if not Path(path).is_file()]
    if missing:
        raise InputError(f"there is no image {missing[0]!r}")
    if args.tier is not None:
        natten_mlx.set_backend(args.tier)
    errors = Console(stderr=True)
    with errors.status(f"loading {args.model}"):
        model, config = models.load(args.model, args.dtype)
        if not isinstance(model, models.Dinat):
            raise InputError(f"{args.model} holds a {type(model).__name__}, which doesn't classify images")
        preprocess = models.Preprocessor.load(args.model)
    for path in track(args.images, "classifying", console=errors, transient=True, disable=not errors.is_terminal):
        chances = mx.softmax(model(preprocess([path]))[0].astype(mx.float32))
        if mx.isnan(chances).any():
            raise InputError(f"{path}: the classes' scores are NaN: the weights are not what they should be")
        order = np.argsort(-np.array(chances), kind="stable")[: args.top]
        print(path)
        for index in order.tolist():
            print(f"  {100 * chances[index].item():5.1f} %  {config.id2label[index]}")
    return 0
