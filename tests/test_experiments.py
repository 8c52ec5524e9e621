"""The experiments run, on the small bundled digits, and never leave half a file."""

import dataclasses
import importlib
import json
import pkgutil
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compare, configs, data, models, plots, results, run
from experiments.config import Config, Data, Method, Model, Pruning
from experiments.pruners import PRUNERS
from experiments.train import Metrics

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__)]
TWO_STEPS = (
    "--epochs=1 --seeds=2 --batch-size=16 --data.train-size=32 --data.test-size=50 "
    "--model.widths 4 8 --pruning.rounds=2 --pruning.every=1"
).split()
PNG = b"\x89PNG"


def small(name: str) -> Config:
    """A config as it is, but two steps long, on digits, with one block a stage."""
    config = importlib.import_module(f"experiments.configs.{name}").config
    return dataclasses.replace(
        config,
        data=Data("digits", train_size=32, test_size=50, augment=config.data.augment),
        model=dataclasses.replace(config.model, blocks=1),
        pruning=dataclasses.replace(
            config.pruning, methods=("snip",), sparsities=(0.9,)
        ),
        seeds=2,
        epochs=1,
        batch_size=16,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_config_runs_for_two_steps(name):
    config = small(name)
    seen = []
    found = compare.compare(
        config, data.load(config.data), lambda *args: seen.append(args[:2])
    )
    assert [(r.method, r.sparsity) for r in found] == seen == compare.plan(config)
    for result in found:
        np.testing.assert_allclose(result.sparsity_reached, result.sparsity, atol=1e-3)
        for value in (*result.test_accuracy, *result.test_accuracy_at_best):
            assert 0 <= value <= 1
        assert all(0 <= kept <= 1 for kept in result.density.values())


@pytest.mark.slow
def test_command_line_writes_whole_files(tmp_path, capsys):
    sparsities = ["--pruning.sparsities", "0.8", "0.95"]
    run.main(["digits", *TWO_STEPS, *sparsities, f"--workdir={tmp_path}"])

    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "accuracy.png",
        "density.png",
    }
    for figure in ("accuracy.png", "density.png"):
        assert (tmp_path / figure).read_bytes().startswith(PNG)
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["name"] == "digits"
    assert report["config"]["pruning"]["sparsities"] == [0.8, 0.95]
    assert report["images"] == {"train": 32, "validation": 360, "test": 50}
    assert {"commit", "packages"} <= set(report["environment"])
    assert len(report["results"]) == 1 + 2 * len(get_args(Method))
    for result in report["results"]:
        assert len(result["test_accuracy"]) == 2
        assert (result["score_seconds"] is None) == (
            result["method"] in ("dense", "gradual")
        )
    shown = capsys.readouterr().out
    assert all(method in shown for method in PRUNERS)


def test_unknown_config_lists_the_valid_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["cifar11"])
    assert stopped.value.code not in (0, None)
    shown = capsys.readouterr()
    assert all(name in shown.out + shown.err for name in ("cifar11", *NAMES))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pruning.sparsities", "1.5"], ("1.5", "[0, 1)")),
        (["--seeds", "0"], ("seeds is 0", "at least 1")),
        (["--pruning.methods", "snap"], ("snap", "snip")),
        (["--batch-size", "5000"], ("batch_size=5000", "1077")),
    ],
    ids=["sparsity", "seeds", "method", "batch"],
)
def test_bad_options_are_refused_before_training(flags, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run.main(["digits", *flags, f"--workdir={tmp_path}"])
    shown = capsys.readouterr()
    text = " ".join(f"{shown.out} {shown.err} {stopped.value.code}".split())
    assert stopped.value.code not in (0, None)
    assert all(word in text for word in words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mnist_lenet300", "cifar10_resnet20"])
def test_missing_data_set_says_where_and_how(name, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run.main([name, f"--data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}"])
    message = str(stopped.value.code)
    assert str(tmp_path) in message
    assert "--data.dir" in message
    assert f"tfds build {name.partition('_')[0]}" in message
    assert not list(tmp_path.iterdir())  # Nothing was downloaded or begun.


def test_a_run_that_is_killed_leaves_the_old_results(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "compare", killed)
    with pytest.raises(KeyboardInterrupt):
        run.main(["digits", f"--workdir={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results.write(path, b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        results.write(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_every_method_has_a_pruner():
    assert set(PRUNERS) == {"dense", *get_args(Method)}


def test_best_epoch_is_of_the_final_sparsity():
    history = Metrics(
        loss=np.zeros((3, 1)),
        validation=np.array([[0.9], [0.5], [0.4]]),
        test=np.array([[0.8], [0.6], [0.7]]),
        sparsity=np.array([[0.0], [0.9], [0.9]]),
    )
    found = compare._summarise(history)
    assert found["best_epoch"] == [2]
    assert found["test_accuracy_at_best"] == [0.6]
    assert found["test_accuracy"] == [0.7]


def test_splits_are_disjoint_stratified_and_fixed():
    dataset = data.load(Data("digits"))
    again = data.load(Data("digits"))
    splits = [dataset.train, dataset.validation, dataset.test]
    assert [len(split.labels) for split in splits] == [1077, 360, 360]
    for split, same in zip(
        splits, (again.train, again.validation, again.test), strict=True
    ):
        np.testing.assert_array_equal(split.images, same.images)
        share = np.bincount(split.labels, minlength=10) / len(split.labels)
        np.testing.assert_allclose(share, 0.1, atol=0.01)
    images = {image.tobytes() for s in splits for image in np.asarray(s.images)}
    assert len(images) == 1797  # No image of one split is in another.


def test_scoring_batch_is_balanced():
    dataset = data.load(Data("digits"))
    batch = data.balanced(dataset.train, 7, jax.random.key(0))
    np.testing.assert_array_equal(np.bincount(batch.labels), 7)


def test_augmented_images_are_crops_and_mirrors():
    image = jnp.arange(1.0, 26.0).reshape(1, 5, 5, 1)
    images = jnp.broadcast_to(image, (64, 5, 5, 1))
    padded = np.pad(image[0, ..., 0], 1)
    crops = [padded[y : y + 5, x : x + 5] for y in range(3) for x in range(3)]
    allowed = {c.tobytes() for crop in crops for c in (crop, crop[:, ::-1])}
    made = np.asarray(data.augment(jax.random.key(0), images, padding=1)[..., 0])
    assert {m.tobytes() for m in made} <= allowed
    assert len({m.tobytes() for m in made}) > 9


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [(7, 8), (2, 2)])
def test_patches_give_the_same_convolution(strides, size):
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (3, *size, 4))
    nets = [
        models.ConvNorm(4, 5, strides, convolution, models.nnx.Rngs(1)).conv
        for convolution in ("xla", "patches")
    ]
    xla, patches = (net(images) for net in nets)
    np.testing.assert_allclose(patches, xla, rtol=1e-4, atol=1e-5)


def test_resnet20_has_the_published_size():
    net = models.network(Model("resnet", widths=(16, 32, 64)), (32, 32, 3), 10)
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 269_722


def test_figures_take_deep_nets_and_single_sparsities():
    layers = {f"layers/{i}/conv": 0.1 * (i % 3) for i in range(22)}
    config = Config(pruning=Pruning(methods=("snip",), sparsities=(0.9,)))
    found = tuple(
        results.Result(m, s, [s], [0.9], [0.9], [1], [0.9], None, 1.0, layers)
        for m, s in compare.plan(config)
    )
    report = results.Report("deep", config, {}, {}, "", 1.0, found)
    assert plots.accuracy(report).startswith(PNG)
    assert plots.density(report).startswith(PNG)
