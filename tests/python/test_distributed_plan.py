"""Slabs, halos and messages of an axis that is spread over ranks, against brute force; and what the plan costs."""

import json
import random

import mlx.core as mx
import pytest

from natten_mlx import _ext
from natten_mlx.cli import main
from natten_mlx.distributed.plan import plan


def unwrapped_keys(query: int, length: int, k: int, d: int, causal: bool, u: int, circular: bool) -> list[int]:
    """By the definition, past the ends of a circular axis."""
    group, place, places = query % d, query // d, -(-(length - query % d) // d)
    if circular:
        start = place // u * u + u // 2 - k // 2
        return [(start + t) * d + group for t in range(k)]
    if causal:
        leader = min(place // u * u + u - 1, places - 1)
        return [j * d + group for j in range(max(leader - k + 1, 0), place + 1)]
    leader = min(place // u * u + u // 2, places - 1)
    start = min(max(leader - k // 2, 0), places - k)
    return [(start + t) * d + group for t in range(k)]


def random_axis(random: random.Random) -> tuple[list[int], dict]:
    """Rows of each rank, and a legal axis of their sum."""
    while True:
        rows = [random.randint(1, random.choice([2, 5, 12])) for _ in range(random.randint(1, 6))]
        length, circular = sum(rows), random.random() < 0.3
        d = random.choice([1, 1, 2, 3])
        if d > length or (circular and length % d):
            continue
        k = random.randint(1, length // d)
        u = random.randint(1, k) if random.random() < 0.3 else 1
        if circular and (length // d) % u:
            continue
        stride = random.randint(1, k) if u == 1 and random.random() < 0.4 else 1
        causal = not circular and random.random() < 0.3
        return rows, {
            "kernel_size": k,
            "stride": stride,
            "dilation": d,
            "is_causal": causal,
            "gna_stride": u,
            "is_circular": circular,
        }


@pytest.mark.parametrize("seed", range(300))
def test_every_rank_gets_the_keys_of_its_windows(seed):
    rows, axis = random_axis(random.Random(seed))
    length, size = sum(rows), len(rows)
    found = _ext.slab_plan(rows, **axis)
    window = [axis[name] for name in ("kernel_size", "dilation", "is_causal", "gna_stride", "is_circular")]
    held = [{} for _ in rows]  # by rank, distance to the owner: rows in reach, as positions of the whole axis
    for rank, slab in enumerate(found["slabs"]):
        start, end = slab["start"], slab["start"] + slab["rows"]
        queries = [q for q in range(start, end) if q % axis["stride"] == 0]
        keys = [key for q in queries for key in unwrapped_keys(q, length, *window)]
        assert slab["outputs"] == len(queries) and slab["pairs"] == len(keys)
        others = length - slab["rows"]
        assert slab["left"] == min(max([start - key for key in keys] + [0]), others)
        assert slab["right"] == min(max([key + 1 - end for key in keys] + [0]), others - slab["left"])
        held[rank][0] = list(range(start, end))
    for distance, hop in enumerate(found["hops"], 1):
        for rank in range(size):
            right, left = hop["to_right"][rank], hop["to_left"][rank]
            if right:
                held[(rank + 1) % size][-distance] = held[rank][1 - distance][-right:]
            if left:
                held[(rank - 1) % size][distance] = held[rank][distance - 1][:left]
            assert right <= len(held[rank].get(1 - distance, [])) and left <= len(held[rank].get(distance - 1, []))
    for rank, slab in enumerate(found["slabs"]):
        in_reach = {row for rows in held[rank].values() for row in rows}
        wanted = range(slab["start"] - slab["left"], slab["start"] + slab["rows"] + slab["right"])
        assert {row % length for row in wanted} <= in_reach


@pytest.mark.parametrize("seed", range(100))
def test_queries_between_the_borders_need_no_halo(seed):
    rows, axis = random_axis(random.Random(1000 + seed))
    rows = [8 * count for count in rows] if not axis["is_circular"] or axis["gna_stride"] == 1 else rows
    found = _ext.slab_plan(rows, **axis)
    window = [axis[name] for name in ("kernel_size", "dilation", "is_causal", "gna_stride", "is_circular")]
    if found["left_border"] + found["right_border"] == 0:
        return
    for slab in found["slabs"]:
        start, end = slab["start"], slab["start"] + slab["rows"]
        interior = range(start + found["left_border"], end - found["right_border"])
        assert any(q % axis["stride"] == 0 for q in interior)
        for query in [q for q in interior if q % axis["stride"] == 0]:
            assert all(start <= key < end for key in unwrapped_keys(query, sum(rows), *window))


def test_messages_of_a_plan():
    """Interior ranks send radius rows each way; windows of the outer ranks are shifted inside and reach no further."""
    p = plan((2, 64, 5, 3, 8), (7, 3), 4, axis=0, dtype=mx.float32, kv_heads=1, value_dim=4)
    row = 2 * 5 * 1 * (8 + 4) * 4
    assert [rank.bytes_forward for rank in p.ranks] == [3 * row, 6 * row, 6 * row, 3 * row]
    assert [rank.bytes_backward for rank in p.ranks] == [3 * row, 6 * row, 6 * row, 3 * row]
    assert [rank.messages for rank in p.ranks] == [1, 2, 2, 1]
    assert p.bytes_sent == 36 * row and p.hops == 1


def test_causal_axes_send_one_way():
    p = plan((1, 64, 2, 8), 5, 4, is_causal=True, training=False)
    assert [rank.messages for rank in p.ranks] == [1, 1, 1, 0]
    assert [rank.halo_rows for rank in p.ranks] == [0, 4, 4, 4]


def test_circular_axes_send_around_the_end():
    p = plan((1, 64, 2, 8), 5, 4, is_circular=True, training=False)
    assert [rank.halo_rows for rank in p.ranks] == [4, 4, 4, 4]


def test_small_slabs_take_several_hops():
    p = plan((1, 12, 2, 8), 7, 12, training=False)
    assert p.hops == 6  # of the outer ranks, whose windows are shifted inside


def test_the_video_decoder_on_eight_gpus():
    """Stage 5 of the decoder in docs/laboratory/distributed.md."""
    assert plan((1, 121, 128, 192, 4, 64), 11, 8, bandwidth=400e9).efficiency >= 0.95


def test_calls_that_no_tier_of_this_machine_runs():
    p = plan((1, 721, 1440, 16, 64), 13, 64, axis=1, is_circular=(False, True))
    assert {rank.halo for rank in p.ranks} == {(6, 6)}


def test_time_of_a_step():
    options = {"kernel_size": 5, "ranks": 2, "training": False, "dtype": mx.float32, "flops": 1e9, "bandwidth": 1e6}
    p = plan((1, 32, 1, 8), latency=1e-3, overlap=False, **options)
    message = 1e-3 + 2 * 16 * 4 / 1e6
    computing = 16 * 5 * 2 * 16 / 1e9
    assert p.ranks[0].compute_seconds == pytest.approx(computing)
    assert p.ranks[0].communication_seconds == pytest.approx(2 * message)
    assert p.step_seconds == pytest.approx(computing + 2 * message)
    hidden = plan((1, 32, 1, 8), latency=1e-3, **options)
    assert hidden.step_seconds == pytest.approx(2 * message + computing * 4 / 16)


def test_gathers_bring_everybodys_rows_to_everybody():
    p = plan((1, 64, 2, 8), 7, 4, dtype=mx.float32, gathers=True, latency=1.0, bandwidth=1.0, training=False)
    block = 6 * 2 * 16 * 4
    assert [rank.bytes_forward for rank in p.ranks] == [3 * block] * 4
    assert p.ranks[0].communication_seconds == pytest.approx(1 + 3 * block)


def test_rows_of_each_rank_may_be_given():
    assert [rank.rows for rank in plan((1, 12, 2, 8), 3, [2, 7, 3]).ranks] == [2, 7, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (1, 12)}, "shape must be"),
        ({"ranks": 13}, "ranks must share"),
        ({"ranks": [6, 5]}, "ranks must share"),
        ({"axis": 1}, "axis must be a spatial axis"),
        ({"bandwidth": 0}, "bandwidth must be positive"),
        ({"latency": -1}, "latency must not be negative"),
        ({"kernel_size": 13}, "kernel_size"),
        ({"kv_heads": 3}, "divisible by kv_heads"),
        ({"shape": (0, 12, 2, 8)}, "positive dimensions"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        plan(**{"shape": (1, 12, 2, 8), "kernel_size": 3, "ranks": 2, **change})


def test_command(capsys):
    base = ["plan", "--shape", "1,64,32,4,32", "--kernel-size", "7"]
    assert main([*base, "--ranks", "4"]) == 0
    assert "efficiency" in capsys.readouterr().out
    assert main([*base, "--ranks", "2,4,1000"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["ranks", "2", "4", "1000"] and "more ranks" in table[-1]
    assert main([*base, "--ranks", "4", "--json", "--circular", "true,false", "--forward"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert len(found["ranks"]) == 4 and found["bytes_sent"] == sum(rank["bytes_forward"] for rank in found["ranks"])
    assert main([*base, "--ranks", "0"]) == 2
    assert main([*base, "--ranks", "1000"]) == 2
