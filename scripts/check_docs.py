"""Checks the documentation: relative links lead somewhere, files and `make` targets that are named exist, HACKING names
every folder of src/, Python blocks run, and quoted example code is the real code.

A fenced block whose first line is `# from FILE` must occur in FILE, indentation aside. Every other Python block runs by
itself, as a reader pastes it, unless the fence says `python no-run`. Lines `natten-mlx ...` of
shell blocks are run, or only parsed where they take long or need files.
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


# Pages with signatures, and with weights that nobody may fetch for a test.
NOT_RUN = ("api.md", "decoding.md", "models-dinat.md", "models-ltx-decoder.md")


def check_blocks(page: Path, text: str) -> list[str]:
    problems = []
    for language, flags, body in FENCE.findall(text):
        where = f"{page.relative_to(ROOT)}: block starting with {body.lstrip().partition(chr(10))[0]!r}"
        quoted = re.match(r"(?:#|//) from (\S+)\n", body)
        if quoted:
            source = ROOT / quoted.group(1)
            if not source.exists() or _flat(body[quoted.end() :]) not in _flat(source.read_text()):
                problems.append(f"{where} is not in {quoted.group(1)}")
        elif language == "python" and "no-run" not in flags:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(textwrap.dedent(body), where, "exec"), {"__name__": page.stem})
            except Exception:
                problems.append(f"{where} fails:\n{traceback.format_exc(limit=-1)}")
        elif language == "python" and page.name not in NOT_RUN:
            problems.append(f"{where} does not run, which blocks of this page do")
    return problems


RUN = ("doctor", "matrix", "explain", "show")  # quick, and of nothing that must be there


def check_commands(page: Path, text: str) -> list[str]:
    import natten_mlx
    from natten_mlx import cli

    problems = []
    for language, _, body in FENCE.findall(text):
        lines = body.replace("\\\n", " ").splitlines() if language == "sh" else []
        for line in (line for line in lines if line.startswith("natten-mlx ")):
            words = shlex.split(line, comments=True)
            if {"|", ">", "&&"} & set(words):
                continue
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
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
