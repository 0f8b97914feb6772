"""Windows drawn as text and as pictures. The window itself comes from the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import blaming_options

Places = list[list[int]]  # positions on each axis; queries and windows are products of them


def _spread(shape: tuple[int, ...], neighborhood: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The neighborhood with one value per axis. Raises `ValueError` where `na1d`, `na2d`, `na3d` would."""
    from natten_mlx import explain

    call = (1, *shape, 1, 1)
    with blaming_options():
        explain(call, call, call, **neighborhood)  # the library's validation, with its messages
    return {name: value if isinstance(value, tuple) else (value,) * len(shape) for name, value in neighborhood.items()}


def _keys(query: int, length: int, axis: int, spread: dict[str, tuple[Any, ...]]) -> list[int]:
    from natten_mlx import _ext

    names = ("kernel_size", "stride", "dilation", "is_causal", "gna_stride", "is_circular")
    return _ext.window_keys(query, length, **{name: spread[name][axis] for name in names if name in spread})


def window_keys(
    query: tuple[int, ...] | None, shape: tuple[int, ...], **neighborhood: Any
) -> tuple[tuple[int, ...], Places]:
    """The query (default: the computed one nearest to the middle) and the keys that it attends on each axis.

    `neighborhood` holds the keyword arguments of `na1d`, `na2d`, `na3d`. Raises `ValueError` where they would.
    """
    spread = _spread(shape, neighborhood)
    strides = spread["stride"]
    if query is None:
        query = tuple(length // 2 // stride * stride for length, stride in zip(shape, strides, strict=True))
    for axis, (index, length, stride) in enumerate(zip(query, shape, strides, strict=True)):
        if not 0 <= index < length:
            raise InputError(f"--query: {index} lies outside of axis {axis}, which has {length} tokens")
        if index % stride:
            raise InputError(
                f"--query: {index} isn't computed on axis {axis}: with --stride {stride} only its multiples are"
            )
    return query, [_keys(query[axis], length, axis, spread) for axis, length in enumerate(shape)]


def span_keys(
    start: tuple[int, ...] | None, rows: tuple[int, ...], shape: tuple[int, ...], **neighborhood: Any
) -> tuple[Places, Places, list[tuple[int, int]]]:
    """Per axis the computed queries of a span, the keys that they attend, and (key_start, rows) of what they need.

    The span begins in the middle where `start` is None.
    """
    from natten_mlx import key_span

    spread = _spread(shape, neighborhood)
    if start is None:
        start = tuple(max(0, (length - count) // 2) for length, count in zip(shape, rows, strict=True))
    with blaming_options():
        needed = key_span(query_start=start, rows=rows, shape=shape, **spread)
    queries = [
        [i for i in range(first, first + count) if i % stride == 0]
        for first, count, stride in zip(start, rows, spread["stride"], strict=True)
    ]
    if not all(queries):
        raise InputError("--rows: the span holds no query that --stride computes")
    keys = [
        sorted({key for query in queries[axis] for key in _keys(query, length, axis, spread)})
        for axis, length in enumerate(shape)
    ]
    return queries, keys, list(zip(*needed, strict=True))


def _planes(queries: Places, shape: tuple[int, ...], keys: Places) -> list[tuple[int, list[list[str]]]]:
    """`(index of the plane, rows of cells)`; ranks 1 and 2 are one plane."""
    leading = 3 - len(shape)
    depth, height, width = (1,) * leading + shape
    at, attended = ([set(places) for places in [[0]] * leading + of] for of in (queries, keys))

    def holds(places: list[set[int]], index: tuple[int, ...]) -> bool:
        return all(i in of for i, of in zip(index, places, strict=True))

    def cell(*index: int) -> str:
        return "Q" if holds(at, index) else "#" if holds(attended, index) else "."

    return [(z, [[cell(z, y, x) for x in range(width)] for y in range(height)]) for z in range(depth)]


def draw_text(queries: Places, shape: tuple[int, ...], keys: Places, width: int) -> str:
    """`Q` a query, `#` a key that one attends, `.` a token that none does; a 3-D input plane by plane.

    Rows longer than `width` characters are cut into parts, one below the other.
    """
    blocks = []
    columns = max((width + 1) // 2, 1)
    last = len(shape) - 1
    for z, rows in _planes(queries, shape, keys):
        title = [f"axis 0 = {z}"] if len(shape) == 3 else []
        for start in range(0, shape[-1], columns):
            end = min(start + columns, shape[-1])
            part = [f"axis {last} from {start} to {end - 1}"] if columns < shape[-1] else []
            blocks.append(
                "\n".join([", ".join(title + part)] * bool(title or part) + [" ".join(row[start:end]) for row in rows])
            )
    return "\n\n".join(blocks)


def draw_axes(axes: Any, queries: Places, shape: tuple[int, ...], keys: Places, title: str = "") -> None:
    """Draws one plane (rank 1 or 2) into matplotlib `axes`."""
    _draw_plane(axes, _planes(queries, shape, keys)[0][1], title)


def _draw_plane(axes: Any, rows: Sequence[Sequence[str]], title: str) -> None:
    from matplotlib.patches import Rectangle

    color = {".": "#eceff4", "#": "#7aa6da", "Q": "#d1495b"}
    for y, row in enumerate(rows):
        for x, kind in enumerate(row):
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color[kind], edgecolor="white", linewidth=1.2))
    axes.set(xlim=(0, len(rows[0])), ylim=(len(rows), 0), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def save_picture(path: str, queries: Places, shape: tuple[int, ...], keys: Places) -> None:
    """Writes the drawing to `path`; matplotlib chooses the format by the suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install 'natten-mlx[plots]'") from None
    planes = _planes(queries, shape, keys)
    columns = min(len(planes), 4)
    lines = -(-len(planes) // columns)
    height, width = len(planes[0][1]), len(planes[0][1][0])
    figure = Figure(figsize=(max(0.3 * width, 2) * columns, (0.3 * height + 0.4) * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(planes) :]:
        axes.set_axis_off()
    for axes, (z, rows) in zip(grid, planes, strict=False):
        _draw_plane(axes, rows, f"axis 0 = {z}" if len(shape) == 3 else "")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"can't write {path}: {error}") from None
