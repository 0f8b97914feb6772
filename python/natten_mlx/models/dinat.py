"""NAT and DiNAT, hierarchical image models of neighborhood attention, with and without dilation.

Papers: Hassani et al., arXiv 2204.07143 and 2209.15001. Checkpoints: the hub's, as transformers stores them, and those
of the authors' repository, after `natten-mlx convert`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from natten_mlx.models import arguments
from natten_mlx.models.config import Fields
from natten_mlx.models.files import Checkpoint, Names, fill
from natten_mlx.nn import NeighborhoodAttention2D

FAMILIES = ("dinat", "nat")
_ACTIVATIONS = {"gelu": nn.gelu, "gelu_new": nn.gelu_approx, "relu": nn.relu, "selu": nn.selu}
_MOST_LABELS = 1_000_000
_DILATIONS = ((1, 8, 1), (1, 4, 1, 4), (1, 2, 1, 2, 1, 2), (1, 1, 1, 1, 1))
# Keys that say nothing about the computation here: what follows from others, what is for training and for tasks, and
# what transformers writes for every model, where it is a part of another (OneFormer's backbone) with all defaults.
_MEANINGLESS = (
    "initializer_range", "hidden_size", "num_layers", "stage_names", "out_features", "out_indices", "architectures",
    "transformers_version", "torch_dtype", "dtype", "name_or_path", "label2id", "problem_type", "finetuning_task",
    "task_specific_params", "output_hidden_states", "output_attentions", "return_dict", "return_dict_in_generate",
    "output_scores", "torchscript", "use_bfloat16", "tf_legacy_loss", "gradient_checkpointing",
    "chunk_size_feed_forward", "use_cache", "is_encoder_decoder", "is_decoder", "add_cross_attention",
    "cross_attention_hidden_size", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "prefix",
    "bos_token_id", "pad_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "suppress_tokens", "begin_suppress_tokens", "remove_invalid_values",
    "exponential_decay_length_penalty", "attn_implementation",
)  # fmt: skip


@dataclass(frozen=True)
class DinatConfig:
    """The keys of config.json under their names on the hub. The defaults are DiNAT-mini's."""

    model_type: str = "dinat"
    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 5)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    kernel_size: int = 7
    dilations: tuple[tuple[int, ...], ...] = _DILATIONS
    mlp_ratio: float = 3.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    layer_scale_init_value: float = 0.0
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config.json") -> DinatConfig:
        """Reads and checks the content of a config.json; `source` names it in errors (`ValueError`)."""
        fields = Fields(values, source)
        family = fields.choice("model_type", "dinat", FAMILIES)
        if fields.integer("patch_size", 4) != 4:
            raise fields.error("patch_size", "4, the only one that NAT and DiNAT have")
        depths = fields.depths("depths", cls.depths)
        ones = tuple((1,) * depth for depth in depths)
        dilations = ones
        if family == "dinat":
            default = _DILATIONS if depths == cls.depths else ones
            dilations = fields.rows("dilations", default, depths, "one for each block that 'depths' asks for")
        elif "dilations" in values:
            raise fields.error("dilations", "absent: NAT has none (a dilated model has model_type 'dinat')")
        embed_dim = fields.integer("embed_dim", 64, least=2)
        num_heads = fields.integers("num_heads", cls.num_heads, len(depths))
        for level, heads in enumerate(num_heads):
            if embed_dim * 2**level % heads:
                raise fields.error(
                    "num_heads", f"divisors of the channels of their level, {embed_dim * 2**level} at {level}"
                )
        for key in ("patch_norm", "path_norm"):  # of early versions
            if not fields.boolean(key, True):
                raise fields.error(key, "true")
        config = cls(
            model_type=family,
            num_channels=fields.integer("num_channels", 3),
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            kernel_size=fields.integer("kernel_size", 7),
            dilations=dilations,
            mlp_ratio=fields.number("mlp_ratio", 3.0),
            qkv_bias=fields.boolean("qkv_bias", True),
            hidden_dropout_prob=fields.number("hidden_dropout_prob", 0.0, below=1.0),
            attention_probs_dropout_prob=fields.number("attention_probs_dropout_prob", 0.0, below=1.0),
            drop_path_rate=fields.number("drop_path_rate", 0.1, below=1.0),
            hidden_act=fields.choice("hidden_act", "gelu", _ACTIVATIONS),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-5, least=1e-30),
            layer_scale_init_value=fields.number("layer_scale_init_value", 0.0),
            id2label=_labels(fields),
        )
        if config.mlp_ratio * embed_dim < 1:
            raise fields.error("mlp_ratio", "large enough for a hidden layer")
        fields.size("mlp_ratio", config.mlp_ratio * embed_dim * 2 ** len(depths))
        if fields.get("pruned_heads"):
            raise fields.error("pruned_heads", "absent or {}: the weights are those of all heads")
        fields.refuse_unknown(f"{family} models", _MEANINGLESS)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json."""
        values = asdict(self)
        if self.model_type == "nat":
            del values["dilations"]
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        values["label2id"] = {label: index for index, label in self.id2label.items()}
        return values

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return tuple(self.embed_dim * 2**level for level in range(len(self.depths)))

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the levels' feature maps."""
        return tuple(f"stage{level}" for level in range(1, len(self.depths) + 1))


