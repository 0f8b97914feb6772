"""Writes docs/compat.md and a migration page for each release of NATTEN from natten_mlx.compat.table.

python scripts/write_migrations.py            (or `make docs`)
python scripts/write_migrations.py --check    exit 1 if a page is out of date
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from natten_mlx import compat
from natten_mlx.compat._release import Earlier, Entry, Release
from natten_mlx.compat.table import RELEASES

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTE = "<!-- Written by scripts/write_migrations.py from python/natten_mlx/compat/table.py. -->\n\n"

OVERVIEW = """# Programs written for NATTEN

`natten_mlx.compat` has the APIs of [NATTEN](https://github.com/SHI-Labs/NATTEN)'s releases on MLX arrays: names,
order of arguments, layouts, defaults, meanings and errors. A program written for one of them runs when its import
changes:

```python
import natten_mlx.compat.v017 as natten  # was: import natten
from natten_mlx.compat.v017.functional import na2d_av, na2d_qk  # was: from natten.functional import ...
```

| module | releases | page |
|---|---|---|
{modules}

`compat.for_version("0.17.4")` gives the module for a version: for 0.14.0 to 0.14.4 `v0144`, for 0.14.5 `v0145`, for
0.21.0 to 0.21.4 `v0210`; otherwise up to 0.14 `v014`, up to 0.15 `v015`, up to 0.17 `v017`; above, the newest that is
not newer.

```python
from natten_mlx import compat

assert compat.for_version("0.17.1+torch230cu121") is compat.v017
```

Results of NATTEN 0.14.6 and 0.17.1, in the tests, pass through these modules in NATTEN's own layout, forward and
backward. Changes of layout are views; only the slots of causal axes of 0.17's split form are moved. What selects or
tunes kernels of NATTEN is accepted, remembered, and said once (logger `natten_mlx`) to have no effect. Feature tests
(`has_cuda()`, ...) are true statements about this machine.

The music-structure model all-in-one has an interface of its own: `natten_mlx.extras.allin1` with `na1d_qk_rpb(query,
key, rpb, kernel_size, dilation=1, scale=None)` and `na1d_av_fused(attn, value, kernel_size, dilation=1)`, and the
same in 2-D, heads last.

## Every name

`=` the same, `s` a switch without effect or its state, `t` a true statement about this machine, `o` such a statement
that the release does not have itself, `~` as the release's page says, `-` not in that release.

| name |{heads}
|---|{dashes}
{names}
"""

PAGE = """# From NATTEN {version}

For NATTEN {versions}. To keep the program as it is, change its import; what follows is for those who want to leave
NATTEN's API behind, or wonder what a name does here. [All releases](compat.md), [other things to know](migrating.md).

```python
{example}
```

## Meanings

{rules}

## Names

| NATTEN {version} | in `natten_mlx.compat.{module}` | in natten_mlx itself |
|---|---|---|
{names}
{earlier}{absent}"""

EARLIER = """
## {versions}

`natten_mlx.compat.{module}` is for these. {rule}{lacks} The rest is as above.

| NATTEN {versions} | in `natten_mlx.compat.{module}` | in natten_mlx itself |
|---|---|---|
{names}
"""

ABSENT = """
## What is not here

| NATTEN {version} | why |
|---|---|
{names}
"""


def version_of(release: Release) -> str:
    """0.14 of v014."""
    return f"0.{release.module[2:]}"


def page_name(release: Release) -> str:
    """The file of a release."""
    return f"migrating-natten-{version_of(release)}.md"


def called(release: Release | Earlier, entry: Entry) -> str:
    """The name with the arguments of a function, as far as they fit a cell."""
    found = getattr(getattr(compat, release.module), entry.name)
    if not isinstance(found, Callable):  # type: ignore[arg-type]
        return f"`{entry.name}`"
    names = []
    for parameter in inspect.signature(found).parameters.values():
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        names.append(parameter.name + default)
    if len(names) > 11:
        names = [*names[:11], "..."]
    return f"`{entry.name}({', '.join(names)})`"


def rows(release: Release | Earlier) -> str:
    """What is here of a release's names."""
    return "\n".join(f"| {called(release, e)} | {e.here} | {e.native} |" for e in release.entries if e.is_here)


def earlier_versions(release: Release) -> str:
    """The sections on versions that have a module of their own."""
    sections = []
    for e in release.earlier:
        lacks = f" They lack {', '.join(f'`{name}`' for name in e.lacks)}." if e.lacks else ""
        sections.append(EARLIER.format(versions=e.versions, module=e.module, rule=e.rule, lacks=lacks, names=rows(e)))
    return "".join(sections)


def page(release: Release) -> str:
    """The migration page of one release."""
    version = version_of(release)
    missing = [f"| `{e.name}` | {e.here.removeprefix('not here: ')} |" for e in release.entries if not e.is_here]
    return NOTE + PAGE.format(
        version=version,
        versions=release.versions,
        module=release.module,
        example=release.example,
        rules="\n".join(f"- {rule}" for rule in release.rules),
        names=rows(release),
        earlier=earlier_versions(release),
        absent=ABSENT.format(version=version, names="\n".join(missing)) if missing else "",
    )


def mark(release: Release, name: str) -> str:
    """What the overview's table says of a name."""
    entry = next((e for e in release.entries if e.name == name), None)
    if entry is None:
        return "~" if any(e.name == name for earlier in release.earlier for e in earlier.entries) else "-"
    starts = {"the same": "=", "accepted": "s", "what was asked": "s", "a true": "t", "not of this": "o"}
    return next((sign for start, sign in starts.items() if entry.here.startswith(start)), "~")


def overview() -> str:
    """docs/compat.md."""
    modules = [
        f"| `natten_mlx.compat.{r.module}` | {r.versions} | [From NATTEN {version_of(release)}]({page_name(release)}) |"
        for release in RELEASES.values()
        for r in (*release.earlier, release)
    ]
    every = (e for release in RELEASES.values() for r in (release, *release.earlier) for e in r.entries)
    names = sorted({e.name for e in every if e.is_here}, key=str.lower)
    rows = [f"| `{name}` |" + "".join(f" {mark(r, name)} |" for r in RELEASES.values()) for name in names]
    return NOTE + OVERVIEW.format(
        modules="\n".join(modules),
        heads="".join(f" {version_of(r)} |" for r in RELEASES.values()),
        dashes="---|" * len(RELEASES),
        names="\n".join(rows),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    pages = {"compat.md": overview()} | {page_name(release): page(release) for release in RELEASES.values()}
    stray = {path.name for path in DOCS.glob("migrating-natten-*.md")} - set(pages)
    if args.check:
        wrong = sorted(stray | {n for n, t in pages.items() if not (DOCS / n).exists() or (DOCS / n).read_text() != t})
        for name in wrong:
            print(f"{name} is out of date; run `make docs`", file=sys.stderr)
        return int(bool(wrong))
    for name in stray:
        (DOCS / name).unlink()
    for name, text in pages.items():
        (DOCS / name).write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
