"""Sequences of different lengths, packed one after the other into a batch of 1."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx


def generate_varlen_parameters(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    seqlens_Q: mx.array | None = None,
    seqlens_KV: mx.array | None = None,
) -> tuple[mx.array | None, mx.array | None, int, int]:
    """(cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV) for `attention`, from int32 lengths.

    Raises:
        ValueError: lengths that do not fit each other or the arrays.
    """
    if seqlens_Q is None and seqlens_KV is None:
        return None, None, 0, 0
    query_lengths, key_lengths = _counts("seqlens_Q", seqlens_Q), _counts("seqlens_KV", seqlens_KV)
    if len(query_lengths) != len(key_lengths) or not query_lengths:
        raise ValueError(
            f"[attention] seqlens_Q and seqlens_KV must have the same size, at least 1, got {len(query_lengths)} and "
            f"{len(key_lengths)}"
        )
    cumulative = [mx.array([0, *_sums(lengths)], mx.int32) for lengths in (query_lengths, key_lengths)]
    return cumulative[0], cumulative[1], max(query_lengths), max(key_lengths)


def sequences(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    seqlens_Q: mx.array | None,
    seqlens_KV: mx.array | None,
    cumulative_seqlen_Q: mx.array | None,
    cumulative_seqlen_KV: mx.array | None,
    max_seqlen_Q: int | None,
    max_seqlen_KV: int | None,
) -> list[tuple[slice, slice]] | None:
    """Queries and keys of each sequence by the arguments of `attention`; None where nothing is packed."""
    if seqlens_Q is not None or seqlens_KV is not None:
        cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV = generate_varlen_parameters(
            query, key, value, seqlens_Q, seqlens_KV
        )
    if cumulative_seqlen_Q is None and cumulative_seqlen_KV is None and not max_seqlen_Q and not max_seqlen_KV:
        return None
    if max_seqlen_Q is None or max_seqlen_KV is None:
        raise ValueError("[attention] packed sequences need cumulative_seqlen_{Q,KV} and max_seqlen_{Q,KV}")
    if query.shape[0] != 1:
        raise ValueError(f"[attention] packed sequences need a batch of 1, got {query.shape[0]}")
    bounds = []
    for name, cumulative, longest, x in (
        ("Q", cumulative_seqlen_Q, max_seqlen_Q, query),
        ("KV", cumulative_seqlen_KV, max_seqlen_KV, key),
    ):
        ends = _counts(f"cumulative_seqlen_{name}", cumulative)
        lengths = [end - start for start, end in pairwise(ends)]
        if len(ends) < 2 or ends[0] != 0 or ends[-1] != x.shape[1] or min(lengths) < 0 or max(lengths) > longest:
            raise ValueError(
                f"[attention] cumulative_seqlen_{name} must rise from 0 to {x.shape[1]} in steps of at most "
                f"max_seqlen_{name}={longest}, got {ends}"
            )
        bounds.append([slice(start, end) for start, end in pairwise(ends)])
    if len(bounds[0]) != len(bounds[1]):
        raise ValueError("[attention] cumulative_seqlen_Q and cumulative_seqlen_KV must match in size")
    return list(zip(bounds[0], bounds[1], strict=True))


def _counts(name: str, x: object) -> list[int]:
    if not isinstance(x, mx.array) or x.dtype != mx.int32 or x.ndim != 1:
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, mx.array) else repr(x)
        raise ValueError(f"[attention] {name} must be an int32 array of one axis, got {got}")
    return [int(item) for item in x.tolist()]  # type: ignore[union-attr, arg-type]


def _sums(lengths: list[int]) -> list[int]:
    return [sum(lengths[: i + 1]) for i in range(len(lengths))]