def _labels(fields: Fields) -> dict[int, str]:
    count = fields.integer("num_labels", 2, most=_MOST_LABELS)
    value = fields.get("id2label", {str(index): f"LABEL_{index}" for index in range(count)})
    try:
        labels = {int(index): str(label) for index, label in value.items()}
    except (AttributeError, ValueError):
        labels = {}
    if not labels or sorted(labels) != list(range(len(labels))):
        raise fields.error("id2label", "an object that names every class from 0 on")
    return dict(sorted(labels.items()))


class DropPath(nn.Module):
    """Drops a whole residual branch of a sample with probability `rate`, in training only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def __call__(self, x: mx.array) -> mx.array:
        """[B, ...] -> [B, ...]"""
        if not self.training or self.rate == 0.0:
            return x
        kept = mx.random.bernoulli(1.0 - self.rate, (x.shape[0], *[1] * (x.ndim - 1)))
        return mx.where(kept, x / (1.0 - self.rate), 0.0).astype(x.dtype)


class PatchEmbed(nn.Module):
    """Two strided convolutions and a norm."""

    def __init__(self, config: DinatConfig) -> None:
        super().__init__()
        half = config.embed_dim // 2
        self.proj = [
            nn.Conv2d(config.num_channels, half, 3, stride=2, padding=1),
            nn.Conv2d(half, config.embed_dim, 3, stride=2, padding=1),
        ]
        self.norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, images: mx.array) -> mx.array:
        """[B, H, W, 3] -> [B, ceil(H / 4), ceil(W / 4), C]"""
        return self.dropout(self.norm(self.proj[1](self.proj[0](images))))


class Downsample(nn.Module):
    """A strided convolution and a norm, between two levels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C]"""
        return self.norm(self.reduction(x))


class Mlp(nn.Module):
    """Two layers, token by token."""

    def __init__(self, config: DinatConfig, dim: int) -> None:
        super().__init__()
        hidden = int(config.mlp_ratio * dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = config.hidden_act

    def __call__(self, x: mx.array) -> mx.array:
        """[..., C] -> [..., C]"""
        return self.dropout(self.fc2(_ACTIVATIONS[self.activation](self.fc1(x))))


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and on a residual branch."""

    def __init__(self, config: DinatConfig, dim: int, num_heads: int, dilation: int, drop_path: float) -> None:
        super().__init__()
        dropout = config.attention_probs_dropout_prob
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = NeighborhoodAttention2D(
            dim,
            num_heads,
            config.kernel_size,
            dilation=dilation,
            qkv_bias=config.qkv_bias,
            attn_drop=dropout,
            proj_drop=dropout,
            rel_pos_bias=True,
            pad_input=True,
        )
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, dim)
        self.drop_path = DropPath(drop_path)
        if config.layer_scale_init_value > 0:
            self.layer_scale = mx.full((2, dim), config.layer_scale_init_value)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, C] -> [B, H, W, C]"""
        x = x + self.drop_path(self._scaled(0, self.attn(self.norm1(x))))
        return x + self.drop_path(self._scaled(1, self.mlp(self.norm2(x))))

    def _scaled(self, branch: int, x: mx.array) -> mx.array:
        return self.layer_scale[branch] * x if "layer_scale" in self else x


class Level(nn.Module):
    """Blocks at one resolution. `level(x)` is what the next level gets, `level.features(x)` is before downsampling."""

    def __init__(self, config: DinatConfig, level: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        dim, heads = config.channels[level], config.num_heads[level]
        self.blocks = [
            Block(config, dim, heads, dilation, rate)
            for dilation, rate in zip(config.dilations[level], drop_path, strict=True)
        ]
        if level + 1 < len(config.depths):
            self.downsample = Downsample(dim)

    def features(self, x: mx.array) -> mx.array:
        """[B, H, W, C] -> [B, H, W, C]"""
        for block in self.blocks:
            x = block(x)
        return x

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C], or [B, H, W, C] at the last level"""
        x = self.features(x)
        return self.downsample(x) if "downsample" in self else x


class _Encoder(nn.Module):
    """What the classifier and the backbone share."""

    # The file that says how images are prepared, as it stood beside the weights: `save` writes it again.
    preprocessing: bytes | None = None

    def __init__(self, config: DinatConfig) -> None:
        super().__init__()
        arguments.config(type(self).__name__, config, DinatConfig)
        self.config = config
        self.patch_embed = PatchEmbed(config)
        blocks = sum(config.depths)
        rates = [config.drop_path_rate * block / max(blocks - 1, 1) for block in range(blocks)]
        self.levels = [
            Level(config, level, rates[sum(config.depths[:level]) :][:depth])
            for level, depth in enumerate(config.depths)
        ]

    def _embed(self, images: mx.array) -> mx.array:
        name, channels = type(self).__name__, self.config.num_channels
        arguments.array(name, "images", images, f"[B, H, W, {channels}]")
        if images.ndim != 4 or images.shape[-1] != channels:
            raise ValueError(f"[{name}] expected images of shape [B, H, W, {channels}], got {list(images.shape)}")
        if 0 in images.shape[1:3]:
            raise ValueError(f"[{name}] images must have at least one pixel on each side, got {list(images.shape)}")
        if not mx.issubdtype(images.dtype, mx.floating):
            raise ValueError(f"[{name}] expected preprocessed images of a floating type, got {images.dtype}")
        return self.patch_embed(images.astype(self.patch_embed.norm.weight.dtype))


