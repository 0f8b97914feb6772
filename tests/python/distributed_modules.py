"""Cases of distributed_ranks.py: modules with a group, against the same modules without."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

import natten_mlx
from distributed_harness import GROUP, RANK, SIZE, assert_close, case, refused
from natten_mlx import distributed
from natten_mlx.nn import RoPE

HEADS, HEAD_DIM = 4, 8
CHANNELS = HEADS * HEAD_DIM
DIMS = {1: 6, 2: (4, 2), 3: (2, 4, 2)}


def make(rank: int, options: dict[str, Any], **spread: Any) -> nn.Module:
    """With parameters that are no ones or zeros, the same each time."""
    mx.random.seed(4)
    layer = getattr(natten_mlx, f"NeighborhoodAttention{rank}D")(CHANNELS, HEADS, **options, **spread)
    layer.apply(lambda p: p + 0.2 * mx.random.normal(p.shape))
    return layer


class Field:
    """A random input of a module, and how an axis of it is spread."""

    def __init__(self, seed: int, **fixed: Any) -> None:
        r = random.Random(seed)
        self.rank = fixed.get("rank") or r.choice([1, 2, 3])
        self.axis = r.randrange(self.rank)
        self.rows = fixed.get("rows") or [r.randint(1, 5) for _ in range(SIZE)]
        self.shape = [r.randint(2, 5) for _ in range(self.rank)]
        self.shape[self.axis] = sum(self.rows)
        pads = fixed.get("pad_input", r.random() < 0.3)
        options: dict[str, Any] = {name: [] for name in ("kernel_size", "stride", "dilation", "is_causal")}
        options["is_circular"] = []
        for length in self.shape:
            d = r.choice([d for d in (1, 1, 2) if d <= length])
            k = r.randint(1, length // d) + (r.randint(0, 3) if pads else 0)
            circular = not pads and length % d == 0 and r.random() < 0.3
            options["dilation"].append(d)
            options["kernel_size"].append(k)
            options["is_circular"].append(circular)
            options["is_causal"].append(not circular and r.random() < 0.3)
            options["stride"].append(r.randint(1, k) if r.random() < 0.2 else 1)
        options["pad_input"] = pads
        options["rope"] = RoPE(DIMS[self.rank]) if r.random() < 0.6 else None
        options["num_registers"] = r.choice([0, 0, 2])
        options["rel_pos_bias"] = r.random() < 0.4
        options["qk_scale"] = mx.array([0.5, 0.3, 0.2, 1.0]) if r.random() < 0.3 else None
        options["num_kv_heads"] = r.choice([4, 4, 2, 1])
        norms = (None, nn.RMSNorm(HEAD_DIM), (nn.RMSNorm(HEAD_DIM), nn.LayerNorm(HEAD_DIM)))
        options["qk_norm"] = r.choice(norms)
        self.options = options
        mx.random.seed(seed)
        self.x = mx.random.normal((2, *self.shape, CHANNELS))
        self.lengths: list[mx.array] = []
        if r.random() < 0.4 and not any(options["is_circular"]):
            least = [
                1 if c or pads else k * d
                for k, d, c in zip(options["kernel_size"], options["dilation"], options["is_causal"], strict=True)
            ]
            lengths = [[r.randint(low, high) for low, high in zip(least, self.shape, strict=True)] for _ in range(2)]
            self.lengths = [mx.array(lengths if self.rank > 1 else [row[0] for row in lengths])]
        starts = np.cumsum([0, *self.rows])
        stride = options["stride"][self.axis]
        self.tokens = slice(int(starts[RANK]), int(starts[RANK + 1]))
        self.queries = slice(-(-self.tokens.start // stride), -(-self.tokens.stop // stride))

    def rows_of(self, whole: mx.array, rows: slice) -> mx.array:
        return whole[(slice(None),) * (1 + self.axis) + (rows,)]

    def check(self, **call: Any) -> None:
        """Result, gradient of the input, and gradients of parameters, summed."""
        plain = make(self.rank, self.options)
        spread = make(self.rank, self.options, group=GROUP, shard_axis=self.axis)
        wanted, slab = plain(self.x, *self.lengths), self.rows_of(self.x, self.tokens)
        assert_close("out", spread(slab, *self.lengths, **call), self.rows_of(wanted, self.queries), 2e-5)
        weights = mx.random.normal(wanted.shape, key=mx.random.key(1))

        def gradients(layer: nn.Module, x: mx.array, weights: mx.array, **call: Any) -> Any:
            def loss(parameters: Any, x: mx.array) -> mx.array:
                layer.update(parameters)
                return (layer(x, *self.lengths, **call) * weights).sum()

            return mx.grad(loss, argnums=(0, 1))(layer.trainable_parameters(), x)

        of_parameters, of_x = gradients(plain, self.x, weights)
        got, got_x = gradients(spread, slab, self.rows_of(weights, self.queries), **call)
        assert_close("dx", got_x, self.rows_of(of_x, self.tokens), 5e-5)
        got = dict(tree_flatten(distributed.sum_gradients(got, GROUP)))
        assert got.keys() == dict(tree_flatten(of_parameters)).keys()
        for name, whole in tree_flatten(of_parameters):
            assert_close("d" + name, got[name], whole, 5e-5)


def check_fields(first: int, count: int, **fixed: Any) -> None:
    for seed in range(first, first + count):
        field = Field(100 * SIZE + 1000 * seed, **fixed)
        try:
            field.check()
        except AssertionError as error:
            what = {k: v.tolist() if isinstance(v, mx.array) else v for k, v in field.options.items()}
            raise AssertionError(f"seed {seed}: {error}: rows {field.rows} of axis {field.axis}, {what}") from None


@case
def modules() -> None:
    check_fields(0, 16)


@case
def modules_that_pad() -> None:
    """Also the axis that is spread, on the last rank."""
    check_fields(100, 8, pad_input=True, rows=[2] + [1] * (SIZE - 1))


@case
def modules_with_rows() -> None:
    field = Field(7)
    field.check(rows=field.rows)
    layer = make(1, {"kernel_size": 1}, group=GROUP)
    x = mx.zeros((1, 3, CHANNELS))
    refused(lambda: layer(x, rows=[3] * (SIZE + 1)), "[NeighborhoodAttention1D] rows must be")
    refused(lambda: layer(x, rows=[4] * SIZE), "3 on this one")
    refused(lambda: make(1, {"kernel_size": 1})(x, rows=[3] * SIZE), "rows are those of the ranks")


@case
def parts_of_modules() -> None:
    """`project` and `attend` of a subclass: rope counts from the slab's own start."""

    class Sharper(natten_mlx.NeighborhoodAttention2D):
        def __call__(self, x: mx.array) -> mx.array:
            query, key, value = self.project(x)
            return self.proj(self.attend(2 * query, key, value).reshape(x.shape))

    layers = []
    for spread in ({}, {"group": GROUP, "shard_axis": -1}):
        mx.random.seed(5)
        layers.append(Sharper(CHANNELS, HEADS, 3, rope=RoPE((4, 4)), num_registers=1, **spread))
    x = mx.random.normal((1, 4, 4 * SIZE, CHANNELS))
    assert layers[1].shard_axis == 1
    mine = slice(4 * RANK, 4 * RANK + 4)
    assert_close("out", layers[1](x[:, :, mine]), layers[0](x)[:, :, mine], 2e-5)


