"""natten_mlx.compat and natten_mlx.extras: programs written for NATTEN's releases, with NATTEN's own calls.

The golden results of 0.14.6 and 0.17.1 pass through these modules unchanged: their layout, their alignment of causal
slots and their missing scale are the modules' business.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import natten_mlx
from harness import assert_near, run_python, to_mlx, to_numpy, vjp
from natten_mlx import compat
from natten_mlx.compat import _switches, table, v014, v0144, v0145, v015, v017, v020, v021, v0210
from natten_mlx.extras import allin1

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
ENTRIES = {entry["file"]: entry for entry in json.loads((GOLDEN / "manifest.json").read_text())["cases"]}
MODULES = {"v014": v014, "v015": v015, "v017": v017, "v020": v020, "v021": v021}
EARLIER = {"v0144": v0144, "v0145": v0145, "v0210": v0210}  # releases that differ from v014 and v021


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def close(a: mx.array, b: mx.array, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool(mx.allclose(a, b, atol=tolerance, rtol=tolerance))


@cache
def load(file: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / file) as stored:
        return {name: stored[name] for name in stored}


@pytest.fixture
def fresh_switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_switches, "_said", set())
    yield


class Packed(nn.Module):
    """Stands in for a module's qkv projection: the golden query, key and value."""

    def __init__(self, *arrays: mx.array) -> None:
        super().__init__()
        self.packed = mx.stack(arrays, axis=-3).reshape(*arrays[0].shape[:-2], -1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.packed


# Golden results, in NATTEN's layout from beginning to end


def of_rank(module: ModuleType, name: str, rank: int) -> Any:
    return getattr(module, name.replace("#", str(rank)))


def split_form(file: str) -> tuple[Any, Any]:
    """(query, key, rpb) -> logits and (attn, value) -> out, called as programs for that release call them."""
    entry = ENTRIES[file]
    rank, kernel, dilation = len(entry["spatial"]), entry["kernel_size"], entry["dilation"]
    if file.startswith("v0.14"):
        qkrpb, av = of_rank(v014, "natten#dqkrpb", rank), of_rank(v014, "natten#dav", rank)
        k, d = kernel[0], dilation[0]  # one number for all axes
        return (
            lambda q, key, rpb: qkrpb(q * entry["scale"], key, rpb, k, d),
            lambda attn, value: av(attn, value, k, d),
        )
    qk, av = of_rank(v017, "na#d_qk", rank), of_rank(v017, "na#d_av", rank)
    options = {"kernel_size": tuple(kernel), "dilation": tuple(dilation), "is_causal": tuple(entry["is_causal"])}
    return (
        lambda q, key, rpb: qk(q * entry["scale"], key, rpb=rpb, **options),
        lambda attn, value: av(attn, value, **options),
    )


@pytest.mark.parametrize("file", ENTRIES)
def test_golden_split_form(tier: str, file: str) -> None:
    golden = load(file)
    qk, av = split_form(file)
    names = ["q", "k"] + (["rpb"] if "rpb" in golden else [])
    inputs = [to_mlx(golden[name]) for name in names]

    def logits(*given: mx.array) -> list[mx.array]:
        return [qk(given[0], given[1], given[2] if len(given) > 2 else None)]

    assert_near(logits(*inputs)[0], golden["logits"], 1e-5, "logits")
    cotangent = to_mlx(np.where(np.isfinite(golden["logits"]), golden["dlogits"], 0.0))
    for name, gradient in zip(names, vjp(logits, inputs, [cotangent]), strict=True):
        assert_near(gradient, golden["d" + name], 1e-4, "d" + name)

    weights = mx.softmax(logits(*inputs)[0], axis=-1)
    assert_near(weights, golden["probs"], 1e-5, "probs")
    value = to_mlx(golden["v"])
    assert_near(av(weights, value), golden["out"], 1e-5, "out")
    dprobs, dv = vjp(lambda a, v: [av(a, v)], [to_mlx(golden["probs"]), value], [to_mlx(golden["dout"])])
    assert_near(dprobs, golden["dprobs"], 1e-4, "dprobs")
    assert_near(dv, golden["dv"], 1e-4, "dv")


@pytest.mark.parametrize("file", [file for file in ENTRIES if file.startswith("v0.17")])
def test_golden_fused_form(tier: str, file: str) -> None:
    entry, golden = ENTRIES[file], load(file)
    rank = len(entry["spatial"])
    query, key, value = (to_mlx(np.moveaxis(golden[name], 1, -2)) for name in "qkv")  # na#d is heads last
    call = of_rank(v017, "na#d", rank)
    rpb = to_mlx(golden["rpb"]) if "rpb" in golden else None
    arguments = tuple(entry["kernel_size"]), tuple(entry["dilation"]), tuple(entry["is_causal"]), rpb, entry["scale"]

    def run(*inputs: mx.array) -> list[mx.array]:
        return [call(*inputs, *arguments)]

    assert_near(run(query, key, value)[0], np.moveaxis(golden["out"], 1, -2), 1e-5, "out")
    cotangent = to_mlx(np.moveaxis(golden["dout"], 1, -2))
    for name, gradient in zip("qkv", vjp(run, [query, key, value], [cotangent]), strict=True):
        assert_near(gradient, np.moveaxis(golden["d" + name], 1, -2), 1e-4, "d" + name)


@pytest.mark.parametrize("file", ENTRIES)
def test_golden_modules(tier: str, file: str) -> None:
    """The modules between their projections."""
    entry, golden = ENTRIES[file], load(file)
    rank, dim = len(entry["spatial"]), entry["heads"] * entry["dim"]
    release, has_bias = (v014 if file.startswith("v0.14") else v017), "rpb" in golden
    module_type = of_rank(release, "NeighborhoodAttention#D", rank)
    if release is v014:
        kernel, dilation = entry["kernel_size"][0], entry["dilation"][0]
        module = module_type(dim, entry["heads"], kernel, dilation, has_bias, qk_scale=entry["scale"])
    else:
        module = module_type(
            dim,
            entry["heads"],
            tuple(entry["kernel_size"]),
            tuple(entry["dilation"]),
            tuple(entry["is_causal"]),
            has_bias,
            qk_scale=entry["scale"],
        )
    module.qkv = Packed(*(to_mlx(np.moveaxis(golden[name], 1, -2)) for name in "qkv"))
    module.proj = nn.Identity()
    if has_bias:
        module.rpb = to_mlx(golden["rpb"])
    expected = np.moveaxis(golden["out"], 1, -2)
    out = module(mx.zeros((entry["batch"], *entry["spatial"], dim)))
    assert_near(out, expected.reshape(*expected.shape[:-2], dim), 1e-5, "out")


# Names and signatures, as the releases have them

TENSOR = "query, key"
SPLIT_014 = {
    "natten#dqkrpb": "query, key, rpb, kernel_size, dilation",
    "natten#dqk": "query, key, kernel_size, dilation",
    "natten#dav": "attn, value, kernel_size, dilation",
}
SPLIT_015 = {
    "na#d_qk": "query, key, kernel_size, dilation, additional_keys=None",
    "na#d_qk_with_bias": "query, key, bias, kernel_size, dilation, additional_keys=None",
    "na#d_av": "attn, value, kernel_size, dilation, additional_values=None",
    "natten#dqkrpb": "query, key, rpb, kernel_size, dilation",
    "natten#dqk": "query, key, kernel_size, dilation, additional_keys=None",
    "natten#dav": "attn, value, kernel_size, dilation, additional_values=None",
}
DEPTH = "kernel_size_d, kernel_size, dilation_d, dilation"
SPLIT_015_3D = {
    "na3d_qk": f"query, key, {DEPTH}, additional_keys=None",
    "na3d_qk_with_bias": f"query, key, bias, {DEPTH}, additional_keys=None",
    "na3d_av": f"attn, value, {DEPTH}, additional_values=None",
    "natten3dqkrpb": f"query, key, rpb, {DEPTH}",
    "natten3dqk": f"query, key, {DEPTH}, additional_keys=None",
    "natten3dav": f"attn, value, {DEPTH}, additional_values=None",
}
OPERATIONS_017 = {
    "na#d_qk": "query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None",
    "na#d_av": "attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False",
    "na#d": "query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, additional_keys=None, "
    "additional_values=None, xformers_kwargs=None",
}
NATTEN_3D_017 = {
    "natten3dqkrpb": f"query, key, rpb, {DEPTH}",
    "natten3dqk": f"query, key, {DEPTH}",
    "natten3dav": f"attn, value, {DEPTH}",
}
NA_020 = (
    "query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, "
    "additional_values=None, attention_kwargs=None, backend=None, q_tile_shape=None, kv_tile_shape=None, "
    "backward_q_tile_shape=None, backward_kv_tile_shape=None, backward_kv_splits=None, "
    "backward_use_pt_reduction=False, run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, "
)
TUNING = (
    "backend=None, q_tile_size=None, kv_tile_size=None, backward_q_tile_size=None, backward_kv_tile_size=None, "
    "backward_kv_splits=None, backward_use_pt_reduction=False, run_persistent_kernel=True, kernel_schedule=None, "
    "torch_compile=False, return_lse=False"
)
VARLEN = (
    "seqlens_Q=None, seqlens_KV=None, cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, max_seqlen_Q=None, "
    "max_seqlen_KV=None"
)
DROPS = "attn_drop=0.0, proj_drop=0.0"
MODULE_014 = f"dim, num_heads, kernel_size, dilation=1, bias=True, qkv_bias=True, qk_scale=None, {DROPS}"
MODULE_015_3D = (
    "dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, bias=True, qkv_bias=True, "
    f"qk_scale=None, {DROPS}"
)
MODULE_017 = (
    "dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, qkv_bias=True, qk_scale=None, "
    f"{DROPS}, use_experimental_ops=False"
)
MODULE_020 = (
    "embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None, "
    "proj_drop=0.0"
)
DEVICE = ("has_half", "has_bfloat", "has_gemm", "has_tf32_gemm", "has_fp32_gemm", "has_fp64_gemm", "has_fna")
UNFUSED = ("tf32", "tiled_na", "gemm_na")
MEMORY_AND_DETERMINISM = {
    "use_deterministic_algorithms": "mode=True",
    "are_deterministic_algorithms_enabled": "",
    "use_kv_parallelism_in_fused_na": "mode=True",
    "is_kv_parallelism_in_fused_na_enabled": "",
    "set_memory_usage_preference": "pref='default'",
    "get_memory_usage_preference": "",
    "is_memory_usage_default": "",
    "is_memory_usage_strict": "",
    "is_memory_usage_unrestricted": "",
}
SWITCHES_017 = {
    **MEMORY_AND_DETERMINISM,
    **{name: "" for kind in UNFUSED for name in (f"enable_{kind}", f"disable_{kind}")},
    **{f"use_{kind}": "mode=True" for kind in ("tf32_in_gemm_na", "tiled_na", "gemm_na")},
    **{f"is_{kind}_enabled": "" for kind in ("tf32_in_gemm_na", "tiled_na", "gemm_na", "fused_na", "fna", "autotuner")},
    **{f"is_autotuner_{state}": "" for state in ("enabled_for_forward", "enabled_for_backward")},
    **{f"is_autotuner_{state}": "" for state in ("thorough_for_forward", "thorough_for_backward")},
    **dict.fromkeys(
        ("use_fused_na", "use_fna"), "mode=True, kv_parallel=True, use_flex_attention=False, force_flex_attention=False"
    ),
    "use_flex_attention": "",
    "force_flex_attention": "",
    "use_autotuner": "forward_pass=None, backward_pass=None, thorough_mode_forward=None, thorough_mode_backward=None, "
    "warmup_steps_forward=None, warmup_steps_backward=None, steps_forward=None, steps_backward=None",
    "disable_autotuner": "",
}
SWITCHES_020 = {
    **MEMORY_AND_DETERMINISM,
    "is_flex_compile_allowed": "",
    "is_flex_compile_backprop_allowed": "",
    "allow_flex_compile": "mode=True, backprop=False",
    "allow_flex_compile_backprop": "mode=True",
    "disable_flex_compile": "",
    "disable_flex_compile_backprop": "",
}


def ranks(signatures: dict[str, str], *wanted: int) -> dict[str, str]:
    return {name.replace("#", str(r)): text for name, text in signatures.items() for r in wanted}


def configurations(*names: str) -> dict[str, str]:
    return {f"get_{name}": "query, key, value" + (", torch_compile=False" if "flex" in name else "") for name in names}


CONFIGURATIONS_020 = configurations(
    *(f"configs_for_cutlass_{kind}{op}" for kind in ("", "hopper_", "blackwell_") for op in ("fmha", "fna")),
    *(f"bwd_configs_for_cutlass_{op}" for op in ("fmha", "fna")),
    *(f"configs_for_flex_{op}" for op in ("fmha", "fna")),
)
CONFIGURATIONS_021 = CONFIGURATIONS_020 | configurations(
    *(f"bwd_configs_for_cutlass_{kind}{op}" for kind in ("hopper_", "blackwell_") for op in ("fmha", "fna"))
)
OURS = {"has_cuda": "", "has_mps": "", "has_mlx": ""} | dict.fromkeys(DEVICE[:3] + DEVICE[6:], "device_index=None")
GEMM = dict.fromkeys(DEVICE[3:6], "device_index=None")

SIGNATURES = {
    "v014": ranks(SPLIT_014, 1, 2) | ranks({"NeighborhoodAttention#D": MODULE_014}, 1, 2) | OURS,
    "v015": ranks(SPLIT_015, 1, 2)
    | SPLIT_015_3D
    | ranks({"NeighborhoodAttention#D": MODULE_014}, 1, 2)
    | {"NeighborhoodAttention3D": MODULE_015_3D}
    | {name: "" for kind in UNFUSED for name in (f"enable_{kind}", f"disable_{kind}")}
    | OURS
    | GEMM,
    "v017": ranks(OPERATIONS_017, 1, 2, 3)
    | ranks(SPLIT_014, 1, 2)
    | NATTEN_3D_017
    | ranks({"NeighborhoodAttention#D": MODULE_017}, 1, 2, 3)
    | SWITCHES_017
    | OURS
    | GEMM
    | {"has_fused_na": "device_index=None"},
    "v020": ranks({"na#d": NA_020 + "try_fuse_additional_kv=False"}, 1, 2, 3)
    | {"neighborhood_attention_generic": NA_020 + "try_fuse_additional_kv=False"}
    | {"attention": f"query, key, value, scale=None, {TUNING}"}
    | {"merge_attentions": "outputs, lse_tensors, torch_compile=True"}
    | ranks({"NeighborhoodAttention#D": MODULE_020}, 1, 2, 3)
    | SWITCHES_020
    | CONFIGURATIONS_020
    | OURS,
    "v021": ranks({"na#d": NA_020 + "return_lse=False"}, 1, 2, 3)
    | {"neighborhood_attention_generic": NA_020 + "return_lse=False"}
    | {"attention": f"query, key, value, is_causal=False, scale=None, {VARLEN}, {TUNING}"}
    | {"merge_attentions": "outputs, lse_tensors, torch_compile=True, use_autograd_fix=True"}
    | ranks({"NeighborhoodAttention#D": MODULE_020}, 1, 2, 3)
    | SWITCHES_020
    | CONFIGURATIONS_021
    | OURS,
}
SPLIT_0145 = {"natten#dqkrpb": "query, key, rpb, kernel_size, dilation", "natten#dav": "attn, value, dilation"}
SPLIT_0144 = {"natten#dqkrpb": "query, key, rpb, dilation", "natten#dav": "attn, value, dilation"}
MODULE_0144 = f"dim, kernel_size, num_heads, qkv_bias=True, qk_scale=None, {DROPS}, dilation=None"
NA_0210 = NA_020.removesuffix(", ")
SIGNATURES |= {
    "v0144": ranks(SPLIT_0144, 1, 2)
    | ranks({"NeighborhoodAttention#D": MODULE_0144}, 1, 2)
    | {"NeighborhoodAttention": MODULE_0144}
    | OURS,
    "v0145": ranks(SPLIT_0145, 1, 2) | ranks({"NeighborhoodAttention#D": MODULE_014}, 1, 2) | OURS,
    "v0210": SIGNATURES["v021"]
    | ranks({"na#d": NA_0210}, 1, 2, 3)
    | {"neighborhood_attention_generic": NA_0210}
    | {"attention": f"query, key, value, scale=None, {TUNING}"}
    | {"merge_attentions": "outputs, lse_tensors, torch_compile=True"},
}
CONSTANTS = {"__version__", "experimental", "flops", "functional", "utils", "HAS_LIBNATTEN"}


def signature(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in parameters)


def signature_or_none(module: ModuleType, name: str) -> str | None:
    return None if name in CONSTANTS else signature(getattr(module, name))


@pytest.mark.parametrize("release", MODULES | EARLIER)
def test_signatures_are_the_release_s(release: str) -> None:
    module = (MODULES | EARLIER)[release]
    assert set(module.__all__) - CONSTANTS == set(SIGNATURES[release])
    for name, expected in SIGNATURES[release].items():
        assert signature(getattr(module, name)) == expected, name
        assert getattr(module, name).__doc__, name
    assert module.__version__.startswith(f"0.{release[2:4]}.")


@pytest.mark.parametrize("release", MODULES)
def test_the_table_has_every_name(release: str) -> None:
    """And nothing but names: what it says is here is here, what it says is missing is missing."""
    module = MODULES[release]
    listed = {entry.name for entry in table.RELEASES[release].entries if entry.is_here}
    assert listed == set(module.__all__)
    for entry in table.RELEASES[release].entries:
        if not entry.is_here:
            assert not hasattr(module, entry.name.partition("(")[0].rpartition(".")[2])


@pytest.mark.parametrize("release", EARLIER)
def test_the_table_says_what_earlier_releases_had(release: str) -> None:
    module, own = EARLIER[release], {e.module: e for r in table.RELEASES.values() for e in r.earlier}[release]
    newest = MODULES[release[:4]]
    assert set(newest.__all__) - set(own.lacks) | {entry.name for entry in own.entries} == set(module.__all__)
    for name in module.__all__:
        is_other = name not in newest.__all__ or signature_or_none(module, name) != signature_or_none(newest, name)
        assert is_other == (name in {entry.name for entry in own.entries}) or name == "NeighborhoodAttention"
    for name in own.lacks:
        for holder in (module, module.functional):
            with pytest.raises(AttributeError, match=rf"compat.{release}[.a-z]*' has no attribute '{name}'"):
                getattr(holder, name)
    for name in module.functional.__all__:
        assert getattr(module, name) is getattr(module.functional, name)


@pytest.mark.parametrize("name", ["compat.v017.na1d", "compat.for_version", "extras.allin1.na1d_qk_rpb", "models.load"])
def test_parts_are_there_when_they_are_named(name: str) -> None:
    """And not before: they would make `import natten_mlx` slower."""
    part = name.partition(".")[0]
    code = f"""
        import sys
        import natten_mlx
        assert "natten_mlx.{part}" not in sys.modules
        assert callable(natten_mlx.{name})
        try:
            natten_mlx.part
        except AttributeError as error:
            print(error)
    """
    assert run_python(code).stdout == "module 'natten_mlx' has no attribute 'part'\n"


@pytest.mark.parametrize("release", MODULES | EARLIER)
def test_functions_are_in_functional_as_well(release: str) -> None:
    code = f"""
        import natten_mlx.compat.{release} as natten
        from natten_mlx.compat.{release}.functional import *
        from natten_mlx.compat import for_version
        assert for_version(natten.__version__) is natten
        print(len([name for name in dir(natten.functional) if name.startswith("na") and hasattr(natten, name)]))
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 3


# What the releases' documentation imports from modules of NATTEN, besides its functions.
TESTS_OF_MACHINES = ("has_gemm", "has_tf32_gemm", "has_fp32_gemm", "has_fp64_gemm")
IMPORTS = {
    ("v014", "flops"): ("get_flops", "add_natten_handle"),
    ("v0144", "flops"): ("get_flops", "add_natten_handle"),
    ("v0145", "flops"): ("get_flops", "add_natten_handle"),
    ("v015", "flops"): ("get_flops", "add_natten_handle"),
    ("v017", "flops"): ("fna_flop_count", "na_qk_flop_count", "na_av_flop_count", "get_flops", "add_natten_handle"),
    ("v015", "functional"): (
        *("get_device_cc", "has_cuda", "has_half", "has_bfloat", *TESTS_OF_MACHINES),
        *(f"{state}_{kind}" for state in ("enable", "disable") for kind in UNFUSED),
    ),
    ("v017", "functional"): (
        *TESTS_OF_MACHINES,
        *(f"{state}_{kind}" for state in ("enable", "disable") for kind in UNFUSED[1:]),
    ),
    ("v017", "experimental"): ("na1d", "na2d", "na3d"),
    ("v017", "utils"): ("get_device_cc",),
    ("v021", "utils.varlen"): ("generate_varlen_parameters",),
}


@pytest.mark.parametrize(("release", "inside"), IMPORTS)
def test_modules_of_the_release_s_documentation(release: str, inside: str) -> None:
    names = IMPORTS[release, inside]
    module = importlib.import_module(f"natten_mlx.compat.{release}.{inside}")
    for name in names:
        found = getattr(module, name)
        assert found.__doc__
        if hasattr(MODULES.get(release), name):
            assert found == getattr(MODULES[release], name), "another function, or a switch with a state of its own"


def test_flop_counts() -> None:
    heads_last, heads_first = (2, 8, 9, 3, 4), (2, 3, 8, 9, 4)
    window: Any = ((3, 5), (1, 1), (False, True))
    macs = 2 * 3 * 8 * 9 * 15 * 4
    for shape, last in ((heads_last, True), (heads_first, False)):
        assert v017.flops.na_qk_flop_count(shape, shape, *window, is_heads_last=last) == 2 * macs
        attn, wide = (*shape[:-1], 15), (*shape[:-1], 8)
        assert v017.flops.na_av_flop_count(attn, shape, *window, last, return_macs=True) == macs
        assert v017.flops.fna_flop_count(shape, shape, wide, *window, last, True) == 3 * macs
    for call, message in (
        (lambda: v017.flops.na_qk_flop_count((2, 8, 3, 4), (2, 8, 3, 4), *window, True), "q_shape must have 5 axes"),
        (lambda: v017.flops.na_qk_flop_count(heads_last, heads_first, *window, True), "must match"),
        (lambda: v017.flops.na_av_flop_count(heads_last, heads_first, *window, True), "must match but for the last"),
        (lambda: v017.flops.fna_flop_count(heads_last, heads_last, heads_first, *window, True), "must match"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_what_is_not_here_says_why() -> None:
    for module in (v014, v015, v017):
        for name in ("get_flops", "add_natten_handle"):
            with pytest.raises(NotImplementedError, match=rf"\[{name}\] counts the operations of a PyTorch model"):
                getattr(module.flops, name)(None, None)
    if not mx.cuda.is_available():
        for module in (v015.functional, v017.utils):
            with pytest.raises(RuntimeError, match=r"\[get_device_cc\] only CUDA GPUs .* there is none here"):
                module.get_device_cc(0)
    for release, module in MODULES.items():
        for entry in table.RELEASES[release].entries:
            path = entry.name.partition(" ")[0].split(".")
            if entry.is_here or (path[1] in module.__all__ and path[1] != "functional"):
                continue
            holder, name = (module.functional, path[2]) if path[1] == "functional" else (module, path[1])
            with pytest.raises(AttributeError, match=rf"natten\..*{name}.* of NATTEN 0\.\d\d is not here: "):
                getattr(holder, name)
        for holder in (module, module.functional):
            with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
                _ = holder.nothing


@pytest.mark.parametrize(
    ("version", "module"),
    [
        ("0.13", v014),
        ("0.14", v014),
        ("0.14.1", v0144),
        ("v0.14.2+torch1100cu113", v0144),
        ("0.14.2.post4", v0144),
        ("0.14.4", v0144),
        ("0.14.5", v0145),
        ("0.14.6", v014),
        ("0.15.0", v015),
        ("v0.15.1", v015),
        ("0.16", v017),
        ("0.17", v017),
        ("0.17.4", v017),
        ("0.17.1+torch230cu121", v017),
        ("0.18", v017),
        ("0.19.9", v017),
        ("0.20.0", v020),
        ("0.20.2.dev1", v020),
        ("0.21.0", v0210),
        ("0.21.1+torch280cu128", v0210),
        ("0.21", v021),
        ("0.21.5", v021),
        ("0.21.6", v021),
        ("0.21.7rc1", v021),
        ("0.30", v021),
        ("1.0", v021),
    ],
)
def test_for_version(version: str, module: ModuleType) -> None:
    assert compat.for_version(version) is module


@pytest.mark.parametrize("version", ["", "0", "newest", "0.x", "0.17.1 ", "-0.17", None, 0.17, (0, 17)])
def test_for_version_of_what_is_none(version: Any) -> None:
    with pytest.raises(ValueError, match=r"\[for_version\] expected a version of NATTEN"):
        compat.for_version(version)


# Meanings


def calls_of(module: ModuleType, rank: int) -> Iterator[tuple[str, mx.array]]:
    """Every function on arrays of this module for `rank` axes, in its own layout, and its result, not evaluated."""
    heads_last, heads_first = (1, *(5,) * rank, 2, 4), (1, 2, *(5,) * rank, 4)
    rpb = normal(2, *(5,) * rank)
    forms = {
        "natten#dqkrpb": lambda f: f(x, x, rpb, *window),
        "natten#dqk": lambda f: f(x, x, *window),
        "natten#dav": lambda f: f(attn, x, *window),
        "na#d_qk": lambda f: f(x, x, *window),
        "na#d_qk_with_bias": lambda f: f(x, x, rpb, *window),
        "na#d_qk_rpb": lambda f: f(x, x, rpb, 3, 1),
        "na#d_av": lambda f: f(attn, x, *window),
        "na#d_av_fused": lambda f: f(attn, x, 3, 1),
        "na#d": lambda f: f(x, x, x, 3),
    }
    for form, call in forms.items():
        name = form.replace("#", str(rank))
        if not hasattr(module, name):
            continue
        is_first = module is not allin1 and form != "na#d"
        has_depth = rank == 3 and (module is v015 or form.startswith("natten"))  # its numbers come before the others'
        window = (3, 3, 1, 1) if has_depth else (3, 1)
        x = normal(*(heads_first if is_first else heads_last))
        attn = normal(*x.shape[:-1], 3**rank)
        mx.eval(x, attn, rpb)
        yield name, call(getattr(module, name))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("release", [*MODULES, "allin1"])
def test_there_are_no_copies_but_views(release: str, rank: int) -> None:
    """Between NATTEN's layout and the operation: transpositions only."""
    if release in ("v014", "allin1") and rank == 3:
        pytest.skip("has two dimensions at most")
    calls = list(calls_of({**MODULES, "allin1": allin1}[release], rank))
    assert len(calls) == {"v014": 3, "v015": 6, "v017": 6, "v020": 1, "v021": 1, "allin1": 2}[release]
    for name, result in calls:
        text = io.StringIO()
        mx.export_to_dot(text, result)
        kinds = set(re.findall(r'label ?= ?"([^"]+)"', text.getvalue()))
        assert kinds and not kinds & {"Copy", "Contiguous", "AsType", "Gather", "GatherAxis", "Concatenate"}, (
            name,
            kinds,
        )


def test_unscaled_and_heads_first() -> None:
    query, key = normal(2, 3, 7, 4), normal(2, 3, 7, 4, seed=1)
    logits = v014.natten1dqk(query, key, 3, 1)
    assert logits.shape == (2, 3, 7, 3)
    assert close(logits[0, 1, 3, 0], (query[0, 1, 3] * key[0, 1, 2]).sum())


def test_causal_slots_are_left_aligned() -> None:
    query = mx.ones((1, 1, 6, 4))
    logits = v017.na1d_qk(query, query, 3, 2, is_causal=True)[0, 0]
    empty = np.isneginf(np.array(logits))
    assert empty.tolist() == [[False, True, True]] * 2 + [[False, False, True]] * 2 + [[False] * 3] * 2
    attn = mx.zeros((1, 1, 6, 3))
    attn[..., 0] = 1.0  # of the first key of each window; whatever stands in the empty slots is ignored
    attn[0, 0, 0, 1:] = mx.nan
    values = mx.arange(6.0).reshape(1, 1, 6, 1)
    out = v017.na1d_av(attn, values, 3, 2, is_causal=True)
    assert out.flatten().tolist() == [0, 1, 0, 1, 0, 1]
    assert attn[..., 0].min() == 1 and mx.isnan(attn[0, 0, 0, 1:]).all()  # the caller's, as it was


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_causal_slots_beside_additional_tokens(tier: str, rank: int) -> None:
    """Both halves together are the fused form, for windows that are full and for those that are not."""
    query, key, value = (normal(2, 3, *(8, 6, 5)[:rank], 4, seed=seed) for seed in range(3))
    keys, values = normal(2, 3, 2, 4, seed=3), normal(2, 3, 2, 4, seed=4)
    window = {"kernel_size": (3, 5, 3)[:rank], "dilation": (2, 1, 1)[:rank], "is_causal": (True, False, True)[:rank]}
    qk, av = of_rank(v017, "na#d_qk", rank), of_rank(v017, "na#d_av", rank)
    weights = mx.softmax(qk(query * 0.5, key, additional_keys=keys, **window), -1)
    out = av(weights, value, additional_values=values, **window)
    q, k, v = (mx.moveaxis(x, 1, -2) for x in (query, key, value))
    more = {"additional_keys": keys.swapaxes(1, 2), "additional_values": values.swapaxes(1, 2)}
    expected = of_rank(v017, "na#d", rank)(q, k, v, **window, **more)
    assert close(mx.moveaxis(out, 1, -2), expected)


@pytest.mark.parametrize("release", ["v015", "v017"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_additional_tokens_of_the_split_form(release: str, rank: int) -> None:
    """Their logits come last; one softmax over both gives the fused result."""
    query, key, value = (normal(2, 3, *(5,) * rank, 4, seed=seed) for seed in range(3))
    keys, values = normal(2, 3, 2, 4, seed=3), normal(2, 3, 2, 4, seed=4)
    module = MODULES[release]
    window = (3, 3, 1, 1) if release == "v015" and rank == 3 else (3, 1)
    logits = of_rank(module, "na#d_qk", rank)(query * 0.5, key, *window, additional_keys=keys)
    assert logits.shape[-1] == 3**rank + 2
    out = of_rank(module, "na#d_av", rank)(mx.softmax(logits, -1), value, *window, additional_values=values)
    q, k, v = (mx.moveaxis(x, 1, -2) for x in (query, key, value))
    expected = of_rank(v017, "na#d", rank)(
        q, k, v, 3, additional_keys=keys.swapaxes(1, 2), additional_values=values.swapaxes(1, 2)
    )
    assert close(mx.moveaxis(out, 1, -2), expected)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_kernel_size_follows_from_shapes_in_0_14_5(rank: int) -> None:
    x, rpb = normal(1, 2, *(11,) * rank, 4), normal(2, *(9,) * rank, seed=1)
    logits = of_rank(v014, "natten#dqkrpb", rank)(x, x, rpb, 5, 2)
    attn = mx.softmax(logits, axis=-1)
    out = of_rank(v014, "natten#dav", rank)(attn, x, 5, 2)
    assert mx.array_equal(of_rank(v0144, "natten#dqkrpb", rank)(x, x, rpb, 2), logits)
    slots = 5**rank - 1
    for release in (v0144, v0145):
        assert mx.array_equal(of_rank(release, "natten#dav", rank)(attn, x, 2), out)
        assert mx.array_equal(of_rank(release, "natten#dav", rank)(attn, x, dilation=2), out)
        with pytest.raises(ValueError, match=rf"\[natten{rank}dav\] attn must hold K.* per query.* got {slots}"):
            of_rank(release, "natten#dav", rank)(attn[..., :slots], x, 2)
    unbiased = of_rank(v0145, "natten#dqkrpb", rank)(x, x, None, 5, 2)
    assert mx.array_equal(unbiased, of_rank(v014, "natten#dqk", rank)(x, x, 5, 2))
    for bad in (None, rpb[..., :8], rpb[0], normal(2, *(7,) * rank)):
        with pytest.raises(ValueError, match=rf"\[natten{rank}dqkrpb\] rpb must be .* \[heads, 2 \* K - 1"):
            of_rank(v0144, "natten#dqkrpb", rank)(x, x, bad, 2)


@pytest.mark.parametrize("rank", [1, 2])
def test_modules_of_0_14_4_take_the_kernel_size_first(rank: int) -> None:
    x = normal(1, *(13,) * rank, 12)
    layer = of_rank(v0144, "NeighborhoodAttention#D", rank)(12, 3, 2, False, 0.5, 0.0, 0.0, 2)
    same = of_rank(v014, "NeighborhoodAttention#D", rank)(12, 2, 3, 2, True, False, 0.5)
    same.update(layer.parameters())
    assert (layer.num_heads, layer.kernel_size, layer.window_size, layer.scale) == (2, 3, 6, 0.5)
    assert mx.array_equal(layer(x), same(x))
    if rank == 2:
        with pytest.warns(DeprecationWarning, match="NeighborhoodAttention2D since NATTEN 0.13"):
            layer = v0144.NeighborhoodAttention(12, 3, 2, dilation="auto")
        for size, dilation in ((13, 4), (7, 2), (2, 1)):  # the shorter side decides
            same = v014.NeighborhoodAttention2D(12, 2, 3, dilation)
            same.update(layer.parameters())
            x = normal(1, 16, size, 12)
            assert mx.array_equal(layer(x), same(x))
    with pytest.raises(ValueError, match="kernel_size must be an odd number"):
        of_rank(v0144, "NeighborhoodAttention#D", rank)(12, 2, 3)
    with pytest.raises(TypeError, match="'bias'"):
        of_rank(v0144, "NeighborhoodAttention#D", rank)(12, 3, 2, bias=False)


def test_0_21_0_is_0_20_without_an_argument() -> None:
    x = normal(1, 8, 8, 2, 4)
    assert mx.array_equal(v0210.na2d(x, x, x, 4, 2), v020.na2d(x, x, x, 4, 2))
    with pytest.raises(TypeError, match="try_fuse_additional_kv"):
        v0210.na2d(x, x, x, 4, try_fuse_additional_kv=True)
    with pytest.raises(ValueError, match="numbers of heads must match in this release"):
        v0210.na2d(x, x[..., :1, :], x[..., :1, :], 4)
    flat = x.reshape(1, 64, 2, 4)
    out, lse = v0210.attention(flat, flat, flat, 0.25, return_lse=True)
    assert close(out, natten_mlx.attention(flat, flat, flat, scale=0.25))
    assert close(v0210.merge_attentions([out, out], [lse, lse]), out)
    assert v0210.NeighborhoodAttention2D(8, 2, 4, 2)(normal(1, 8, 8, 8)).shape == (1, 8, 8, 8)


def test_depth_comes_first_in_0_15() -> None:
    query = normal(1, 2, 3, 11, 12, 4)
    logits = v015.na3d_qk(query, query, 3, 5, 1, 2)
    heads_last = mx.moveaxis(query, 1, -2)
    expected = natten_mlx.na3d_qk(heads_last, heads_last, (3, 5, 5), (1, 2, 2), scale=1.0)
    assert close(mx.moveaxis(logits, 1, -2), expected)
    for module in (v015, v017):
        attn = mx.softmax(module.natten3dqkrpb(query, query, None, 3, 5, 1, 2), -1)
        assert close(module.natten3dqk(query, query, 3, 5, 1, 2), logits)
        assert module.natten3dav(attn, query, 3, 5, 1, 2).shape == query.shape
    layer = v015.NeighborhoodAttention3D(16, 4, 5, 3, 2, 1)
    assert layer.kernel_size == (3, 5, 5) and layer.dilation == (1, 2, 2) and layer.rpb.shape == (4, 5, 9, 9)
    assert v015.NeighborhoodAttention3D(16, 4, 3, dilation=2).dilation == (2, 2, 2)


@pytest.mark.parametrize("release", ["v020", "v021"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_stride_is_the_gna_stride(release: str, rank: int) -> None:
    query, key, value = (normal(1, *(6,) * rank, 2, 8, seed=seed) for seed in range(3))
    out = of_rank(MODULES[release], "na#d", rank)(query, key, value, 4, 2)
    assert out.shape == query.shape
    assert close(out, of_rank(natten_mlx, "na#d", rank)(query, key, value, 4, gna_stride=2))
    assert close(MODULES[release].functional.neighborhood_attention_generic(query, key, value, 4, 2), out)
    layer = of_rank(MODULES[release], "NeighborhoodAttention#D", rank)(16, 2, 4, 2, 1, False, False, None, 0.0)
    assert layer(normal(1, *(6,) * rank, 16)).shape == (1, *(6,) * rank, 16)
    assert layer.gna_stride == (2,) * rank and layer.stride == 1 and "bias" not in layer.qkv


@pytest.mark.parametrize("release", MODULES)
def test_modules_hold_the_weights_of_natten(release: str) -> None:
    rank = 2
    layer = of_rank(MODULES[release], "NeighborhoodAttention#D", rank)(8, 2, 3)
    names = {name for name, _ in nn.utils.tree_flatten(layer.parameters())}
    bias = {"rpb"} if release in ("v014", "v015") else set()
    assert names == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"} | bias
    assert layer.qkv.weight.shape == (24, 8) and layer.scale == 0.5 and layer.head_dim == 4
    assert of_rank(MODULES[release], "NeighborhoodAttention#D", rank)(8, 2, 3, qk_scale=0.0).scale == 0.5


@pytest.mark.parametrize("release", ["v014", "v015"])
@pytest.mark.parametrize("rank", [1, 2])
def test_old_modules_pad_and_have_a_bias(release: str, rank: int) -> None:
    layer = of_rank(MODULES[release], "NeighborhoodAttention#D", rank)(8, 2, 3, 2)
    assert layer.window_size == 6 and layer.rpb.shape == (2, *(5,) * rank)
    x = normal(1, *(4,) * rank, 8)
    assert layer(x).shape == x.shape
    padded = mx.pad(x, [(0, 0), *[(0, 2)] * rank, (0, 0)])
    assert close(layer(x), layer(padded)[(slice(None), *(slice(4),) * rank)])
    assert of_rank(MODULES[release], "NeighborhoodAttention#D", rank)(8, 2, 3, None).dilation == 1


def test_0_17_does_not_pad() -> None:
    with pytest.raises(ValueError, match="must be <= input"):
        v017.NeighborhoodAttention1D(8, 2, 5)(normal(1, 4, 8))


def test_dropout_of_modules_acts_in_training_only() -> None:
    layer = v017.NeighborhoodAttention1D(8, 2, 3, attn_drop=0.5)
    x = normal(1, 6, 8)
    assert not close(layer(x), layer(x))
    layer.eval()
    assert close(layer(x), layer(x))


def test_none_and_zero_mean_the_default() -> None:
    query = normal(1, 6, 2, 4)
    plain = v017.na1d(query, query, query, 3)
    assert close(v017.na1d(query, query, query, 3, None, None, None, 0.0), plain)
    assert close(v021.na1d(query, query, query, 3, None, None, None, None), plain)
    expected = natten_mlx.na1d(query, query, query, 3, scale=0.25)
    assert close(v020.na1d(query, query, query, [3], [1], (1,), [False], 0.25), expected)


def dense(query: mx.array, key: mx.array, value: mx.array, scale: float, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    q, k, v = (np.moveaxis(to_numpy(x), 2, 1) for x in (query, key, value))
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    logits = scale * q @ np.swapaxes(k, -1, -2)
    if causal:
        logits = np.where(np.arange(q.shape[2])[:, None] >= np.arange(k.shape[2]), logits, -np.inf)
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - top)
    lse = np.log(weights.sum(-1)) + top[..., 0]
    return np.moveaxis(weights / weights.sum(-1, keepdims=True) @ v, 1, 2), np.moveaxis(lse, 1, 2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(5, 5), (5, 7), (7, 4)])
def test_dense_attention(lengths: tuple[int, int], causal: bool) -> None:
    query = normal(2, lengths[0], 4, 8)
    key, value = normal(2, lengths[1], 2, 8, seed=1), normal(2, lengths[1], 2, 6, seed=2)
    out, lse = v021.attention(query, key, value, causal, 0.3, return_lse=True)
    expected_out, expected_lse = dense(query, key, value, 0.3, causal)
    assert_near(out, expected_out, 1e-5)
    assert_near(lse, expected_lse, 1e-5)
    assert_near(v021.attention(query, key, value, is_causal=causal, scale=0.3), expected_out, 1e-5)
    if not causal:
        key, value = (mx.repeat(x, 2, axis=2) for x in (key, value))
        assert_near(v020.attention(query, key, value, 0.3), expected_out, 1e-5)
        assert_near(v020.attention(query, key, value, 0.3, return_lse=True)[1], expected_lse, 1e-5)


def test_packed_sequences() -> None:
    query, key = normal(1, 7, 2, 4), normal(1, 9, 2, 4, seed=1)
    parts = [(slice(0, 3), slice(0, 5)), (slice(3, 7), slice(5, 9))]
    expected = mx.concatenate([v021.attention(query[:, q], key[:, k], key[:, k]) for q, k in parts], axis=1)
    lengths = mx.array([3, 4], mx.int32), mx.array([5, 4], mx.int32)
    assert close(v021.attention(query, key, key, seqlens_Q=lengths[0], seqlens_KV=lengths[1]), expected)
    made = v021.utils.varlen.generate_varlen_parameters(query, key, key, *lengths)
    assert made[0].tolist() == [0, 3, 7] and made[1].tolist() == [0, 5, 9] and made[2:] == (4, 5)
    names = ("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
    out, lse = v021.attention(query, key, key, **dict(zip(names, made, strict=True)), return_lse=True)
    assert close(out, expected) and lse.shape == (1, 7, 2)
    assert v021.utils.varlen.generate_varlen_parameters(query, key, key) == (None, None, 0, 0)
    int64 = mx.array([3, 4], mx.int64)
    for bad, message in (
        ({"seqlens_Q": lengths[0]}, "seqlens_KV must be an int32 array"),
        ({"seqlens_Q": int64, "seqlens_KV": lengths[1]}, "seqlens_Q must be an int32 array"),
        ({"seqlens_Q": lengths[0], "seqlens_KV": lengths[0]}, "must rise from 0 to 9"),
        ({"seqlens_Q": lengths[0], "seqlens_KV": lengths[1][:1]}, "the same size"),
        ({"cumulative_seqlen_Q": made[0]}, "need cumulative_seqlen"),
        ({"max_seqlen_Q": 4, "max_seqlen_KV": 5}, "cumulative_seqlen_Q must be an int32 array"),
    ):
        with pytest.raises(ValueError, match=message):
            v021.attention(query, key, key, **bad)
    with pytest.raises(ValueError, match="batch of 1"):
        two = mx.concatenate([query, query])
        v021.attention(two, two, two, seqlens_Q=lengths[0], seqlens_KV=lengths[0])


def test_merging_halves_of_the_keys() -> None:
    query, key = normal(1, 5, 2, 4), normal(1, 8, 2, 4, seed=1)
    halves = [v021.attention(query, key[:, part], key[:, part], return_lse=True) for part in (slice(3), slice(3, 8))]
    outputs, lses = [list(x) for x in zip(*halves, strict=True)]
    expected_out, expected_lse = v021.attention(query, key, key, return_lse=True)
    out, lse = v021.merge_attentions(outputs, lses, torch_compile=False)
    assert close(out, expected_out) and close(lse, expected_lse)
    assert close(v020.merge_attentions(outputs, lses), expected_out)
    for bad, message in (
        ([outputs[:1], lses[:1]], "at least two"),
        ([[outputs[0][0]] * 2, lses], "4 axes"),
        ([None, None], "outputs must be a list"),
    ):
        with pytest.raises(ValueError, match=message):
            v021.merge_attentions(*bad)


def test_lse_and_grouped_heads_are_0_21() -> None:
    query, key = normal(1, 6, 4, 8), normal(1, 6, 2, 8, seed=1)
    out, lse = v021.na1d(query, key, key, 3, return_lse=True)
    expected = natten_mlx.na1d(query, key, key, 3, return_lse=True)
    assert close(out, expected[0]) and close(lse, expected[1])
    for call in (v017.na1d, v020.na1d):
        with pytest.raises(ValueError, match="numbers of heads must match in this release"):
            call(query, key, key, 3)
    with pytest.raises(TypeError, match="return_lse"):
        v020.na1d(query, query, query, 3, return_lse=True)


def test_extra_tokens_of_the_fused_form() -> None:
    query, extra = normal(1, 6, 2, 8), normal(1, 3, 2, 8, seed=1)
    expected = natten_mlx.na1d(query, query, query, 3, additional_keys=extra, additional_values=extra)
    options = {"additional_keys": extra, "additional_values": extra}
    for call in (v017.na1d, v020.na1d, v021.na1d):
        assert close(call(query, query, query, 3, **options), expected)
        with pytest.raises(ValueError, match="both be provided"):
            call(query, query, query, 3, additional_keys=extra)


# Errors


q2, q3 = mx.zeros((1, 2, 8, 8, 4)), mx.zeros((1, 2, 4, 4, 4, 4))
last2 = mx.zeros((1, 8, 8, 2, 4))
BAD: list[tuple[Any, str]] = [
    (lambda: v014.natten2dqk(q2, q2, 4, 1), r"\[natten2dqk\] kernel_size must be an odd number greater than 1, got 4"),
    (lambda: v014.natten2dqk(q2, q2, 1, 1), "kernel_size must be an odd number"),
    (lambda: v014.natten2dqk(q2, q2, 3, 0), "dilation must be an int of at least 1"),
    (lambda: v014.natten2dqk(q2, q2, 3, 3), "exceeds input size"),
    (lambda: v014.natten2dqk(q2[0], q2, 3, 1), r"query must be \[B, heads, H, W, D\], got the shape \(2, 8, 8, 4\)"),
    (lambda: v014.natten2dqk(np.zeros((1, 2, 8, 8, 4)), q2, 3, 1), "query must be an mlx.core.array .* got ndarray"),
    (lambda: v014.natten2dqk(q2, q2[:, :1], 3, 1), "numbers of heads must match"),
    (lambda: v014.natten2dqkrpb(q2, q2, mx.zeros((2, 4, 4)), 3, 1), "rpb"),
    (lambda: v014.natten2dav(mx.zeros((1, 2, 8, 8, 8)), q2, 3, 1), r"\[natten2dav\] attn must hold 9 weights .* got 8"),
    (lambda: v014.NeighborhoodAttention2D(8, 2, 4), r"\[NeighborhoodAttention2D\] kernel_size must be an odd number"),
    (lambda: v014.NeighborhoodAttention2D(8, 3, 3), "must be divisible by"),
    (lambda: v014.NeighborhoodAttention2D(8, 2, 3)(mx.zeros((1, 8, 8))), "Expected input shape"),
    (
        lambda: v015.na2d_qk(q2, q2, 3, 1, mx.zeros((1, 2, 3))),
        r"additional_keys must be \[1, 2, N, 4\]",
    ),
    (
        lambda: v015.na2d_qk(q2, q2, 3, 1, additional_keys=mx.zeros((1, 1, 3, 4))),
        r"additional_keys must be \[1, 2, N, 4\]",
    ),
    (
        lambda: v015.na2d_av(mx.zeros((1, 2, 8, 8, 11)), q2, 3, 1, additional_values=mx.zeros((1, 2, 3, 4))),
        "attn must hold 12 weights per query .* and 3 additional tokens, got 11",
    ),
    (lambda: v015.na3d_qk(q3, q3, 2, 3, 1, 1), "kernel_size must be an odd number"),
    (lambda: v015.na3d_qk(q3, q3, 3, 3, 0, 1), "dilation_d must be an int of at least 1"),
    (lambda: v015.NeighborhoodAttention3D(8, 2, 3, 2), "kernel_size must be an odd number"),
    (lambda: v017.na2d_qk(q2, q2, 4), "kernel_size must be an odd number"),
    (lambda: v017.na2d_qk(q2, q2, (3, 3, 3)), "kernel_size must be an int of at least 1, or 2 of them"),
    (lambda: v017.na2d_qk(q2, q2, 3, is_causal=(True,)), "is_causal must be a bool, or 2 of them"),
    (lambda: v017.na2d_qk(q2, q2, 3.0), "kernel_size must be an int"),
    (lambda: v017.na2d_qk(q2, q2, True), "kernel_size must be an int|odd number"),
    (lambda: v017.na2d(last2, last2, last2, 1), "kernel_size must be an int of at least 2"),
    (lambda: v017.na2d(last2, last2, last2, 4, rpb=mx.zeros((2, 7, 7))), "kernel_size must be an odd number"),
    (lambda: v017.na2d(last2[0], last2, last2, 3), r"query must be \[B, H, W, heads, D\]"),
    (lambda: v017.NeighborhoodAttention2D(8, 2, 4, rel_pos_bias=True), "odd number"),
    (lambda: v020.na2d(last2, last2, last2, 1), "kernel_size must be an int of at least 2"),
    (
        lambda: v020.na2d(last2, last2.astype(mx.float16), last2, 3),
        r"\[na2d\] query, key and value must be of one floating type, got float32, float16, float32",
    ),
    (lambda: v021.na2d(last2, last2, last2.astype(mx.bfloat16), 3), "must be of one floating type"),
    (lambda: v020.na2d(last2, last2, last2, 3, 4), r"\[na2d\] stride must be at most kernel_size, got \(4, 4\)"),
    (lambda: v021.NeighborhoodAttention2D(8, 2, 3, 4), "stride must be at most kernel_size"),
    (
        lambda: v017.na2d(last2, last2, last2, 3, scale=mx.ones((2,))),
        r"\[na2d\] scale must be a number or None, got array",
    ),
    (lambda: v021.na2d(last2, last2, last2, 3, is_causal=1), r"\[na2d\] is_causal must be a bool, or 2 of them"),
    (lambda: v021.attention(last2[0], last2[0], last2[0], 0.5), r"\[attention\] is_causal must be a bool, got 0\.5"),
    (
        lambda: v020.attention(last2[0], last2[0].astype(mx.float16), last2[0]),
        "must be of one floating type, got float32, float16, float32",
    ),
    (lambda: v021.attention(*3 * [last2[0].astype(mx.int32)]), "must be of one floating type, got int32"),
    (lambda: v021.attention(last2[0], last2[0], last2[0], scale="1"), "scale must be a number or None, got str"),
    (lambda: v020.na2d(last2, last2, last2, 3, kernel_schedule="fast"), "kernel_schedule must be one of"),
    (
        lambda: v020.neighborhood_attention_generic(q2[0, 0], q2, q2, 3),
        "query must be .* 4, 5 or 6 axes, got the shape",
    ),
    (lambda: v021.neighborhood_attention_generic(None, q2, q2, 3), "query must be .* 4, 5 or 6 axes, got NoneType"),
    (lambda: v020.NeighborhoodAttention2D(8, 2, (3, 1)), "kernel_size must be an int of at least 2"),
    (lambda: v021.attention(last2, last2, last2), r"query must be an mlx.core.array \[B, L, heads, D\], got the shape"),
    (lambda: v021.attention(last2[0], last2[0], last2[0, :, :4]), "shapes of key and value must match"),
    (lambda: v021.attention(last2[0, ..., :2], last2[0], last2[0]), r"\[attention\] .*[Hh]ead dim"),
    (lambda: v021.attention(last2[0, :4], last2[0], last2[0], True), r"\[attention\] Batch"),
    (lambda: v021.attention(last2[0, :, :, :1], last2[0], last2[0]), "must be divisible by"),
    (lambda: v017.set_memory_usage_preference("all"), "pref must be one of"),
    (lambda: v017.use_autotuner(forward_pass=1), "Expected `bool`, got int"),
    (lambda: allin1.na1d_qk_rpb(mx.zeros((1, 4, 2, 4)), mx.zeros((1, 4, 2, 4)), None, 5), "must be <= input"),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_bad_input(index: int) -> None:
    call, message = BAD[index]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("release", [v017, v020, v021])
def test_causal_axes_shorter_than_the_window_are_errors(release: ModuleType) -> None:
    """In every release; natten_mlx's own causal windows hold the keys that exist."""
    x, options = mx.zeros((1, 8, 4, 2, 4)), {"is_causal": (False, True)}
    heads_first = mx.moveaxis(x, -2, 1)
    module = release.NeighborhoodAttention2D
    for kernel, dilation, message in (
        ((3, 5), 1, r"kernel_size\[1\]=5 must be <= input spatial size 4"),
        ((3, 3), (1, 2), r"dilation\[1\] \* kernel_size\[1\] = 6 exceeds input size 4"),
    ):
        window = {"kernel_size": kernel, "dilation": dilation, **options}
        calls = {
            "na2d": lambda window=window: release.na2d(x, x, x, **window),
            "NeighborhoodAttention2D": lambda window=window: module(8, 2, **window)(mx.zeros((1, 8, 4, 8))),
        }
        if release is v017:
            attn = mx.zeros((1, 2, 8, 4, kernel[0] * kernel[1]))
            calls |= {
                "na2d_qk": lambda window=window: v017.na2d_qk(heads_first, heads_first, **window),
                "na2d_av": lambda window=window, attn=attn: v017.na2d_av(attn, heads_first, **window),
            }
        for name, call in calls.items():
            with pytest.raises(ValueError, match=rf"\[{name}\] {message}"):
                call()
    assert module(8, 2, 3, is_causal=True)(mx.zeros((1, 3, 3, 8))).shape == (1, 3, 3, 8)


def test_sizes_as_arrays() -> None:
    x = normal(1, 8, 8, 2, 4)
    for release in (v017, v020, v021):
        wanted = release.na2d(x, x, x, (4, 3), dilation=(1, 2), is_causal=(True, False))
        for kind in (np.array, mx.array):
            sizes = {"kernel_size": kind([4, 3]), "dilation": kind([1, 2]), "is_causal": kind([True, False])}
            assert mx.array_equal(release.na2d(x, x, x, **sizes), wanted)
        layer = release.NeighborhoodAttention2D(8, 2, np.array([4, 4]), dilation=np.int64(2))
        assert layer(mx.zeros((1, 8, 8, 8))).shape == (1, 8, 8, 8)
        for bad in (np.array([4.0, 4.0]), np.array([4, 4, 4]), np.array([[4, 4]]), np.array([True, True])):
            with pytest.raises(ValueError, match=r"\[na2d\] kernel_size must be an int of at least 2, or 2 of them"):
                release.na2d(x, x, x, bad)


def test_an_argument_of_another_release_names_this_ones() -> None:
    # 0.20.0 had `dim`, in modules that could not be made; 0.20.1, which v020 follows, renamed it.
    for release in (v020, v021):
        for rank in (1, 2, 3):
            module = getattr(release, f"NeighborhoodAttention{rank}D")
            with pytest.raises(
                TypeError, match=rf"\[NeighborhoodAttention{rank}D\] .* 'dim': did you mean 'embed_dim'"
            ):
                module(dim=8, num_heads=2, kernel_size=3)
        with pytest.raises(TypeError, match="unexpected argument 'rpb': expected some of embed_dim, num_heads"):
            release.NeighborhoodAttention2D(8, 2, 3, rpb=True)
    assert v014.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3).embed_dim == 8


def test_what_a_release_did_not_have() -> None:
    rpb = mx.zeros((2, 5, 5))
    for call in (
        lambda: v017.na2d_qk(q2, q2, 3, is_causal=(True, False), rpb=rpb),
        lambda: v017.na2d(last2, last2, last2, 3, is_causal=True, rpb=rpb),
        lambda: v017.NeighborhoodAttention2D(8, 2, 3, is_causal=True, rel_pos_bias=True),
    ):
        with pytest.raises(NotImplementedError, match="positional biases on causal axes"):
            call()
    for call in (v020.na2d, v021.na2d):
        with pytest.raises(NotImplementedError, match="unknown backend 'cudnn'"):
            call(last2, last2, last2, 3, backend="cudnn")
        with pytest.raises(NotImplementedError, match="unknown backend 'flex-fmha'"):
            call(last2, last2, last2, 3, backend="flex-fmha")
        with pytest.raises(TypeError, match="attention_kwargs: attention\\(\\) has no argument 'tile'"):
            call(last2, last2, last2, 3, attention_kwargs={"tile": 1})
        with pytest.raises(ValueError, match="attention_kwargs must be a dict, got 3"):
            call(last2, last2, last2, 3, attention_kwargs=3)
    with pytest.raises(TypeError, match="rpb"):
        v020.na2d(last2, last2, last2, 3, rpb=rpb)
    with pytest.raises(TypeError, match="rel_pos_bias"):
        v020.NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True)
    with pytest.raises(TypeError, match="additional_keys"):
        v014.natten2dqk(q2, q2, 3, 1, additional_keys=q2)


# Switches and feature tests


def test_switches_remember_and_say_so_once(fresh_switches: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="natten_mlx"):
        for _ in range(2):
            v017.use_fused_na(True, kv_parallel=False)
        assert v017.is_fused_na_enabled() and v017.is_fna_enabled() and not v017.is_kv_parallelism_in_fused_na_enabled()
        v017.use_fna(False)
        assert not v017.is_fused_na_enabled()
    told = [record.getMessage() for record in caplog.records]
    assert sum("use_fused_na " in text and "no effect" in text for text in told) == 1
    v017.use_flex_attention()
    assert v017.is_fused_na_enabled() and v017.is_kv_parallelism_in_fused_na_enabled()
    v017.use_fused_na(False)
    v017.force_flex_attention()
    assert v017.is_fused_na_enabled()
    v017.use_fused_na(False)


def test_every_pair_of_switch_and_state() -> None:
    for release in ("v015", "v017"):
        module = MODULES[release]
        for kind in UNFUSED:
            assert getattr(module, f"enable_{kind}")() is True and getattr(module, f"disable_{kind}")() is False
    for kind in ("tf32_in_gemm_na", "tiled_na", "gemm_na"):
        for mode in (True, False):
            getattr(v017, f"use_{kind}")(mode)
            assert getattr(v017, f"is_{kind}_enabled")() is mode
    v017.use_autotuner(True, False, True, True)
    assert v017.is_autotuner_enabled() and v017.is_autotuner_enabled_for_forward()
    assert not v017.is_autotuner_enabled_for_backward()
    assert v017.is_autotuner_thorough_for_forward() and v017.is_autotuner_thorough_for_backward()
    v017.disable_autotuner()
    assert not v017.is_autotuner_enabled() and not v017.is_autotuner_thorough_for_forward()
    for module in (v017, v020, v021):
        for pref in ("strict", "unrestricted", "default"):
            module.set_memory_usage_preference(pref)
            for name in ("strict", "unrestricted", "default"):
                assert getattr(module, f"is_memory_usage_{name}")() == (name == pref)
            assert module.get_memory_usage_preference().name == pref.capitalize()
        module.use_kv_parallelism_in_fused_na(False)
        module.use_deterministic_algorithms()
        assert module.are_deterministic_algorithms_enabled()
        with pytest.raises(RuntimeError, match="not deterministic"):
            module.use_kv_parallelism_in_fused_na()
        module.use_deterministic_algorithms(False)
        module.use_kv_parallelism_in_fused_na()
        assert module.is_kv_parallelism_in_fused_na_enabled()
    for module in (v020, v021):
        module.allow_flex_compile(True, True)
        assert module.is_flex_compile_allowed() and module.is_flex_compile_backprop_allowed()
        module.disable_flex_compile_backprop()
        assert module.is_flex_compile_allowed() and not module.is_flex_compile_backprop_allowed()
        module.allow_flex_compile_backprop()
        assert module.is_flex_compile_backprop_allowed()
        module.disable_flex_compile()
        assert not module.is_flex_compile_allowed() and not module.is_flex_compile_backprop_allowed()
    assert v020.is_memory_usage_default() and v017._switches is not v020._switches


def test_states_at_the_start_are_the_release_s() -> None:
    code = """
        from natten_mlx.compat import v017, v020, v021
        print([m.is_kv_parallelism_in_fused_na_enabled() for m in (v017, v020, v021)], v017.is_fused_na_enabled())
    """
    assert run_python(code).stdout.strip() == "[False, True, True] False"


def test_arguments_that_tune_have_no_effect_and_say_so(fresh_switches: None, caplog: pytest.LogCaptureFixture) -> None:
    query = normal(1, 6, 6, 2, 8)
    plain = natten_mlx.na2d(query, query, query, 3)
    tuned = {"backend": "cutlass-fna", "q_tile_shape": (8, 8), "kernel_schedule": "coop", "torch_compile": True}
    with caplog.at_level(logging.WARNING, logger="natten_mlx"):
        for _ in range(2):
            assert close(v020.na2d(query, query, query, 3, **tuned, try_fuse_additional_kv=True), plain)
            assert close(v021.na2d(query, query, query, 3, **tuned, attention_kwargs={"backend": "flex-fmha"}), plain)
            assert close(v017.na2d(query, query, query, 3, xformers_kwargs={"op": None}), plain)
            flat = query.reshape(1, 36, 2, 8)
            v021.attention(flat, flat, flat, backend="hopper-fmha", q_tile_size=128)
            v017.NeighborhoodAttention1D(8, 2, 3, use_experimental_ops=True)
    told = [record.getMessage() for record in caplog.records]
    arguments = {*tuned, "try_fuse_additional_kv", "attention_kwargs", "xformers_kwargs", "q_tile_size"}
    arguments.add("use_experimental_ops")
    assert sorted(re.search(r"the argument (\w+)", text)[1] for text in told) == sorted(arguments)


@pytest.mark.parametrize("release", MODULES)
def test_feature_tests_are_true_statements(release: str) -> None:
    module = MODULES[release]
    for name in module.__all__:
        if name.startswith("has_"):
            assert isinstance(getattr(module, name)(), bool)
            if "device_index" in SIGNATURES[release][name]:
                assert getattr(module, name)(0) == getattr(module, name)()
    assert module.has_mlx() and module.has_half() and module.has_bfloat()
    assert module.has_cuda() == mx.cuda.is_available() and module.has_mps() == mx.metal.is_available()
    if natten_mlx.has_nanobind():
        assert module.has_fna()
    assert not getattr(module, "has_fp64_gemm", bool)()
    if not natten_mlx.get_support_matrix()["fast_metal"]["available"]:
        assert not any(getattr(module, name, bool)() for name in ("has_gemm", "has_fp32_gemm", "has_tf32_gemm"))
    assert getattr(module, "HAS_LIBNATTEN", False) is False
    for name in module.__all__:
        if name.startswith("get_") and "configs" in name:
            assert getattr(module, name)(last2, last2, last2) == []


# all-in-one


@pytest.mark.parametrize("rank", [1, 2])
def test_allin1(rank: int) -> None:
    query, key, value = (normal(1, *(9,) * rank, 2, 12, seed=seed) for seed in range(3))
    rpb = normal(2, *(5,) * rank, seed=3)
    qk, av = of_rank(allin1, "na#d_qk_rpb", rank), of_rank(allin1, "na#d_av_fused", rank)
    expected = of_rank(natten_mlx, "na#d", rank)(query, key, value, 3, dilation=2, rpb=rpb, scale=0.2)
    assert close(av(mx.softmax(qk(query, key, rpb, 3, 2, 0.2), -1), value, 3, 2), expected)
    plain = of_rank(natten_mlx, "na#d_qk", rank)(query, key, 3)
    assert close(qk(query, key, None, kernel_size=3), plain)
    assert signature(qk) == "query, key, rpb, kernel_size, dilation=1, scale=None"
    assert signature(av) == "attn, value, kernel_size, dilation=1"
