"""NAT and DiNAT against the public implementation's results (tests/data/models), their files, and bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from harness import assert_near, succeeds, to_numpy
from natten_mlx import models

DATA = Path(__file__).parents[1] / "data" / "models" / "dinat"
NAMES = pytest.mark.parametrize("name", ["mini", "layerscale"])


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name / "expected.npz") as stored:
        return {key: np.moveaxis(x, 1, -1) if x.ndim == 4 else x for key, x in stored.items()}


def copy(name: str, folder: Path, **changes: Any) -> Path:
    """The checkpoint in a folder of its own, with other values in its config.json."""
    shutil.copytree(DATA / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: x for key, x in config.items() if x != "absent"}))
    return folder


def with_weights(name: str, folder: Path, change: Any) -> Path:
    """The checkpoint with other tensors: `change` gets the dict and edits it."""
    copy(name, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def as_backbone(name: str, folder: Path) -> Path:
    """What DinatBackbone.save_pretrained writes: the encoder's weights without a prefix, and the norms."""

    def change(weights: dict[str, mx.array]) -> None:
        for key in list(weights):
            value = weights.pop(key)
            if key.startswith(("dinat.embeddings.", "dinat.encoder.")):
                weights[key.removeprefix("dinat.")] = value
        norms = mx.load(str(DATA / name / "backbone_norms.safetensors"))
        mx.eval(norms)
        weights.update(norms)

    return with_weights(name, folder, change)


@NAMES
def test_logits_and_hidden_states(tier: str, name: str) -> None:
    model, config = models.load(DATA / name)
    wanted = expected(name)
    x = mx.array(wanted["pixel_values"])
    assert len(config.id2label) == 7
    assert_near(model(x), wanted["logits"], 1e-5)
    x = model.patch_embed(x)
    assert_near(x, wanted["hidden_0"], 1e-5)
    for number, level in enumerate(model.levels, 1):
        x = level(x)
        assert_near(x, wanted[f"hidden_{number}"], 1e-5)


@NAMES
def test_feature_maps_of_the_backbone(tier: str, name: str, tmp_path: Path) -> None:
    model, _ = models.load(as_backbone(name, tmp_path), backbone=True)
    wanted = expected(name)
    maps = model(mx.array(wanted["pixel_values"]))
    assert list(maps) == ["stage1", "stage2", "stage3", "stage4"]
    for stage, features in maps.items():
        assert_near(features, wanted[f"feature_{stage}"], 1e-5)


@NAMES
def test_after_save_and_load(tier: str, name: str, tmp_path: Path) -> None:
    model, config = models.load(DATA / name)
    models.save(model, tmp_path / "saved")
    again, config_again = models.load(tmp_path / "saved")
    assert config_again == config
    wanted = expected(name)
    assert_near(again(mx.array(wanted["pixel_values"])), wanted["logits"], 1e-5)
    written = mx.load(str(tmp_path / "saved" / "model.safetensors"))
    given = mx.load(str(DATA / name / "model.safetensors"))
    assert written.keys() == given.keys()
    assert all(mx.array_equal(written[key], given[key]) for key in given)


@NAMES
def test_a_backbone_after_save_and_load(name: str, tmp_path: Path) -> None:
    model, _ = models.load(as_backbone(name, tmp_path / "given"), backbone=True)
    models.save(model, tmp_path / "saved")
    written = mx.load(str(tmp_path / "saved" / "model.safetensors"))
    given = mx.load(str(tmp_path / "given" / "model.safetensors"))
    assert written.keys() == given.keys()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["DinatBackbone"]
    assert config["out_features"] == ["stage1", "stage2", "stage3", "stage4"]
    with pytest.raises(
        ValueError, match=r"model\.safetensors: holds a backbone, which has no classes: load it with back"
    ):
        models.load(tmp_path / "saved")
    x = mx.array(expected(name)["pixel_values"])
    again, _ = models.load(tmp_path / "saved", backbone=True)
    assert all(mx.array_equal(a, b) for a, b in zip(model(x).values(), again(x).values(), strict=True))


def test_saving_over_the_folder_that_was_loaded(tmp_path: Path) -> None:
    model, _ = models.load(copy("mini", tmp_path))
    before = to_numpy(model.head.weight)
    models.save(model, tmp_path)
    assert np.array_equal(to_numpy(models.load(tmp_path)[0].head.weight), before)
    assert not list(tmp_path.glob("*.part.*"))


@NAMES
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.03), ("float16", 0.005), (mx.bfloat16, 0.03)])
def test_half_types(tier: str, name: str, dtype: Any, bound: float) -> None:
    model, _ = models.load(DATA / name, dtype=dtype)
    assert {p.dtype for _, p in tree_flatten(model.parameters())} == {model.head.weight.dtype}
    wanted = expected(name)
    logits = model(mx.array(wanted["pixel_values"]))
    assert str(dtype).split(".")[-1] in str(logits.dtype)
    assert_near(logits, wanted["logits"], bound)


def test_a_backbone_from_a_classifier_has_all_stages(tmp_path: Path) -> None:
    model, _ = models.load(DATA / "mini", dtype="float16", backbone=True)
    x = mx.array(expected("mini")["pixel_values"])
    maps = model(x)
    for stage, channels in zip(("stage1", "stage2", "stage3", "stage4"), (16, 32, 64, 128), strict=True):
        assert maps[stage].shape[-1] == channels
        assert maps[stage].dtype == mx.float16
        assert abs(maps[stage].astype(mx.float32).mean().item()) < 1e-3  # a norm that does nothing but normalise


def test_a_backbone_with_some_stages(tmp_path: Path) -> None:
    def change(weights: dict[str, mx.array]) -> None:
        for key in list(weights):
            if key.startswith(("hidden_states_norms.stage1", "hidden_states_norms.stage3")):
                del weights[key]
        weights["hidden_states_norms.stem.weight"] = mx.ones(16)
        weights["hidden_states_norms.stem.bias"] = mx.zeros(16)

    as_backbone("mini", tmp_path / "all")
    weights = mx.load(str(tmp_path / "all" / "model.safetensors"))
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(str(tmp_path / "all" / "model.safetensors"), weights)
    model, _ = models.load(tmp_path / "all", backbone=True)
    wanted = expected("mini")
    maps = model(mx.array(wanted["pixel_values"]))
    assert list(maps) == ["stem", "stage2", "stage4"]
    assert_near(maps["stage4"], wanted["feature_stage4"], 1e-5)
    assert maps["stem"].shape == (2, 16, 16, 16)
    with pytest.raises(ValueError, match=r"stages must be among stem, stage1.*'stage5'"):
        models.DinatBackbone(models.DinatConfig(), ["stage5"])


