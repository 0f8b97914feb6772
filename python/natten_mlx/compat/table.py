"""What every public name of every release of NATTEN is here: the source of docs/compat.md and the migration pages.

`make docs` writes the pages (scripts/write_migrations.py); tests compare the names with the modules.
"""

from __future__ import annotations

from collections.abc import Iterator

from natten_mlx.compat._release import Earlier, Entry, Release

_SAME = "the same"
_SWITCH = "accepted and remembered, without effect; said once"
_STATE = "what was asked last"
_OURS = "not of this release; a true statement about this machine"
_FEATURE = "a true statement about this machine"


def _entries(here: str, native: str, *names: str) -> Iterator[Entry]:
    return (Entry(name, here, native) for name in names)


def _ranked(name: str, here: str, native: str, *ranks: int) -> Iterator[Entry]:
    return (Entry(name.replace("#", str(r)), here.replace("#", str(r)), native.replace("#", str(r))) for r in ranks)


def _absent(why: str, *names: str) -> Iterator[Entry]:
    return (Entry(name, why, is_here=False) for name in names)


def _common(*own_tests: str) -> Iterator[Entry]:
    """What every module has besides its release's operations."""
    yield Entry("__version__", "the release that the module follows", "`natten_mlx.__version__` is another thing")
    yield Entry("functional", "the functions again, as `natten.functional`", "`natten_mlx.functional`")
    natives = {
        "has_cuda": "`mx.cuda.is_available()`",
        "has_mps": "`natten_mlx.has_metal()`",
        "has_mlx": "always true",
        "has_half": "always true",
        "has_bfloat": "always true",
        "has_fna": "`get_support_matrix()[tier]['fusion']`",
        "has_gemm": '`explain(...).tile` says "matrix units"',
    }
    for name, native in natives.items():
        yield Entry(name, _FEATURE if name in own_tests else _OURS, native)


_TESTS_015 = ("has_cuda", "has_half", "has_bfloat", "has_gemm")
_TF32 = "`MLX_ENABLE_TF32` in the environment decides, as for MLX's products"
_KERNELS = "kernels are chosen by `natten_mlx.set_backend`"
_UNFUSED = (
    *_entries(_SWITCH + ", and returned", _KERNELS, "enable_gemm_na", "disable_gemm_na"),
    *_entries(_SWITCH + ", and returned", _KERNELS, "enable_tiled_na", "disable_tiled_na"),
    *_entries(_SWITCH + ", and returned", _TF32, "enable_tf32", "disable_tf32"),
)

_MEMORY = (
    *_entries(_SWITCH, "results are always deterministic", "use_deterministic_algorithms"),
    *_entries(_STATE, "results are always deterministic", "are_deterministic_algorithms_enabled"),
    *_entries(_SWITCH, _KERNELS, "use_kv_parallelism_in_fused_na", "set_memory_usage_preference"),
    *_entries(_STATE, "-", "is_kv_parallelism_in_fused_na_enabled", "get_memory_usage_preference"),
    *_entries(_STATE, "-", "is_memory_usage_default", "is_memory_usage_strict", "is_memory_usage_unrestricted"),
)
_FLEX = (
    *_entries(_SWITCH, "`mx.compile` works on every function", "allow_flex_compile", "allow_flex_compile_backprop"),
    *_entries(_SWITCH, "-", "disable_flex_compile", "disable_flex_compile_backprop"),
    *_entries(_STATE, "-", "is_flex_compile_allowed", "is_flex_compile_backprop_allowed"),
)


def _configurations(*kinds: str) -> Iterator[Entry]:
    here = "an empty list: these are tile shapes of kernels that only NATTEN has"
    return _entries(here, "-", *(f"get_{kind}_{op}" for kind in kinds for op in ("fmha", "fna")))


_CONFIGURATIONS_020 = (
    "configs_for_cutlass",
    "bwd_configs_for_cutlass",
    "configs_for_cutlass_hopper",
    "configs_for_cutlass_blackwell",
    "configs_for_flex",
)
_CONFIGURATIONS_021 = ("bwd_configs_for_cutlass_hopper", "bwd_configs_for_cutlass_blackwell")

