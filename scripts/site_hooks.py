"""Pages of the site that are no files in docs/, and links to files outside of it. MkDocs calls these functions.

index.md, project/     README, HACKING, CHANGELOG ... of the repository's root
reference/             from docstrings and from the comments in include/natten (site_reference.py)
site.css               of every page
windows.html           what `natten-mlx show --html` writes
results.md             every time in benchmarks/results (site_results.py)
source/                files of the repository that a page links to
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import site_package
import site_reference
import site_results
from natten_mlx import explorer

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {".py": "python", ".h": "cpp", ".cpp": "cpp", ".json": "json", ".txt": "cmake", ".toml": "toml"}
FOR_AUTHORS = ("laboratory/", "project/", "design.md")  # the search shows users' pages first
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))|(<img[^>]*src=\")([^\"]+)(\")")


def _page_of(path: str) -> str | None:
    """The page of the site for a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if "/" not in path and path.endswith(".md"):
        return f"project/{path}"
    return f"source/{path}.md" if (ROOT / path).exists() else None


def _targets(text: str, folder: str) -> set[str]:
    """Files of the repository that a page in `folder` of the repository links to."""
    found = {match[2] or match[5] for match in LINK.finditer(text)}
    return {posixpath.normpath(posixpath.join(folder, target)) for target in found if ":" not in target}


def _with_links(text: str, folder: str, page: str) -> str:
    """`text` of the repository's `folder` as the site's `page`: relative links lead to the site's pages."""

    def replaced(match: re.Match[str]) -> str:
        before, target, after = match.groups()[:3] if match[2] else match.groups()[3:]
        to = None if ":" in target else _page_of(posixpath.normpath(posixpath.join(folder, target)))
        return match[0] if to is None else before + posixpath.relpath(to, posixpath.dirname(page)) + after

    return LINK.sub(replaced, text)


def _source_page(path: str) -> str:
    file = ROOT / path
    if file.is_dir():
        names = sorted(child.name for child in file.iterdir() if child.is_file())
        parts = [_source_text(f"{path}/{name}", 2) for name in names if Path(name).suffix in LANGUAGES]
        return f"# {path}\n\n" + "\n".join(parts)
    return _source_text(path, 1)


def _source_text(path: str, level: int) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"{'#' * level} {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n````\n"


def on_config(config: Any) -> Any:
    """Pages that mkdocs.yml has no place for come last, instead of being lost."""
    named = set(re.findall(r"[\w./-]+\.md", str(config.nav)))
    pages = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    rest = [page for page in pages if page not in named]
    if rest:
        config.nav.append({"More": rest})
    return config


def on_files(files: Files, config: Any) -> Files:
    def add(uri: str, content: str) -> None:
        files.append(File.generated(config, uri, content=content))

    root_pages = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")}
    linked: set[str] = set()
    for name, text in root_pages.items():
        page = _page_of(name)
        assert page is not None
        add(page, _with_links(text, "", page))
        linked |= _targets(text, "")
    for file in list(files.documentation_pages()):
        if file.abs_src_path:
            text = Path(file.abs_src_path).read_text(encoding="utf-8")
            linked |= _targets(text, posixpath.join("docs", posixpath.dirname(file.src_uri)))
    for path in sorted(linked):
        page = _page_of(path)
        if page is not None and page.startswith("source/"):
            add(page, "---\nsearch:\n  exclude: true\n---\n" + _source_page(path))
    add("reference/python.md", site_reference.python_page())
    add("reference/cpp.md", site_reference.cpp_page())
    add("site.css", (ROOT / "scripts" / "site.css").read_text(encoding="utf-8"))
    add("windows.html", explorer.page(site_package.VERSION))
    add("results.md", site_results.page())
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri.startswith(FOR_AUTHORS):
        page.meta["search"] = {"boost": 0.2}
    if page.file.generated_by is None:
        markdown = _with_links(
            markdown, posixpath.join("docs", posixpath.dirname(page.file.src_uri)), page.file.src_uri
        )
    return markdown.replace("```signature\n", "```python\n")  # which scripts/check_docs.py would run