def test_nat_is_dinat_without_dilation(tmp_path: Path) -> None:
    ones = [[1, 1], [1], [1, 1], [1]]
    plain, _ = models.load(copy("mini", tmp_path / "dinat", dilations=ones))

    def rename(weights: dict[str, mx.array]) -> None:
        for key in list(weights):
            weights[key.replace("dinat.", "nat.")] = weights.pop(key)

    with_weights("mini", tmp_path / "nat", rename)
    config = json.loads((tmp_path / "nat" / "config.json").read_text()) | {"model_type": "nat"}
    del config["dilations"]
    (tmp_path / "nat" / "config.json").write_text(json.dumps(config))
    nat, found = models.load(tmp_path / "nat")
    x = mx.array(expected("mini")["pixel_values"])
    assert found.model_type == "nat"
    assert mx.array_equal(nat(x), plain(x))
    models.save(nat, tmp_path / "saved")
    assert "dilations" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert mx.array_equal(models.load(tmp_path / "saved")[0](x), nat(x))


def test_weights_in_several_files(tmp_path: Path) -> None:
    copy("mini", tmp_path)
    weights = mx.load(str(tmp_path / "model.safetensors"))
    mx.eval(weights)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        mx.save_safetensors(str(tmp_path / file), {key: weights[key] for key in keys})
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    wanted = expected("mini")
    assert_near(models.load(tmp_path)[0](mx.array(wanted["pixel_values"])), wanted["logits"], 1e-5)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model-00002-of-00002\.safetensors"):
        models.load(tmp_path)
    index["weight_map"]["classifier.bias"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="'weight_map' must name files of the same folder"):
        models.load(tmp_path)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "selu"])
def test_activations(activation: str, tmp_path: Path) -> None:
    model, _ = models.load(copy("mini", tmp_path, hidden_act=activation))
    mlp = model.levels[0].blocks[0].mlp
    x = mx.random.normal((1, 2, 2, 16))
    function = {"gelu": nn.gelu, "gelu_new": nn.gelu_approx, "relu": nn.relu, "selu": nn.selu}[activation]
    assert mx.array_equal(mlp(x), mlp.fc2(function(mlp.fc1(x))))


def test_drop_path_acts_in_training_only_and_keeps_the_mean(tmp_path: Path) -> None:
    mx.random.seed(0)
    model, _ = models.load(copy("mini", tmp_path, drop_path_rate=0.5))
    rates = [block.drop_path.rate for level in model.levels for block in level.blocks]
    assert np.allclose(rates, np.linspace(0.0, 0.5, 6))
    x = mx.array(expected("mini")["pixel_values"])
    assert mx.array_equal(model(x), model(x))
    model.train()
    assert not mx.array_equal(model(x), model(x))
    drop = model.levels[3].blocks[0].drop_path
    samples = to_numpy(drop(mx.ones((4000, 2, 2, 3))))
    assert set(np.unique(samples)) == {0.0, 2.0}  # a sample is dropped whole, or divided by what is kept
    assert np.all(samples == samples[:, :1, :1, :1])
    assert abs(samples.mean() - 1) < 0.05


def test_a_few_training_steps(tier: str) -> None:
    mx.random.seed(0)
    model, _ = models.load(DATA / "mini")
    model.train()
    x, labels = mx.array(expected("mini")["pixel_values"]), mx.array([2, 5])
    step = nn.value_and_grad(model, lambda x: nn.losses.cross_entropy(model(x), labels, reduction="mean"))
    optimizer = optim.Adam(learning_rate=1e-3)
    losses = []
    for _ in range(6):
        loss, gradients = step(x)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(mx.abs(g).max().item() > 0 for name, g in tree_flatten(gradients) if name.endswith("rpb"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "swin"}, r"config\.json: 'model_type' must be one of 'dinat', 'nat'.*, got 'swin'"),
        ({"model_type": "absent"}, r"config\.json: 'model_type' must be one of .* got None"),
        ({"hidden_act": ["gelu"]}, r"config\.json: 'hidden_act' must be one of 'gelu', .*, got \['gelu'\]"),
        ({"depths": [2, 1, 10**9, 1]}, r"config\.json: 'depths' must be at most 1000 blocks in all"),
        ({"num_labels": 10**12}, r"config\.json: 'num_labels' must be an integer of at least 1 and at most 1000000"),
        ({"embed_dim": 10**12}, r"config\.json: asks for a size that no array can have"),
        ({"mlp_ratio": 1e308}, r"config\.json: asks for a size that no array can have"),
        ({"mlp_ratio": 10**30}, r"config\.json: asks for a size that no array can have: 'mlp_ratio' 10+$"),
        ({"num_channels": 10**30}, r"config\.json: asks for a size that no array can have: 'num_channels'"),
        ({"kernel_size": 2**30}, r"config\.json: \[NeighborhoodAttention2D\] kernel_size must be at most 1073741823"),
        ({"kernel_size": 2**31}, r"config\.json: asks for a size that no array can have: 'kernel_size' 2147483648"),
        ({"layer_norm_eps": 0}, r"config\.json: 'layer_norm_eps' must be a number of at least 1e-30, got 0"),
        ({"hidden_act": "mish"}, r"config\.json: 'hidden_act' must be one of 'gelu', .*, got 'mish'"),
        ({"patch_size": 8}, r"config\.json: 'patch_size' must be 4, .*, got 8"),
        ({"kernel_size": 0}, r"config\.json: 'kernel_size' must be an integer of at least 1, got 0"),
        ({"kernel_size": True}, r"config\.json: 'kernel_size' must be an integer"),
        ({"depths": [2, 1, "2", 1]}, r"config\.json: 'depths' must be a list of positive integers"),
        ({"depths": []}, r"config\.json: 'depths' must be a list of positive integers, got \[\]"),
        ({"depths": [2, 1, 3, 1]}, r"config\.json: 'dilations' must be 4 lists of 2, 1, 3, 1 integers, .*'depths'"),
        ({"dilations": [[1, 0], [1], [1, 2], [1]]}, r"config\.json: 'dilations' must be lists of positive integers"),
        ({"num_heads": [1, 2, 4]}, r"config\.json: 'num_heads' must be a list of 4 positive integers"),
        ({"num_heads": [1, 2, 5, 8]}, r"config\.json: 'num_heads' must be divisors .* 64 at 2"),
        ({"embed_dim": 1.5}, r"config\.json: 'embed_dim' must be an integer of at least 2, got 1\.5"),
        ({"mlp_ratio": "3"}, r"config\.json: 'mlp_ratio' must be a number"),
        ({"mlp_ratio": 0.01}, r"config\.json: 'mlp_ratio' must be large enough"),
        ({"drop_path_rate": 1.0}, r"config\.json: 'drop_path_rate' must be a number of at least 0 and below 1"),
        ({"qkv_bias": "yes"}, r"config\.json: 'qkv_bias' must be true or false, got 'yes'"),
        ({"patch_norm": False}, r"config\.json: 'patch_norm' must be true, got False"),
        ({"id2label": {"0": "a", "2": "b"}}, r"config\.json: 'id2label' must be an object that names every class"),
        ({"id2label": ["a"]}, r"config\.json: 'id2label' must be an object"),
        ({"model_type": "nat"}, r"config\.json: 'dilations' must be absent"),
        ({"pruned_heads": {"0": [1]}}, r"config\.json: 'pruned_heads' must be absent or \{\}"),
        (
            {"window_shift": 3},
            r"config\.json: 'window_shift' is unknown to dinat models, got 3; expected some of .*'depths', 'dilations'",
        ),
        ({"mlp_ratios": 4.0}, r"config\.json: 'mlp_ratios' is unknown .*, got 4\.0; did you mean 'mlp_ratio'\?"),
        ({"quantization_config": {"bits": 4}}, r"config\.json: 'quantization_config' is unknown to dinat models"),
    ],
)
def test_a_config_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        models.load(copy("mini", tmp_path, **changes))


