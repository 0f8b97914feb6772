"""Checks the documentation: relative links lead somewhere, files and `make` targets that are named exist, HACKING names
every folder of src/, Python blocks run, and quoted example code is the real code.

A fenced block whose first line is `# from FILE` must occur in FILE, indentation aside; a Python one in an example that
tests run. Every other Python block runs by itself, as a reader pastes it, in a folder with stand-ins for the models and
files that the pages name; where a line ends in a comment such as `# [2, 1000]`, its result must have that shape.
Signatures are fenced as `signature`, which the site shows as Python. Blocks of other languages are `from FILE`. Lines
`natten-mlx ...` of shell blocks are run, or only parsed where they take long or need what nobody may fetch for a test.
"""

import contextlib
import functools
import io
import os
import re
import shlex
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)|<img[^>]*src=\"([^\"]+)\"")


def broken_links(page: Path, text: str) -> list[str]:
    prose = FENCE.sub("", text)
    targets = [first or second for first, second in LINK.findall(prose)]
    return [
        f"{page.relative_to(ROOT)}: link to {target} leads nowhere"
        for target in targets
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]


# Paths from the root, where they are written as such; and names of sources in backticks, wherever the files are.
PATH = re.compile(
    r"(?<![\w/.~:-])(?:src|tests|python|scripts|benchmarks|docs|include|cmake|examples|\.ci|\.github)/[\w./*-]*"
)
SOURCE = re.compile(r"`([\w./-]+\.(?:cpp|h|py|pyi|cmake))`")
TARGET = re.compile(r"(?:^|`)make ([a-z][\w-]*)", re.MULTILINE)


@functools.cache
def sources() -> set[str]:
    tops = ("src", "include", "python", "tests", "benchmarks", "examples", "scripts", "cmake")
    return {path.name for top in tops for path in (ROOT / top).rglob("*.*")}


@functools.cache
def targets() -> list[str]:
    return re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def missing_names(page: Path, text: str) -> list[str]:
    names = [path for path in PATH.findall(text) if not any(ROOT.glob(path.rstrip("./")))]
    names += [name for name in SOURCE.findall(text) if Path(name).name not in sources()]
    names += [f"make {target}" for target in TARGET.findall(text) if target not in targets()]
    folders = (ROOT / "src").iterdir() if page.name == "HACKING.md" else ()
    untold = [path.name for path in folders if f"`src/{path.name}/`" not in text]
    where = page.relative_to(ROOT)
    return [
        *(f"{where}: names {name}, which is not there" for name in names),
        *(f"{where}: does not say what is in src/{name}" for name in untold),
    ]


def _flat(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines() if line.strip())


# However a fence begins that a reader takes for Python: but for one form it would be passed over.
PYTHON = re.compile(r"^([ \t>]*)(`{3,}|~{3,})[ \t]*\{?\.?(?i:py(?:thon|con)?\d?)\b.*$", re.MULTILINE)
NO_PROGRAMS = ("signature", "sh", "text")  # nothing to run, or looked at elsewhere
SHAPE = re.compile(r"^(\w+) = .*# \[(\d+(?:, \d+)*)\]$", re.MULTILINE)
EXAMPLES = ("tests/python/test_examples.py", ".ci/run")  # run every example


def write_stand_ins() -> None:
    """What the pages load, in the working directory and under the names that it has on the hub: images, latents, and
    small models with random weights, DiNAT with the published sizes of its results."""
    import mlx.core as mx
    import numpy as np
    from PIL import Image

    from natten_mlx import models

    labels = {index: f"LABEL_{index}" for index in range(1000)}
    shallow = models.DinatConfig(
        depths=(1, 1, 1, 1), dilations=((8,), (4,), (2,), (1,)), mlp_ratio=1.0, id2label=labels
    )
    for folder in ("shi-labs/dinat-mini-in1k-224", "dinat-mini"):
        models.save(models.Dinat(shallow), folder)
    narrow = models.LtxDecoderConfig(
        decoder_head_dim=8,
        decoder_stage_channels=(64, 32, 16, 16, 8),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_stage_kernels=((3, 3, 3),) * 4,
        decoder_stage5_kernel=(3, 5, 5),
        decoder_t_emb_dim=8,
    )
    for folder in ("Lightricks/LTX-2.5-Diffusers/diffusion_decoder", "ltx-decoder"):
        models.save(models.LtxDecoder(narrow), folder)
    latents = mx.random.normal((1, 2, 3, 4, narrow.latent_channels))
    mx.save_safetensors("latents.safetensors", {"latents": latents})
    np.savez("latents.npz", latents=np.array(latents))
    np.savez("raw.npz", latents=np.moveaxis(np.array(latents), -1, 1))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for name in ("cat.jpg", "dog.jpg"):
        Image.fromarray(pixels).save(name)