class Dinat(_Encoder):
    """The image classifier."""

    def __init__(self, config: DinatConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.channels[-1], eps=config.layer_norm_eps)
        self.head = nn.Linear(config.channels[-1], len(config.id2label))

    def __call__(self, images: mx.array) -> mx.array:
        """Preprocessed images [B, H, W, 3] -> logits [B, classes]"""
        x = self._embed(images)
        for level in self.levels:
            x = level(x)
        return self.head(self.norm(x).mean(axis=(1, 2)))


class DinatBackbone(_Encoder):
    """The feature maps that detectors and segmenters build on, each behind a norm of its own.

    Args:
        config: Of the model.
        stages: Names of the maps wanted: `stem`, `stage1`, ...; default: those of all levels.
    """

    def __init__(self, config: DinatConfig, stages: Sequence[str] | None = None) -> None:
        super().__init__(config)
        known = dict(zip(("stem", *config.stages), (config.embed_dim, *config.channels), strict=True))
        stages = config.stages if stages is None else stages
        if not isinstance(stages, (list, tuple)):
            raise ValueError(f"[DinatBackbone] stages must be a list of names among {', '.join(known)}, got {stages!r}")
        for stage in stages:
            if stage not in known:
                raise ValueError(f"[DinatBackbone] stages must be among {', '.join(known)}, got {stage!r}")
        self.norms = {stage: nn.LayerNorm(known[stage]) for stage in known if stage in stages}

    def __call__(self, images: mx.array) -> dict[str, mx.array]:
        """Preprocessed images [B, H, W, 3] -> {"stage1": [B, ceil(H / 4), ceil(W / 4), C], "stage2": ...}"""
        x = self._embed(images)
        maps = {"stem": x}
        for stage, level in zip(self.config.stages, self.levels, strict=True):
            maps[stage] = level.features(x)
            x = level.downsample(maps[stage]) if "downsample" in level else maps[stage]
        return {stage: norm(maps[stage]) for stage, norm in self.norms.items()}


_HUB_NAMES = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^norms\.", "hidden_states_norms."),
    (r"^levels\.", "encoder.levels."),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
    (r"\.blocks\.", ".layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", ".attention.self.qkv."),
    (r"\.attn\.rpb$", ".attention.self.rpb"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.layer_scale$", ".layer_scale_parameters"),
)


def hub_names(prefix: str) -> Names:
    """Names of transformers' checkpoints: a classifier's encoder has the prefix `dinat.` or `nat.`, a backbone none."""

    def names(name: str) -> tuple[str, ...]:
        for pattern, replacement in _HUB_NAMES:
            name = re.sub(pattern, replacement, name)
        if not name.startswith(("classifier.", "hidden_states_norms.")):
            name = prefix + name
        if ".self.qkv." in name:
            return tuple(name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value"))
        return (name,)

    return names


def original_names(name: str) -> tuple[str, ...]:
    """Names of the authors' checkpoints, which are almost those here."""
    if name.endswith(".layer_scale"):
        block = name.removesuffix("layer_scale")
        return (f"{block}gamma1", f"{block}gamma2")
    return (name,)


def load_dinat(checkpoint: Checkpoint, config: DinatConfig, backbone: bool) -> Dinat | DinatBackbone:
    """The model that a checkpoint with the hub's names holds.

    A classifier's checkpoint also makes a backbone: one of all levels whose norms do nothing yet, as in transformers.
    """
    prefix = f"{config.model_type}."
    if not any(key.startswith(prefix) for key in checkpoint.arrays):
        prefix = ""
    names = hub_names(prefix)
    normed = {key.split(".")[1] for key in checkpoint.arrays if key.startswith("hidden_states_norms.")}
    if not backbone:
        if normed and "classifier.weight" not in checkpoint.arrays:
            raise ValueError(f"{checkpoint.source}: holds a backbone, which has no classes: load it with backbone=True")
        classifier = Dinat(config)
        fill(classifier, checkpoint, names)
        return classifier
    if normed:
        result = DinatBackbone(config, sorted(normed))
        fill(result, checkpoint, names)
        return result
    result = DinatBackbone(config)
    fresh, result.norms = result.norms, {}
    fill(result, checkpoint, names, lambda key: key.startswith((f"{prefix}layernorm.", "classifier.")))
    for norm in fresh.values():
        norm.set_dtype(result.patch_embed.norm.weight.dtype)
    result.norms = fresh
    return result