_NATIVE_QK = "`na#d_qk(..., scale=1.0, rpb=rpb)` on heads-last arrays"
_NATIVE_AV = "`na#d_av` on heads-last arrays"
_SLOTS = "the same: the last axis of `attn` says how large windows are"
_NATIVE_MODULE = "`NeighborhoodAttention#D(embed_dim, num_heads, kernel_size, {options})`"
_PROFILE = "`natten-mlx profile` and `natten_mlx.bench.cost` count operations"
_PYTORCH_FLOPS = "`get_flops` and `add_natten_handle`, which count a PyTorch model's operations: `NotImplementedError`"

_NO_AUTOGRAD = "not here: PyTorch's autograd classes; every function differentiates"
_AUTOGRAD = tuple(
    _absent(
        _NO_AUTOGRAD,
        *(
            f"natten.functional.NeighborhoodAttention{r}D{kind}AutogradFunction"
            for r in (1, 2, 3)
            for kind in ("QK", "AV")
        ),
    )
)
_NESTED = tuple(
    _absent(
        "not here: MLX has no nested tensors; `lengths=` takes samples of different sizes",
        *(f"natten.nested.na{r}d_{kind}_nested" for r in (1, 2, 3) for kind in ("qk", "av")),
    )
)

_INTERNAL = "not here: what NATTEN's own modules share, which its documentation does not name"
_GENERIC = tuple(_absent("not here: the modules of each rank", "natten.modules.NeighborhoodAttentionGeneric"))

_HEADS_FIRST = "Arrays are heads first, `[B, heads, ..., D]`; natten_mlx's are heads last, which is a view away."
_UNSCALED = "`qk` does not scale: multiply query by `head_dim ** -0.5` before. natten_mlx's scales unless `scale=1.0`."
_ODD = "Kernel sizes are odd and above 1. natten_mlx takes any from 1."
_PADDING = "Modules zero-pad inputs smaller than the window, and crop: `pad_input=True` in natten_mlx."
_BIAS = "Modules have a relative position bias unless `bias=False`: `rel_pos_bias=True` in natten_mlx."
_ERRORS = "Bad input is a `ValueError`, where NATTEN has `RuntimeError` or `AssertionError` as well."
_SCALE = "A `scale` or `qk_scale` of 0 is the default, as in NATTEN."
_STRIDE = (
    "**`stride` makes neighboring queries share a window** (Generalized Neighborhood Attention). In natten_mlx that is "
    "`gna_stride`; its `stride` computes fewer queries, and the output shrinks."
)
_SIZES = (
    "Kernel sizes are above 1, and windows fit into their axis, causal or not. Query, key and value are of one type. "
    "natten_mlx asks for none of these: causal windows hold the keys that exist."
)
_TUNING = "`backend`, tile shapes, `kernel_schedule`, `torch_compile`, ... are accepted, checked, and have no effect."
_COMPAT_EXAMPLE_SPLIT = """import mlx.core as mx
import natten_mlx.compat.{module} as natten

query, key, value = (mx.random.normal((1, 4, 14, 14, 32)) for _ in range(3))  # heads first
rpb = mx.zeros((4, 13, 13))
attn = natten.functional.{qk}
out = natten.functional.{av}
assert out.shape == query.shape

layer = natten.NeighborhoodAttention2D(dim=128, num_heads=4, kernel_size=7, dilation=2)
assert layer(mx.random.normal((1, 14, 14, 128))).shape == (1, 14, 14, 128)"""
_COMPAT_EXAMPLE_STRIDE = """import mlx.core as mx
import natten_mlx.compat.{module} as natten

query, key, value = (mx.random.normal((1, 16, 16, 4, 32)) for _ in range(3))  # heads last
out = natten.na2d(query, key, value, kernel_size=8, stride=4, backend="cutlass-fna")
assert out.shape == query.shape

layer = natten.NeighborhoodAttention2D(embed_dim=128, num_heads=4, kernel_size=8, stride=4)
assert layer(mx.random.normal((1, 16, 16, 128))).shape == (1, 16, 16, 128)"""