@case
def training_of_modules() -> None:
    """A compiled step, checkpointed blocks, an optimizer."""
    options = {"kernel_size": 3, "rope": RoPE(6), "num_registers": 1}
    mx.random.seed(2)
    x, target = mx.random.normal((2, 2, 4 * SIZE, CHANNELS))
    mine = slice(4 * RANK, 4 * RANK + 4)

    def losses(spread: bool) -> list[float]:
        more = {"group": GROUP} if spread else {}
        model = nn.Sequential(*(make(1, {**options, "is_causal": causal}, **more) for causal in (False, True)))
        optimizer = optim.Adam(1e-2)

        def forward(a: mx.array) -> mx.array:
            for layer in model.layers:
                a = a + nn.utils.checkpoint(layer)(a)
            return a

        def step(a: mx.array, b: mx.array) -> mx.array:
            value_and_grad = nn.value_and_grad(model, lambda a, b: (forward(a) - b).square().sum() / x.size)
            loss, gradients = value_and_grad(a, b)
            if spread:
                loss, gradients = distributed.sum_gradients((loss, gradients), GROUP)
            optimizer.update(model, gradients)
            return loss

        state = [model.state, optimizer.state]
        compiled = mx.compile(step, inputs=state, outputs=state)
        found = []
        for _ in range(3):
            loss = compiled(*((x[:, mine], target[:, mine]) if spread else (x, target)))
            mx.eval(loss, state)
            found.append(loss.item())
        return found

    wanted, got = losses(False), losses(True)
    assert wanted[2] < wanted[0] and np.allclose(got, wanted, rtol=2e-5), (got, wanted)


@case
def modules_that_cannot_be() -> None:
    name = "[NeighborhoodAttention1D]"
    refused(lambda: make(1, {"kernel_size": 3}, group="ring"), name, "group must be an mlx.core.distributed.Group")
    for axis in (1, -2, True, 0.5):
        refused(lambda axis=axis: make(1, {"kernel_size": 3}, shard_axis=axis), name, "shard_axis must be")
    refused(lambda: make(1, {"kernel_size": 3, "attn_drop": 0.1}, group=GROUP), name, "attn_drop must be 0")
    refused(
        lambda: make(1, {"kernel_size": 3, "rope": lambda q, k: (q, k)}, group=GROUP), name, "rope that takes", "offset"
    )
    causal = make(1, {"kernel_size": 3, "is_causal": True}, group=GROUP)
    refused(lambda: causal.make_cache(1), name, "decoding is of one rank")
    cache = make(1, {"kernel_size": 3, "is_causal": True}).make_cache(1)
    refused(lambda: causal.step(mx.zeros((1, 1, CHANNELS)), cache), name, "decoding is of one rank")
    assert "shard_axis=0" in repr(causal) and make(1, {"kernel_size": 3}, shard_axis=-1).shard_axis == 0


@case
def modules_that_disagree() -> None:
    if SIZE == 1:
        return
    last = RANK == SIZE - 1
    x = mx.zeros((1, 4, CHANNELS))
    layer = make(1, {"kernel_size": 5 if last else 3}, group=GROUP)
    refused(lambda: layer(x), "[NeighborhoodAttention1D]", "kernel_size", f"got 3 on rank 0 and 5 on rank {SIZE - 1}")
    layer = make(1, {"kernel_size": 3, "num_registers": int(last)}, group=GROUP)
    refused(lambda: layer(x), "num_registers")
    layer = make(1, {"kernel_size": 3}, group=GROUP)
    refused(lambda: layer(mx.zeros((2 if last else 1, 4, CHANNELS))), "the shape of x")
    refused(lambda: layer(x, mx.array([4]) if last else None), "lengths")
    refused(lambda: layer(x, mx.array([4 * SIZE + 1])), "L_max")  # wrong on all
    refused(lambda: layer(mx.zeros((1, 4, CHANNELS + 1))), "channel dim")
    assert layer(x).shape == x.shape
