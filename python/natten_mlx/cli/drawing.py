"""Windows drawn as text and as pictures. The window itself comes from the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import blaming_options

Keys = list[list[int]]  # attended keys of each axis; the window is their product


def window_keys(
    query: tuple[int, ...] | None, shape: tuple[int, ...], **neighborhood: Any
) -> tuple[tuple[int, ...], Keys]:
    """The query (default: the computed one nearest to the middle) and the keys that it attends on each axis.

    `neighborhood` holds the keyword arguments of `na1d`, `na2d`, `na3d`. Raises `ValueError` where they would.
    """
    from natten_mlx import _ext, explain

    rank = len(shape)
    call = (1, *shape, 1, 1)
    with blaming_options():
        explain(call, call, call, **neighborhood)  # the library's validation, with its messages
    spread = {name: value if isinstance(value, tuple) else (value,) * rank for name, value in neighborhood.items()}
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
    keys = [
        _ext.window_keys(
            query[axis],
            shape[axis],
            spread["kernel_size"][axis],
            strides[axis],
            spread["dilation"][axis],
            spread["is_causal"][axis],
            spread["gna_stride"][axis],
        )
        for axis in range(rank)
    ]
    return query, keys


def _planes(query: tuple[int, ...], shape: tuple[int, ...], keys: Keys) -> list[tuple[int, list[list[str]]]]:
    """`(index of the plane, rows of cells)`; ranks 1 and 2 are one plane."""
    leading = 3 - len(shape)
    depth, height, width = (1,) * leading + shape
    at = (0,) * leading + query
    attended = [set(places) for places in [[0]] * leading + keys]

    def cell(*index: int) -> str:
        if index == at:
            return "Q"
        return "#" if all(i in places for i, places in zip(index, attended, strict=True)) else "."

    return [(z, [[cell(z, y, x) for x in range(width)] for y in range(height)]) for z in range(depth)]


def draw_text(query: tuple[int, ...], shape: tuple[int, ...], keys: Keys, width: int) -> str:
    """`Q` the query, `#` a key that it attends, `.` a token that it does not; a 3-D input plane by plane.

    Rows longer than `width` characters are cut into parts, one below the other.
    """
    blocks = []
    columns = max((width + 1) // 2, 1)
    last = len(shape) - 1
    for z, rows in _planes(query, shape, keys):
        title = [f"axis 0 = {z}"] if len(shape) == 3 else []
        for start in range(0, shape[-1], columns):
            end = min(start + columns, shape[-1])
            part = [f"axis {last} from {start} to {end - 1}"] if columns < shape[-1] else []
            blocks.append(
                "\n".join([", ".join(title + part)] * bool(title or part) + [" ".join(row[start:end]) for row in rows])
            )
    return "\n\n".join(blocks)


def draw_axes(axes: Any, query: tuple[int, ...], shape: tuple[int, ...], keys: Keys, title: str = "") -> None:
    """Draws one plane (rank 1 or 2) into matplotlib `axes`."""
    _draw_plane(axes, _planes(query, shape, keys)[0][1], title)


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


def save_picture(path: str, query: tuple[int, ...], shape: tuple[int, ...], keys: Keys) -> None:
    """Writes the drawing to `path`; matplotlib chooses the format by the suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install 'natten-mlx[plots]'") from None
    planes = _planes(query, shape, keys)
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