def run_block(body: str, where: str, name: str) -> str | None:
    """What is wrong with a block, if anything is."""
    names = {"__name__": name}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(textwrap.dedent(body), where, "exec"), names)
    except Exception:
        return f"{where} fails:\n{traceback.format_exc(limit=-1)}"
    for variable, shape in SHAPE.findall(body):
        found = ", ".join(map(str, getattr(names[variable], "shape", ())))
        if found != shape:
            return f"{where}: {variable} has the shape [{found}], and the comment says [{shape}]"
    return None


def check_blocks(page: Path, text: str) -> list[str]:
    problems = []
    handled = 0
    for language, flags, body in FENCE.findall(text):
        where = f"{page.relative_to(ROOT)}: block starting with {body.lstrip().partition(chr(10))[0]!r}"
        is_python = language == "python" and not flags.strip()
        quoted = re.match(r"(?:#|//) from (\S+)\n", body)
        handled += is_python
        if quoted:
            source = ROOT / quoted[1]
            if not source.exists() or _flat(body[quoted.end() :]) not in _flat(source.read_text()):
                problems.append(f"{where} is not in {quoted[1]}")
            if is_python and not is_run_example(quoted[1]):
                problems.append(f"{where} is of {quoted[1]}, which is no example that runs in CI")
        elif is_python:
            problem = run_block(body, where, page.stem)
            problems += [problem] if problem else []
        elif language and language not in NO_PROGRAMS and not language.lower().startswith("py"):
            problems.append(f"{where} is {language}, and is not `from FILE`, which is compiled or run")
    fences = PYTHON.findall(text)
    if handled != len(fences):
        problems.append(
            f"{page.relative_to(ROOT)}: {len(fences) - handled} blocks of Python would not run: they must begin with "
            "```python at the start of a line, and nothing behind it"
        )
    return problems


def is_run_example(path: str) -> bool:
    """Whether tests or CI run the example that a file belongs to."""
    name = re.match(r"examples/(\w+)/\w+\.py$", path)
    run = "".join((ROOT / file).read_text() for file in EXAMPLES)
    return name is not None and (f'"{name[1]}"' in run or (name[1] == "digits" and "make demo\n" in run))


# Quick, and of nothing but stand-ins.
RUN = ("doctor", "matrix", "explain", "show", "plan", "warmup", "cache", "classify", "decode")


@contextlib.contextmanager
def stdin(text: str) -> Iterator[None]:
    """`text` as the standard input."""
    before, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        yield
    finally:
        sys.stdin = before


def check_commands(page: Path, text: str) -> list[str]:
    import natten_mlx
    from natten_mlx import cli

    problems = []
    for language, _, body in FENCE.findall(text):
        lines = body.replace("\\\n", " ").splitlines() if language == "sh" else []
        for line in lines:
            words = shlex.split(line, comments=True)
            given = ""
            if words[:1] == ["echo"] and words[2:3] == ["|"]:
                given, words = words[1], words[3:]
            if words[:1] != ["natten-mlx"] or {"|", ">", "&&"} & set(words):
                continue
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), stdin(given):
                    code = cli.main(words[1:]) if words[1] in RUN else bool(cli._parser().parse_args(words[1:])) - 1
            except SystemExit as exit:
                code = exit.code
            finally:
                natten_mlx.set_backend("auto")  # a command may have chosen, for its process
            if code:
                problems.append(f"{page.relative_to(ROOT)}: {line.strip()!r} fails with {code}:\n{said.getvalue()}")
    return problems


def main() -> int:
    problems = []
    os.chdir(tempfile.mkdtemp())  # for what the commands write
    write_stand_ins()
    for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        problems += (
            broken_links(page, text) + missing_names(page, text) + check_blocks(page, text) + check_commands(page, text)
        )
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