# What transformers writes of every model's configuration that is a part of another's, with its defaults.
EVERY_MODEL_S = {
    **dict.fromkeys(("_name_or_path", "_commit_hash", "torch_dtype", "transformers_version", "problem_type", "prefix")),
    **dict.fromkeys(("finetuning_task", "task_specific_params", "tokenizer_class", "cross_attention_hidden_size")),
    **dict.fromkeys(f"{token}_token_id" for token in ("bos", "eos", "pad", "sep", "decoder_start")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens")),
    **dict.fromkeys(("begin_suppress_tokens", "exponential_decay_length_penalty")),
    **dict.fromkeys(("add_cross_attention", "is_decoder", "is_encoder_decoder", "torchscript", "use_bfloat16"), False),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "do_sample"), False),
    **dict.fromkeys(("early_stopping", "remove_invalid_values", "tie_encoder_decoder", "tf_legacy_loss"), False),
    **dict.fromkeys(("return_dict", "tie_word_embeddings"), True),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), 1),
    **dict.fromkeys(("chunk_size_feed_forward", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty", "length_penalty"), 1.0),
    "diversity_penalty": 0.0,
    "max_length": 20,
    "min_length": 0,
    "top_k": 50,
    "return_dict_in_generate": False,
    "pruned_heads": {},
    "architectures": ["DinatForImageClassification"],
    "hidden_size": 128,
    "num_layers": 4,
    "label2id": {"a": 0},
    "use_absolute_positions": False,
    "initializer_range": 0.02,
    "path_norm": True,
    "patch_norm": True,
    "dtype": "float32",
}


def test_keys_of_published_configs_that_mean_nothing_here(tmp_path: Path) -> None:
    _, config = models.load(copy("mini", tmp_path, **EVERY_MODEL_S))
    assert config == models.load(DATA / "mini")[1]
    # The backbone of shi-labs/oneformer_ade20k_dinat_large.
    published = {
        "architectures": ["DinatForImageClassification"],
        "depths": [3, 4, 18, 5],
        "dilations": [
            [1, 20, 1],
            [1, 5, 1, 10],
            [1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5],
            [1, 2, 1, 2, 1],
        ],
        "drop_path_rate": 0.35,
        "embed_dim": 192,
        "hidden_size": 1536,
        "kernel_size": 11,
        "layer_scale_init_value": 0.0,
        "mlp_ratio": 2.0,
        "model_type": "dinat",
        "num_heads": [6, 12, 24, 48],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
        "out_indices": [1, 2, 3, 4],
        "path_norm": True,
        "torch_dtype": "float32",
    }
    assert models.DinatConfig.from_dict(published).channels == (192, 384, 768, 1536)


QUERY = "dinat.encoder.levels.0.layers.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(QUERY),
            rf"/model\.safetensors: the weights have no '{QUERY}', which Dinat needs for its levels\.0\.blocks\.0",
        ),
        (lambda w: w.update(extra=mx.zeros(2)), r"model\.safetensors: holds 'extra', which a Dinat of this config"),
        (lambda w: w.update(a=mx.zeros(2), b=mx.zeros(2)), r"holds 'a' \(and 1 more\)"),
        (
            lambda w: w.update({QUERY: mx.zeros((16, 17))}),
            rf"model\.safetensors: '{QUERY}' has shape \[16, 17\], the configuration asks for \[16, 16\]",
        ),
        (
            lambda w: w.update({"dinat.embeddings.patch_embeddings.projection.0.weight": mx.zeros((8, 3, 3, 4))}),
            r"has shape \[8, 3, 3, 4\], the configuration asks for \[8, 3, 3, 3\]",
        ),
        (
            lambda w: w.update({"classifier.bias": mx.zeros(7, mx.int32)}),
            r"'classifier\.bias' must be of a floating type",
        ),
    ],
)
def test_weights_that_do_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        models.load(with_weights("mini", tmp_path, change))