RELEASES: dict[str, Release] = {
    "v014": Release(
        "v014",
        "0.14.6",
        (
            _HEADS_FIRST,
            _UNSCALED,
            "`natten1dav` and `natten2dav` have `kernel_size` before `dilation` since 0.14.6, `natten1dqkrpb` and "
            "`natten2dqkrpb` since 0.14.5: v0144 and v0145 below are for programs from before.",
            _ODD,
            _PADDING,
            _BIAS,
            _SCALE,
            _ERRORS,
        ),
        _COMPAT_EXAMPLE_SPLIT.format(
            module="v014",
            qk="natten2dqkrpb(query * 32**-0.5, key, rpb, 7, 2)",
            av="natten2dav(mx.softmax(attn, axis=-1), value, 7, 2)",
        ),
        (
            *_ranked("NeighborhoodAttention#D", _SAME, _NATIVE_MODULE.format(options="dilation=..."), 1, 2),
            *_ranked("natten#dqkrpb", _SAME, _NATIVE_QK, 1, 2),
            *_ranked("natten#dqk", _SAME, "`na#d_qk(..., scale=1.0)` on heads-last arrays", 1, 2),
            *_ranked("natten#dav", _SAME, _NATIVE_AV, 1, 2),
            *_common(),
            Entry("flops", _PYTORCH_FLOPS, _PROFILE),
            *_absent("not here: operations of a PyTorch trace", "natten.flops.qk_rpb_flop", "natten.flops.av_flop"),
            *_absent(
                _NO_AUTOGRAD,
                *(f"natten.functional.NATTEN{r}D{kind}Function" for r in (1, 2) for kind in ("QKRPB", "AV")),
            ),
        ),
        (
            Earlier(
                "v0144",
                "0.14.1 to 0.14.4",
                "Modules take `kernel_size` before `num_heads`, and always have a bias; in 2-D a `dilation` that is a "
                "string is the largest that fits the input.",
                (
                    *_ranked(
                        "NeighborhoodAttention#D",
                        _SAME,
                        _NATIVE_MODULE.format(options="dilation=..., rel_pos_bias=True"),
                        1,
                        2,
                    ),
                    Entry("NeighborhoodAttention", "`NeighborhoodAttention2D`, with a `DeprecationWarning`", "-"),
                    *_ranked("natten#dqkrpb", "the same: `rpb` says how large windows are", _NATIVE_QK, 1, 2),
                    *_ranked("natten#dav", _SLOTS, _NATIVE_AV, 1, 2),
                ),
                ("natten1dqk", "natten2dqk"),
            ),
            Earlier(
                "v0145",
                "0.14.5",
                "The bias became an option, of modules and of `natten1dqkrpb` and `natten2dqkrpb`.",
                (*_ranked("natten#dav", _SLOTS, _NATIVE_AV, 1, 2),),
                ("natten1dqk", "natten2dqk"),
            ),
        ),
    ),
    "v015": Release(
        "v015",
        "0.15 (0.15.1)",
        (
            _HEADS_FIRST,
            _UNSCALED,
            _ODD,
            "In 3-D depth has arguments of its own, which come first in functions (`kernel_size_d, kernel_size, "
            "dilation_d, dilation`) and second in the module: `kernel_size=(d, hw, hw)` in natten_mlx.",
            "Logits of additional tokens come after those of the window, in one softmax.",
            "`functional` has the feature tests and switches too, and `get_device_cc()`, of a CUDA GPU: an error "
            "without one.",
            _PADDING + " (Here in depth too, where 0.15.1 has an error.)",
            _BIAS,
            _SCALE,
            _ERRORS,
        ),
        _COMPAT_EXAMPLE_SPLIT.format(
            module="v015",
            qk="na2d_qk_with_bias(query * 32**-0.5, key, rpb, 7, 2)",
            av="na2d_av(mx.softmax(attn, axis=-1), value, 7, 2)",
        ),
        (
            *_ranked("NeighborhoodAttention#D", _SAME, _NATIVE_MODULE.format(options="dilation=..."), 1, 2, 3),
            *_ranked("na#d_qk", _SAME, "`na#d_qk(..., scale=1.0)` on heads-last arrays", 1, 2, 3),
            *_ranked("na#d_qk_with_bias", _SAME, _NATIVE_QK, 1, 2, 3),
            *_ranked("na#d_av", _SAME, _NATIVE_AV, 1, 2, 3),
            *_ranked("natten#dqkrpb", "`na#d_qk_with_bias` without additional tokens", _NATIVE_QK, 1, 2, 3),
            *_ranked("natten#dqk", "`na#d_qk`", "`na#d_qk(..., scale=1.0)` on heads-last arrays", 1, 2, 3),
            *_ranked("natten#dav", "`na#d_av`", _NATIVE_AV, 1, 2, 3),
            *_common(*_TESTS_015),
            *_entries(_FEATURE, _TF32, "has_tf32_gemm"),
            *_entries(_FEATURE, "always false: float64 runs on the CPU", "has_fp64_gemm"),
            *_entries(_FEATURE, '`explain(...).tile` says "matrix units"', "has_fp32_gemm"),
            *_UNFUSED,
            Entry("flops", _PYTORCH_FLOPS, _PROFILE),
            *_AUTOGRAD,
            *_NESTED,
            *_absent(_INTERNAL, "natten.ops", "natten.utils"),
        ),
    ),
    "v017": Release(
        "v017",
        "0.16 to 0.19 (0.17.0 to 0.17.5)",
        (
            "The split form (`na*d_qk`, `na*d_av`) is heads first, the fused form (`na*d`) heads last.",
            _UNSCALED + " The fused form scales.",
            "Arguments after `value` are `kernel_size, dilation, is_causal, rpb, scale`; natten_mlx has `kernel_size, "
            "stride, dilation, is_causal, scale`. **The fourth of the module is `dilation`**, there it is `stride`.",
            "Slots of causal axes count from the window's first key on, empty ones (`-inf`) come last; natten_mlx's "
            "are right-aligned. Moving them, for queries that have empty ones, takes the one copy made here.",
            "Positional biases on causal axes: `NotImplementedError`. natten_mlx has them.",
            "Kernel sizes of the split form, and with a bias, are odd; others are above 1.",
            "Additional tokens are in the same softmax: no xFormers is needed, and `xformers_kwargs` has no effect.",
            "`use_fused_na()` has no effect: modules are fused unless attention dropout acts, which NATTEN leaves out "
            "in its fused mode.",
            "Gradients of the bias exist in the fused form too; forward-mode derivatives of everything.",
            "Modules don't pad: an input smaller than the window is an error, on causal axes too. In natten_mlx causal "
            "windows hold the keys that exist.",
            _SCALE,
            _ERRORS,
        ),
        """import mlx.core as mx
import natten_mlx.compat.v017 as natten

query, key, value = (mx.random.normal((1, 14, 14, 4, 32)) for _ in range(3))  # heads last
out = natten.functional.na2d(query, key, value, kernel_size=7, dilation=2, is_causal=(True, False))
assert out.shape == query.shape

query, key, value = (x.transpose(0, 3, 1, 2, 4) for x in (query, key, value))  # heads first
attn = natten.functional.na2d_qk(query * 32**-0.5, key, 7, 2, is_causal=(True, False))
assert natten.functional.na2d_av(mx.softmax(attn, -1), value, 7, 2, is_causal=(True, False)).shape == query.shape

layer = natten.NeighborhoodAttention2D(128, 4, 7, 2, rel_pos_bias=True)
assert layer(mx.random.normal((1, 14, 14, 128))).shape == (1, 14, 14, 128)""",
        (
            *_ranked("NeighborhoodAttention#D", _SAME, _NATIVE_MODULE.format(options="dilation=..."), 1, 2, 3),
            *_ranked("na#d", _SAME, "`na#d(query, key, value, kernel_size, dilation=..., rpb=...)`", 1, 2, 3),
            *_ranked("na#d_qk", _SAME, _NATIVE_QK, 1, 2, 3),
            *_ranked("na#d_av", _SAME, _NATIVE_AV, 1, 2, 3),
            *_ranked("natten#dqkrpb", "`na#d_qk` (dropped by 0.17.5)", _NATIVE_QK, 1, 2, 3),
            *_ranked("natten#dqk", "`na#d_qk` (dropped by 0.17.5)", _NATIVE_QK, 1, 2, 3),
            *_ranked("natten#dav", "`na#d_av` (dropped by 0.17.5)", _NATIVE_AV, 1, 2, 3),
            *_common(*_TESTS_015, "has_fna"),
            Entry("has_fused_na", "`has_fna`", "`get_support_matrix()[tier]['fusion']`"),
            *_entries(_FEATURE, _TF32, "has_tf32_gemm"),
            *_entries(_FEATURE, "always false: float64 runs on the CPU", "has_fp64_gemm"),
            *_entries(_FEATURE, '`explain(...).tile` says "matrix units"', "has_fp32_gemm"),
            *_entries(_SWITCH, "modules are fused", "use_fused_na", "use_fna"),
            *_entries(_SWITCH + " (0.17.5)", _KERNELS, "use_flex_attention", "force_flex_attention"),
            *_entries(_SWITCH, "there is nothing to tune", "use_autotuner", "disable_autotuner"),
            *_entries(_SWITCH, _KERNELS, "use_gemm_na", "use_tiled_na"),
            *_entries(_SWITCH, _TF32, "use_tf32_in_gemm_na"),
            *_UNFUSED,
            *_entries(_STATE, "-", "is_fused_na_enabled", "is_fna_enabled", "is_gemm_na_enabled"),
            *_entries(_STATE, "-", "is_tiled_na_enabled", "is_tf32_in_gemm_na_enabled", "is_autotuner_enabled"),
            *_entries(_STATE, "-", "is_autotuner_enabled_for_forward", "is_autotuner_enabled_for_backward"),
            *_entries(_STATE, "-", "is_autotuner_thorough_for_forward", "is_autotuner_thorough_for_backward"),
            *_MEMORY,
            Entry(
                "experimental",
                "`na1d`, `na2d`, `na3d` again (0.17.4)",
                "`na1d`, `na2d`, `na3d`, which work under `mx.compile`",
            ),
            Entry("flops", "`fna_flop_count`, `na_qk_flop_count`, `na_av_flop_count`; " + _PYTORCH_FLOPS, _PROFILE),
            Entry("utils", "`get_device_cc`, of a CUDA GPU; an error without one", "`mx.device_info()`"),
            *_absent(
                "not here: the same as `na*d`, which works under `mx.compile`",
                *(f"natten.flex.flex_na{r}d (0.17.5)" for r in (1, 2, 3)),
            ),
            *_AUTOGRAD,
            *_absent(_NO_AUTOGRAD, *(f"natten.functional.FusedNeighborhoodAttention{r}D" for r in (1, 2, 3))),
            *_NESTED,
            *_absent("not here: `natten_mlx.functional.Ints` and `Bools`", "natten.types"),
            *_absent(_INTERNAL, "natten.context", "natten.ops", "natten.autotuner"),
        ),
    ),
    "v020": Release(
        "v020",
        "0.20 (0.20.1)",
        (
            _STRIDE,
            "Arrays are heads last, as in natten_mlx; query, key and value have the same number of heads.",
            "Modules have `embed_dim`, as in 0.20.1. 0.20.0 called it `dim`, in modules that raised a `TypeError` "
            "whenever they were made; `dim` is a `TypeError` here too, which names `embed_dim`.",
            _SIZES,
            _TUNING,
            "There is no relative position bias and no split form; natten_mlx has both.",
            _SCALE,
            _ERRORS,
        ),
        _COMPAT_EXAMPLE_STRIDE.format(module="v020"),
        (
            *_ranked(
                "NeighborhoodAttention#D",
                _SAME + " as 0.20.1's; 0.20.0's, with `dim` for `embed_dim`, could not be made",
                _NATIVE_MODULE.format(options="gna_stride=..."),
                1,
                2,
                3,
            ),
            *_ranked("na#d", _SAME, "`na#d(..., gna_stride=stride)`", 1, 2, 3),
            Entry("neighborhood_attention_generic", "the same, in `functional`", "`na1d`, `na2d`, `na3d`"),
            Entry("attention", _SAME, "`attention`"),
            Entry("merge_attentions", "the same: the output only", "`merge_attentions`, which gives lse as well"),
            *_common(),
            Entry("HAS_LIBNATTEN", "`False`: NATTEN's library is not here", "-"),
            *_MEMORY,
            *_FLEX,
            *_configurations(*_CONFIGURATIONS_020),
            *_absent("not here: `natten-mlx profile` and `natten-mlx bench`", "natten.profiler"),
            *_absent("not here: strings are accepted", "natten.types.KernelSchedule"),
            *_absent("not here: kernels of NATTEN", "natten.backends"),
            *_GENERIC,
            *_absent(_INTERNAL, "natten.context", "natten.token_permute", "natten.utils"),
        ),
    ),
    "v021": Release(
        "v021",
        "0.21 and later (0.21.7)",
        (
            _STRIDE,
            "Arrays are heads last, as in natten_mlx; query may have more heads than key and value (0.21.5).",
            _SIZES,
            _TUNING,
            "Signatures are 0.21.7's: since 0.21.5 `attention` has `is_causal` before `scale`, and `merge_attentions` "
            "returns `(out, lse)`. v0210 below is for programs from before.",
            "Causal `attention` with more keys than queries, or fewer: query `i` attends the keys 0 to `i`. In "
            "natten_mlx's the last query is at the last key, and there are at most as many queries as keys.",
            "Packed sequences (`seqlens_Q`, ...) are computed one by one; their lengths are read on the host.",
            _SCALE,
            _ERRORS,
        ),
        _COMPAT_EXAMPLE_STRIDE.format(module="v021"),
        (
            *_ranked("NeighborhoodAttention#D", _SAME, _NATIVE_MODULE.format(options="gna_stride=..."), 1, 2, 3),
            *_ranked("na#d", _SAME, "`na#d(..., gna_stride=stride)`", 1, 2, 3),
            Entry("neighborhood_attention_generic", "the same, in `functional`", "`na1d`, `na2d`, `na3d`"),
            Entry("attention", _SAME, "`attention`"),
            Entry("merge_attentions", _SAME, "`merge_attentions`"),
            *_common(),
            Entry("HAS_LIBNATTEN", "`False`: NATTEN's library is not here", "-"),
            Entry("utils", "`utils.varlen.generate_varlen_parameters`, the same", "-"),
            *_MEMORY,
            *_FLEX,
            *_configurations(*_CONFIGURATIONS_020, *_CONFIGURATIONS_021),
            *_absent("not here: `natten-mlx profile` and `natten-mlx bench`", "natten.profiler"),
            *_absent("not here: strings are accepted", "natten.types.KernelSchedule"),
            *_absent("not here: kernels of NATTEN", "natten.backends"),
            *_GENERIC,
            *_absent(_INTERNAL, "natten.context", "natten.token_permute"),
        ),
        (
            Earlier(
                "v0210",
                "0.21.0 and 0.21.1",
                "Query, key and value have the same number of heads, there is no log-sum-exp of `na1d`, `na2d` and "
                "`na3d`, and no packed sequences.",
                (
                    *_ranked("na#d", _SAME, "`na#d(..., gna_stride=stride)`", 1, 2, 3),
                    Entry("neighborhood_attention_generic", "the same, in `functional`", "`na1d`, `na2d`, `na3d`"),
                    Entry("attention", "the same, as in 0.20", "`attention`"),
                    Entry(
                        "merge_attentions", "the same: the output only", "`merge_attentions`, which gives lse as well"
                    ),
                ),
                ("utils",),
            ),
        ),
    ),
}
