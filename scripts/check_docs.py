"""Checks the documentation: relative links lead somewhere, Python blocks run, and quoted example code is the real code.

A fenced block whose first line is `# from FILE` must occur in FILE, indentation aside. Every other Python block runs by
itself, as a reader pastes it, unless the fence says `python no-run`.
"""

import contextlib
import io
import re
import sys
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


def _flat(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines() if line.strip())


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
    return problems


def main() -> int:
    problems = []
    for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        problems += broken_links(page, text) + check_blocks(page, text)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