def test_a_missing_weight_of_several_files(tmp_path: Path) -> None:
    weights = mx.load(str(with_weights("mini", tmp_path, lambda w: w.pop(QUERY)) / "model.safetensors"))
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    listed = dict.fromkeys(weights, "model-00001-of-00001.safetensors")
    for listing, where in (
        (listed, r"model\.safetensors\.index\.json"),
        (listed | {QUERY: "model-00001-of-00001.safetensors"}, r"model-00001-of-00001\.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": listing}))
        with pytest.raises(ValueError, match=rf"/{where}: the weights have no '{QUERY}'"):
            models.load(tmp_path)


@pytest.mark.parametrize("name", ["", None, 3, Path])
def test_names_that_are_none(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA / "mini")  # the folder that an empty path is
    with pytest.raises(
        ValueError, match=r"\[load\] path_or_hub_name must be the path of a folder or a name on the hub"
    ):
        models.load(name)
    with pytest.raises(ValueError, match=r"\[load\] path_or_hub_name must be"):
        models.Preprocessor.load(name)
    with pytest.raises(ValueError, match=r"\[convert\] source must be the path of a checkpoint or a name on the hub"):
        models.convert(name, tmp_path)
    with pytest.raises(ValueError, match=r"\[convert\] folder must be the path of a folder"):
        models.convert(tmp_path / "a.pth", name)
    with pytest.raises(ValueError, match=r"\[save\] path must be the path of a folder"):
        models.save(models.load(DATA / "mini")[0], name)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        models.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not a JSON file"):
        models.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got list"):
        models.load(tmp_path)
    copy("mini", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        models.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    nothing = r"has neither model\.safetensors, model\.safetensors\.index\.json nor pytorch_model\.bin"
    with pytest.raises(ValueError, match=rf"{nothing}; the authors' \.pth files must be converted first"):
        models.load(tmp_path)
    with pytest.raises(ValueError, match=r"is a file; expected a folder"):
        models.load(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"no folder 'nowhere', and a name on the hub looks like owner/model"):
        models.load("nowhere")
    model, _ = models.load(DATA / "mini")
    with pytest.raises(ValueError, match="is a file; expected a folder to write into"):
        models.save(model, tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"save expects a model of natten_mlx\.models, got Linear"):
        models.save(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got float64"):
        models.load(DATA / "mini", dtype="float64")


def test_images_that_do_not_fit() -> None:
    model, _ = models.load(DATA / "mini")
    with pytest.raises(ValueError, match=r"\[Dinat\] expected images of shape \[B, H, W, 3\], got \[2, 3, 64, 64\]"):
        model(mx.zeros((2, 3, 64, 64)))
    with pytest.raises(ValueError, match=r"expected preprocessed images of a floating type, got .*uint8"):
        model(mx.zeros((2, 64, 64, 3), mx.uint8))
    for other in (model, models.DinatBackbone(model.config)):
        name = type(other).__name__
        for bad in (np.zeros((2, 64, 64, 3), np.float32), None):
            with pytest.raises(ValueError, match=rf"\[{name}\] images must be an mlx\.core\.array of shape .* got"):
                other(bad)
        for shape in ((1, 0, 64, 3), (1, 64, 0, 3)):
            with pytest.raises(ValueError, match=rf"\[{name}\] images must have at least one pixel on each side"):
                other(mx.zeros(shape))


def test_images_of_any_size() -> None:
    model, _ = models.load(DATA / "mini")
    for size in ((1, 1), (4, 33), (30, 50)):
        assert model(mx.random.normal((1, *size, 3))).shape == (1, 7)


def hub_cache(home: Path, name: str) -> Path:
    """What the hub's client keeps of a model that it downloaded."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return repository / "snapshots" / ("a" * 40)


def test_a_name_on_the_hub_is_found_in_its_cache(tmp_path: Path) -> None:
    copy("mini", hub_cache(tmp_path, "shi-labs/dinat-mini-in1k-224"))
    code = """
        from natten_mlx import models
        model, config = models.load("shi-labs/dinat-mini-in1k-224")
        print(type(model).__name__, config.embed_dim)
    """
    assert succeeds(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1") == "Dinat 16\n"


def test_a_folder_of_a_repository_on_the_hub(tmp_path: Path) -> None:
    copy("mini", hub_cache(tmp_path, "owner/pipeline") / "parts" / "classifier")
    code = """
        from natten_mlx import models
        print(models.load("owner/pipeline/parts/classifier")[1].embed_dim)
        try:
            models.load("owner/pipeline/decoder")
        except ValueError as error:
            print(error)
    """
    lines = succeeds(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1").splitlines()
    assert lines[0] == "16"
    assert lines[1].startswith("owner/pipeline on the hub has no folder 'decoder' with config.json, ")


def test_without_a_network_the_error_says_what_was_looked_for_and_where(tmp_path: Path) -> None:
    code = """
        from natten_mlx import models
        try:
            models.load("shi-labs/dinat-mini-in1k-224")
        except ValueError as error:
            print(error)
    """
    message = succeeds(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    for part in (
        "'shi-labs/dinat-mini-in1k-224'",
        "config.json, ",
        "model.safetensors",
        f"cache {tmp_path}",
        "huggingface.co",
    ):
        assert part in message


def test_the_hub_s_whole_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def denied(*_: Any, **__: Any) -> str:
        raise OSError("401 Client Error.\n\nCannot access gated repo.\nPlease log in.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", denied)
    with pytest.raises(ValueError, match=r"\(401 Client Error\. Cannot access gated repo\. Please log in\.\)"):
        models.load("owner/gated/folder")


def test_without_the_extra_a_folder_loads_and_a_hub_name_says_what_to_install() -> None:
    code = f"""
        import sys
        sys.modules["huggingface_hub"] = sys.modules["PIL"] = None
        from natten_mlx import models
        models.load({str(DATA / "mini")!r})
        try:
            models.load("shi-labs/dinat-mini-in1k-224")
        except ValueError as error:
            print(error)
        try:
            models.Preprocessor()(["image.png"])
        except ValueError as error:
            print(error)
    """
    assert succeeds(code).count("pip install 'natten-mlx[models]'") == 2


# Checkpoints of PyTorch, written as torch.save does, without PyTorch.


class FakeTensor:
    def __init__(self, values: np.ndarray, storage: str, key: str) -> None:
        self.values, self.storage, self.key = values, storage, key


def torch_save(path: Path, value: Any, monkeypatch: pytest.MonkeyPatch, storage: str = "FloatStorage") -> None:
    """torch.save for a state dict of arrays, in a module tree that is named like PyTorch's."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_: Any) -> None: ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    kind = type(storage, (), {"__module__": "torch"})
    setattr(torch, storage, kind)
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    raw: dict[str, np.ndarray] = {}

    class Storage:
        def __init__(self, values: np.ndarray) -> None:
            self.values, self.key = values, str(len(raw))
            raw[self.key] = values

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return ("storage", kind, item.key, "cpu", item.values.size) if isinstance(item, Storage) else None

        def reducer_override(self, item: Any) -> Any:
            if isinstance(item, np.ndarray):
                flat = np.ascontiguousarray(item.T if item.ndim == 2 else item)  # a view, where there are two axes
                strides = (1, item.shape[0]) if item.ndim == 2 else tuple(s // item.itemsize for s in flat.strides)
                parts = (Storage(flat.ravel()), 0, item.shape, strides, False, OrderedDict())
                return _rebuild_tensor_v2, parts
            return NotImplemented

    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as program:
            Pickler(program, protocol=2).dump(value)
        archive.writestr("archive/byteorder", "little")
        for key, values in raw.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())


def original_weights(name: str) -> OrderedDict[str, np.ndarray]:
    """The golden weights under the names of the authors' repository."""
    renamed = (
        ("dinat.embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("dinat.embeddings.norm", "patch_embed.norm"),
        ("dinat.encoder.levels", "levels"),
        (".layers.", ".blocks."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("attention.self.rpb", "attn.rpb"),
        ("dinat.layernorm", "norm"),
        ("classifier", "head"),
    )
    weights: OrderedDict[str, np.ndarray] = OrderedDict()
    given = {key: np.array(x) for key, x in mx.load(str(DATA / name / "model.safetensors")).items()}
    for key, value in given.items():
        if ".self.key." in key or ".self.value." in key:
            continue
        if ".self.query." in key:
            parts = [given[key.replace("query", part)] for part in ("query", "key", "value")]
            key, value = key.replace("attention.self.query", "attn.qkv"), np.concatenate(parts)
        for old, new in renamed:
            key = key.replace(old, new)
        if key.endswith("layer_scale_parameters"):
            block = key.removesuffix("layer_scale_parameters")
            weights[f"{block}gamma1"], weights[f"{block}gamma2"] = value
            continue
        weights[key] = value
    weights._metadata = OrderedDict(version=1)  # an attribute, as PyTorch's state dicts have
    return weights


@NAMES
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_authors_checkpoints(name: str, wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: Any = original_weights(name)
    torch_save(tmp_path / "dinat_x.pth", {"state_dict": weights, "epoch": 3} if wrapped else weights, monkeypatch)
    config = json.loads((DATA / name / "config.json").read_text())
    models.convert(tmp_path / "dinat_x.pth", tmp_path / "out", config=DATA / name / "config.json")
    wanted = expected(name)
    model, found = models.load(tmp_path / "out")
    assert [list(row) for row in found.dilations] == config["dilations"]
    assert_near(model(mx.array(wanted["pixel_values"])), wanted["logits"], 1e-5)
    assert models.Preprocessor.load(tmp_path / "out").crop == (224, 224)


@NAMES
def test_the_configuration_of_the_authors_checkpoints_follows_from_the_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_save(tmp_path / "nat_x.pth", original_weights(name), monkeypatch)
    given = json.loads((DATA / name / "config.json").read_text())
    models.convert(tmp_path / "nat_x.pth", tmp_path / "nat")
    nat = json.loads((tmp_path / "nat" / "config.json").read_text())
    for key in ("embed_dim", "depths", "num_heads", "kernel_size", "mlp_ratio", "qkv_bias", "num_channels"):
        assert nat[key] == given[key], key
    assert (nat["layer_scale_init_value"] > 0) == (given["layer_scale_init_value"] > 0)
    assert nat["model_type"] == "nat"
    models.convert(tmp_path / "nat_x.pth", tmp_path / "dinat", family="dinat", image_size=384)
    dilations = json.loads((tmp_path / "dinat" / "config.json").read_text())["dilations"]
    kernel = given["kernel_size"]
    for level, row in enumerate(dilations):
        assert row == [(1, max(1, 96 // 2**level // kernel))[block % 2] for block in range(len(row))]
    assert models.Preprocessor.load(tmp_path / "dinat").size == 384


def test_the_dilations_of_the_published_models() -> None:
    from natten_mlx.models.convert import derive_config

    def dilations(size: int, kernel: int) -> list[list[int]]:
        arrays = {
            f"levels.{i}.blocks.{j}.attn.rpb": mx.zeros((1, 2 * kernel - 1, 1)) for i in range(4) for j in range(2)
        }
        arrays["patch_embed.norm.weight"] = mx.zeros(8)
        arrays["patch_embed.proj.0.weight"] = mx.zeros((4, 3, 3, 3))
        arrays["levels.0.blocks.0.mlp.fc1.weight"] = arrays["head.weight"] = mx.zeros((16, 8))
        return derive_config(Path("x"), arrays, "dinat", size)["dilations"]

    assert dilations(224, 7) == [[1, 8], [1, 4], [1, 2], [1, 1]]
    assert dilations(384, 7) == [[1, 13], [1, 6], [1, 3], [1, 1]]
    assert dilations(384, 11) == [[1, 8], [1, 4], [1, 2], [1, 1]]


@pytest.mark.parametrize("storage", ["HalfStorage", "BFloat16Storage", "DoubleStorage"])
def test_other_types_in_a_checkpoint(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natten_mlx.models.torch_files import read_torch_checkpoint

    dtype = {"HalfStorage": np.float16, "BFloat16Storage": np.uint16, "DoubleStorage": np.float64}[storage]
    values = np.array([[1.0, -2.0, 0.5], [4.0, 0.25, 8.0]])
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    torch_save(tmp_path / "x.pth", {"a": bits if dtype == np.uint16 else values.astype(dtype)}, monkeypatch, storage)
    assert np.array_equal(to_numpy(read_torch_checkpoint(tmp_path / "x.pth")["a"]), values)


def test_a_hub_checkpoint_of_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {key: np.array(x) for key, x in mx.load(str(DATA / "mini" / "model.safetensors")).items()}
    torch_save(tmp_path / "pytorch_model.bin", weights, monkeypatch)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        models.convert(tmp_path / "pytorch_model.bin", tmp_path / "out")
    shutil.copy(DATA / "mini" / "config.json", tmp_path)
    wanted = expected("mini")
    for source, preprocessor in ((tmp_path / "pytorch_model.bin", None), (tmp_path, models.Preprocessor(size=64))):
        if preprocessor is not None:
            preprocessor.save(tmp_path)
        models.convert(source, tmp_path / "out")
        assert_near(models.load(tmp_path / "out")[0](mx.array(wanted["pixel_values"])), wanted["logits"], 1e-5)
    assert models.Preprocessor.load(tmp_path / "out") == preprocessor
    shutil.copytree(tmp_path, hub_cache(tmp_path / "home", "shi-labs/dinat-x"), ignore=lambda *_: {"home", "out"})
    code = f"""
        from natten_mlx import models
        print(models.convert("shi-labs/dinat-x", {str(tmp_path / "again")!r}).config.embed_dim)
    """
    assert succeeds(code, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1") == "16\n"


def test_a_name_on_the_hub_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """shi-labs' models are a pytorch_model.bin there."""
    snapshot = copy("mini", hub_cache(tmp_path, "shi-labs/dinat-mini-in1k-224"))
    weights = {key: np.array(x) for key, x in mx.load(str(snapshot / "model.safetensors")).items()}
    torch_save(snapshot / "pytorch_model.bin", weights, monkeypatch)
    (snapshot / "model.safetensors").unlink()
    code = """
        import huggingface_hub
        from natten_mlx import models
        real, asked = huggingface_hub.snapshot_download, []
        huggingface_hub.snapshot_download = lambda *x, allow_patterns: asked.append(allow_patterns) or real(*x)
        model, config = models.load("shi-labs/dinat-mini-in1k-224")
        print(["pytorch_model.bin" in patterns for patterns in asked], config.embed_dim)
        print(model.head.weight.sum().item())
    """
    printed = succeeds(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1").splitlines()
    assert printed[0] == "[False, True] 16"  # it is asked for where there is nothing better
    assert np.isclose(float(printed[1]), weights["classifier.weight"].sum(), atol=1e-4)
    wanted = expected("mini")
    assert_near(models.load(snapshot)[0](mx.array(wanted["pixel_values"])), wanted["logits"], 1e-5)
    torch_save(snapshot / "pytorch_model.bin", {"a": Evil()}, monkeypatch)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: refused, because it asks to run"):
        models.load(snapshot)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch_save(tmp_path / "nat.pth", {"a": Evil()}, monkeypatch)
    with pytest.raises(ValueError, match=r"refused, because it asks to run (posix|os)\.system; only tensors are read"):
        models.convert(tmp_path / "nat.pth", tmp_path / "out")
    torch_save(tmp_path / "nat.pth", {"a": print}, monkeypatch)
    with pytest.raises(ValueError, match=r"refused, because it asks to run \w+\.print"):
        models.convert(tmp_path / "nat.pth", tmp_path / "out")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


SET_DEFAULTS = b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b"  # by the opcode BUILD, on what lies on the stack
NEW_VALUES = b"}X\x04\x00\x00\x00nameX\x03\x00\x00\x00foosb"


@pytest.mark.parametrize(
    "program",
    [
        b"ctorch._utils\n_rebuild_parameter\n" + SET_DEFAULTS,
        b"ctorch._utils\n_rebuild_tensor_v2\n" + NEW_VALUES,
        b"ctorch\nFloatStorage\n" + NEW_VALUES,
        b"ccollections\nOrderedDict\n" + SET_DEFAULTS,
        b"\x82\x01",  # a registered extension
    ],
)
def test_a_pickle_cannot_change_what_it_is_answered(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "nat.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
    with pytest.raises(ValueError, match=r"nat\.pth: data\.pkl can't be read"):
        models.convert(path, tmp_path / "out")


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x0f", b"p268435455\n"])
def test_a_short_pickle_cannot_take_much_memory(put: bytes, tmp_path: Path) -> None:
    path = tmp_path / "nat.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N" + put + b".")
    with pytest.raises(ValueError, match=r"nat\.pth: refused, because data\.pkl asks for memory of 268435455 entries"):
        models.convert(path, tmp_path / "out")


def test_checkpoints_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "nat.pth", tmp_path / "out"
    with pytest.raises(ValueError, match="there is no checkpoint"):
        models.convert(path, out)
    path.write_bytes(b"\x80\x02 an old one")
    with pytest.raises(ValueError, match=r"is not a zip file, as torch\.save writes since version 1\.6"):
        models.convert(path, out)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(ValueError, match=r"expected one data\.pkl"):
        models.convert(path, out)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02garbage")
    with pytest.raises(ValueError, match=r"data\.pkl can't be read"):
        models.convert(path, out)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("a/byteorder", "big")
    with pytest.raises(ValueError, match="only little-endian"):
        models.convert(path, out)
    torch_save(path, {"a": np.zeros(3, np.float32)}, monkeypatch)
    with pytest.raises(ValueError, match="is not a checkpoint of NAT or DiNAT"):
        models.convert(path, out)
    torch_save(path, {"a": 3}, monkeypatch)
    with pytest.raises(ValueError, match="'a' should be a tensor, got int"):
        models.convert(path, out)
    torch_save(path, [np.zeros(3, np.float32)], monkeypatch)
    with pytest.raises(ValueError, match="expected a state dict, names with tensors, got list"):
        models.convert(path, out)
    torch_save(tmp_path / "checkpoint.pth", original_weights("mini"), monkeypatch)
    with pytest.raises(ValueError, match="say which family it is, 'nat' or 'dinat'"):
        models.convert(tmp_path / "checkpoint.pth", out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/byteorder", "archive/data/0"])
def test_nothing_compressed_is_unfolded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nat.pth"
    torch_save(path, {"a": np.zeros(3, np.float32)}, monkeypatch)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for key, content in files.items():
            archive.writestr(key, content, zipfile.ZIP_DEFLATED if key == name else zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=rf"nat\.pth: refused, because {name} is compressed, which torch\.save"):
        models.convert(path, tmp_path / "out")


def test_conversion_to_another_type_with_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = original_weights("mini")
    torch_save(tmp_path / "dinat.pth", weights, monkeypatch)
    told: list[tuple[int, int]] = []
    models.convert(
        tmp_path / "dinat.pth", tmp_path / "out", dtype="bfloat16", progress=lambda *numbers: told.append(numbers)
    )
    assert told == [(done, len(weights)) for done in range(1, len(weights) + 1)]
    written = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {array.dtype for array in written.values()} == {mx.bfloat16}
    for options, message in (({"dtype": "int8"}, "dtype must be one of"), ({"image_size": 2.5}, "image_size must be")):
        with pytest.raises(ValueError, match=message):
            models.convert(tmp_path / "dinat.pth", tmp_path / "other", **options)


def test_a_tensor_that_reaches_past_its_storage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nat.pth"
    torch_save(path, {"a": np.zeros((4, 4), np.float32)}, monkeypatch)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    wide = files | {"archive/data.pkl": files["archive/data.pkl"].replace(b"K\x04K\x04\x86", b"K\x04K\x7f\x86")}
    short = files | {"archive/data/0": b"\0" * 60}
    repeated = wide | {"archive/data.pkl": wide["archive/data.pkl"].replace(b"K\x01K\x04\x86", b"K\x01K\x00\x86")}
    for changed, message in (
        (wide, "reaches past the end of its storage"),
        (short, "isn't 16 raw values"),
        (repeated, "is larger than its storage"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in changed.items():
                archive.writestr(name, content)
        with pytest.raises(ValueError, match=message):
            models.convert(path, tmp_path / "out")


# Images


def picture(path: Path, width: int, height: int, mode: str = "RGB") -> np.ndarray:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_images_are_resized_scaled_and_normalised(tmp_path: Path) -> None:
    from PIL import Image

    pixels = picture(tmp_path / "a.png", 50, 40)
    values = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 48},
        "resample": 3,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }
    result = models.Preprocessor.from_dict(values)([tmp_path / "a.png", str(tmp_path / "a.png")])
    resized = np.asarray(Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC), np.float64)
    wanted = (resized / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert result.shape == (2, 32, 48, 3)
    assert_near(result, np.stack([wanted] * 2), 1e-6)


def test_the_shorter_side_and_the_middle(tmp_path: Path) -> None:
    from PIL import Image

    pixels = picture(tmp_path / "a.png", 30, 60)
    values = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 20},
        "do_center_crop": True,
        "crop_size": {"height": 16, "width": 18},
        "do_normalize": False,
    }
    result = models.Preprocessor.from_dict(values)([tmp_path / "a.png"])
    resized = np.asarray(Image.fromarray(pixels).resize((20, 40), Image.Resampling.BILINEAR), np.float64)
    assert_near(result[0], resized[12:28, 1:19] / 255, 1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 10, 10, mode)
    assert models.Preprocessor()([tmp_path / "a.png"]).shape == (1, 224, 224, 3)


def test_configurations_and_images_that_are_none(tmp_path: Path) -> None:
    for kind in (models.Dinat, models.DinatBackbone):
        name = kind.__name__
        with pytest.raises(ValueError, match=rf"\[{name}\] config must be a DinatConfig, got dict"):
            kind({"embed_dim": 64})
        with pytest.raises(ValueError, match=rf"\[{name}\] DinatConfig: 'num_heads' must be a list of 2 positive"):
            kind(models.DinatConfig(depths=(1, 1), dilations=((1,), (1,))))
        with pytest.raises(ValueError, match=r"'dilations' must be 2 lists of 1, 1 integers"):
            kind(models.DinatConfig(depths=(1, 1), num_heads=(1, 2)))
        with pytest.raises(ValueError, match=r"DinatConfig: a value that config.json can't hold"):
            kind(models.DinatConfig(embed_dim=mx.array(64)))
    with pytest.raises(ValueError, match=r"\[LtxDecoder\] config must be a LtxDecoderConfig, got DinatConfig"):
        models.LtxDecoder(models.DinatConfig())
    with pytest.raises(ValueError, match=r"LtxDecoderConfig: 'decoder_head_dim' must be a multiple of 8, got 12"):
        models.LtxDecoder(models.LtxDecoderConfig(decoder_head_dim=12))
    with pytest.raises(ValueError, match=r"stages must be a list of names among stem, stage1"):
        models.DinatBackbone(models.DinatConfig(), "stage1")
    for kind in (models.DinatConfig, models.LtxDecoderConfig, models.Preprocessor):
        with pytest.raises(ValueError, match=r"config\.json: expected a dict of keys and values, got list"):
            kind.from_dict([])
    picture(tmp_path / "a.png", 8, 8)
    for wrong in (str(tmp_path / "a.png"), None, 3, np.zeros((8, 8, 3))):
        with pytest.raises(ValueError, match=r"\[Preprocessor\] images must be a list of files or Pillow images, got"):
            models.Preprocessor()(wrong)
        if not isinstance(wrong, str):
            with pytest.raises(ValueError, match=r"\[Preprocessor\] an image must be a file or a Pillow image, got"):
                models.Preprocessor()([wrong])
    for values, message in (
        ({"size": (64,)}, r"\[Preprocessor\]: 'size' must be a number, or an object with height and width"),
        ({"size": True}, "'size' must be a number"),
        ({"crop": (8.5, 8)}, "'crop_size' must be"),
        ({"resample": 9}, "'resample' must be a filter of Pillow"),
        ({"mean": (0.5,)}, "'image_mean' must be three numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "'image_std' must be three numbers above"),
        ({"mean": None}, r"mean and std: both or none"),
        ({"factor": "1"}, "'rescale_factor' must be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            models.Preprocessor(**values)
    assert models.Preprocessor(crop=64).crop == (64, 64)
    with pytest.raises(ValueError, match=r"\[Preprocessor\] image_size must be an integer of at least 1"):
        models.Preprocessor.of_the_authors(0)


def test_16_bits_a_channel_become_8(tmp_path: Path) -> None:
    from PIL import Image

    deep = np.linspace(0, 65535, 100).astype(np.uint16).reshape(10, 10)
    plain = models.Preprocessor(size=None, factor=None, mean=None, std=None)
    Image.fromarray(deep).save(tmp_path / "a.png")
    wanted = np.repeat(np.round(deep / 257)[None, ..., None], 3, -1)
    assert np.array_equal(to_numpy(plain([tmp_path / "a.png"])), wanted)
    assert np.array_equal(to_numpy(plain([Image.fromarray(deep)])), wanted)
    for name, kind in (("a.tiff", np.float32), ("b.tiff", np.int32)):
        Image.fromarray(deep.astype(kind)).save(tmp_path / name)
        with pytest.raises(
            ValueError, match=rf"{name}: expected pixels of 8 or 16 bits a channel, got Pillow's mode '[FI]'"
        ):
            plain([tmp_path / name])


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    picture(tmp_path / "long.png", 60_000, 1)  # would be 15 million pixels long
    with pytest.raises(ValueError, match=r"long\.png: 1x60000 pixels are too narrow: with 256 on the shorter side"):
        models.Preprocessor(size=256)([tmp_path / "long.png"])
    (tmp_path / "long.png").unlink()
    with pytest.raises(ValueError, match="there is no image"):
        models.Preprocessor()([tmp_path / "a.png"])
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a\.png is not an image that Pillow can read"):
        models.Preprocessor()([tmp_path / "a.png"])
    picture(tmp_path / "b.png", 10, 12)
    picture(tmp_path / "c.png", 12, 10)
    with pytest.raises(ValueError, match=r"c\.png has another size than the images before it"):
        models.Preprocessor(size=None)([tmp_path / "b.png", tmp_path / "c.png"])
    with pytest.raises(ValueError, match=r"12x10 pixels can't be cropped to \(20, 20\)"):
        models.Preprocessor(size=None, crop=(20, 20))([tmp_path / "b.png"])
    with pytest.raises(ValueError, match="at least one image"):
        models.Preprocessor()([])
    from PIL import Image

    for size in ((0, 5), (5, 0)):
        for preprocessor in (models.Preprocessor(), models.Preprocessor(size=20), models.Preprocessor(size=None)):
            with pytest.raises(ValueError, match=r"0.* pixels: an image has at least one on each side"):
                preprocessor([Image.new("RGB", size)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "'image_processor_type' must be one of 'ViTImageProcessor'"),
        ({"size": {"width": 3}}, "'size' must be a number, or an object with height and width"),
        ({"size": {"height": 3, "width": 0}}, "'size' must be"),
        ({"resample": 9}, "'resample' must be a filter of Pillow"),
        ({"size": True}, "'size' must be a number"),
        ({"size": 10**9}, "'size' must be a number, .*, of 1 to 16384 pixels"),
        ({"image_mean": [0.5]}, "'image_mean' must be three numbers"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "'image_mean' must be three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "'image_std' must be three numbers above 1e-06 and below 16384"),
        ({"image_std": [0.5, 0.5, 1e-300]}, "'image_std' must be three numbers"),
        ({"image_mean": [0.5, 1e308, 0.5]}, "'image_mean' must be three numbers above -16384 and below 16384"),
        ({"rescale_factor": 1e308}, "'rescale_factor' must be a number of at least 0 and below 16384"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "'crop_size' must be"),
        ({"do_resize": 1}, "'do_resize' must be true or false"),
        ({"crop_pct": 0.9}, r"'crop_pct' is unknown to image processors of NAT and DiNAT, got 0\.9; expected some of"),
        ({"do_resized": False}, "'do_resized' is unknown .*; did you mean 'do_resize'"),
    ],
)
def test_a_preprocessor_config_that_cannot_be_used(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: {message}"):
        models.Preprocessor.from_dict(values)


@pytest.mark.parametrize(
    "preprocessor",
    [
        models.Preprocessor(),
        models.Preprocessor(size=256, crop=(224, 224), resample=3),
        models.Preprocessor(size=(64, 32), factor=None, mean=None, std=None),
        models.Preprocessor(size=None),
    ],
)
def test_a_preprocessor_after_save_and_load(preprocessor: models.Preprocessor, tmp_path: Path) -> None:
    preprocessor.save(tmp_path)
    assert models.Preprocessor.load(tmp_path) == preprocessor


def test_a_preprocessor_config_with_nulls() -> None:
    """As transformers' fast processors write what is left to their class."""
    nulls = dict.fromkeys(("crop_size", "device", "disable_grouping", "do_center_crop", "do_convert_rgb", "pad_size"))
    values = {"image_processor_type": "ViTImageProcessorFast", "data_format": "channels_first", "resample": 3}
    assert models.Preprocessor.from_dict(values | nulls) == models.Preprocessor.from_dict(values)
    assert models.Preprocessor.from_dict(values | {"do_pad": False}) == models.Preprocessor.from_dict(values)
    with pytest.raises(ValueError, match="'do_pad' is unknown to image processors"):
        models.Preprocessor.from_dict(values | {"do_pad": True})


def test_a_model_keeps_its_preprocessing(tmp_path: Path) -> None:
    file = "preprocessor_config.json"
    written = json.dumps({"image_processor_type": "ViTImageProcessor", "size": 96, "device": None})
    (copy("mini", tmp_path / "given") / file).write_text(written)
    for number, backbone in enumerate((False, True)):
        model, _ = models.load(tmp_path / "given", backbone=backbone)
        models.save(model, tmp_path / f"saved{number}")
        assert (tmp_path / f"saved{number}" / file).read_text() == written
    # Without one: that of the authors, if there is none yet.
    fresh = models.load(DATA / "mini")[0]
    models.save(fresh, tmp_path / "fresh")
    authors = models.Preprocessor(size=256, resample=3, crop=(224, 224))
    assert models.Preprocessor.load(tmp_path / "fresh") == authors
    models.save(fresh, tmp_path / "saved0")
    assert (tmp_path / "saved0" / file).read_text() == written
    models.save(models.load(tmp_path / "given")[0], tmp_path / "fresh")
    assert models.Preprocessor.load(tmp_path / "fresh").size == (96, 96)


def test_the_old_form_of_a_size() -> None:
    values = {"feature_extractor_type": "ViTFeatureExtractor", "size": 192}
    assert models.Preprocessor.from_dict(values).size == (192, 192)
