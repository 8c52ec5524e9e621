"""The experiments run, on the small bundled digits, and never leave half a file."""

import dataclasses
import importlib
import itertools
import json
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from flax import nnx

import jaxprune as jp
from experiments import (
    comparison,
    configs,
    data,
    gradient_flow,
    lab,
    mesh,
    models,
    records,
    report,
    run,
)
from experiments.config import Config, Data, Model, Pruning, Rounds, Scaled
from experiments.methods import METHODS
from experiments.methods._several import chain, chain_sparsities
from experiments.models import _layers
from tests.helpers import QUICK
from tests.test_scale import _quick  # noqa: F401  The fixture is used.

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__)]
PNG = b"\x89PNG"


def _config(name: str) -> Config | Rounds | Scaled:
    return importlib.import_module(f"experiments.configs.{name}").config


def small(name: str) -> Config | Rounds | Scaled:
    """A config as it is, but two steps an epoch, on digits, with one block a stage."""
    config = _config(name)
    model = config.model
    if model.name == "lenet5":  # It takes larger images than these.
        model = dataclasses.replace(model, name="lenet")
    widths = tuple(min(width, 8) for width in model.widths)
    config = dataclasses.replace(
        config,
        data=Data("digits", train_size=32, test_size=50, augment=config.data.augment),
        model=dataclasses.replace(model, blocks=1, widths=widths),
        batch_size=16,
        **FEW[type(config)],
    )
    if isinstance(config, Config):
        checked = tuple(m for m in config.pruning.checked if m in ("snip", "imp"))
        pruning = dataclasses.replace(
            config.pruning,
            methods=config.pruning.methods[:2],
            sparsities=(0.9,),
            checked=checked,
            ablated=(),
            imp_fraction=0.8,
            rounds=2,
            k=2,
            every=2,
            warmup=1,
        )
        config = dataclasses.replace(config, pruning=pruning)
    return config


FEW = {
    Config: {"seeds": 1, "epochs": 2, "drops": ()},  # One may be a warm-up.
    Rounds: {
        "measures": ("loss_preservation",),
        "fractions": (0.5,),
        "rounds": (1,),
        "examples_per_class": 2,
        "seeds": 1,
        "epochs": 2,
    },
    Scaled: {"epochs": 1, "drops": ()},
}
IMAGES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "tiny_imagenet": (64, 64, 3)}


@pytest.mark.parametrize("name", [n for n in NAMES if n != "smollm2"])
def test_every_config_has_rows_and_a_network(name):
    config = _config(name)
    if not isinstance(config, Scaled):  # That is one network.
        program = comparison if isinstance(config, Config) else gradient_flow
        rows = program.plan(config)
        assert len(set(rows)) == len(rows) > 1
    shape = IMAGES.get(config.data.name, (32, 32, 3))
    net = models.network(config.model, shape, 10)
    params, stats = jax.eval_shape(net.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    logits, _ = jax.eval_shape(
        lambda *given: net.apply(*given, train=True), params, stats, images
    )
    assert logits.shape == (2, 10)


# One with checks, one with masks that move; the rest differ from these in numbers.
RUN = ["drive_mnist", "digits_dynamic"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_comparisons_run_for_two_steps_an_epoch(name, tmp_path):
    config = small(name)
    seen = []
    dataset = data.load(config.data)
    found = comparison.run(config, dataset, tmp_path, lambda *args: seen.append(args))
    rows = comparison.plan(config)
    assert [(r["method"], r["sparsity"], r["variant"]) for r in found] == rows
    assert sum(epochs for _, epochs in seen) == comparison.epochs(config) == len(seen)
    assert seen[config.epochs] == (f"{rows[1].method} 0.9 ", 1)
    for row in found:
        np.testing.assert_allclose(row["sparsity_reached"], row["sparsity"], atol=3e-3)
        for value in (*row["test_accuracy"], *row["test_accuracy_at_best"]):
            assert 0 <= value <= 1
        assert all(0 <= kept <= 1 for kept in row["density"].values())


@pytest.mark.slow
def test_a_residual_network_trains_on_a_mesh_for_two_steps(tmp_path):
    config = small("cifar10_mesh")
    _, _, metrics = mesh.train(config, data.read(config.data), tmp_path)
    assert 0 <= metrics["test"] <= 1
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2


@pytest.mark.slow
def test_pipelines_run_for_two_steps_an_epoch(tmp_path):
    config = small("cifar10_gradient_flow")
    found = gradient_flow.run(config, data.load(config.data), tmp_path, lambda *_: None)
    assert [(r["measure"], r["level"]) for r in found] == [
        ("dense", "weights"),
        ("loss_preservation", "filters"),
        ("loss_preservation", "weights"),
    ]
    dense, filters, weights = found
    assert filters["parameters"] == weights["parameters"] < dense["parameters"]
    assert filters["latency"]["difference"] < 1e-5


@pytest.mark.slow
def test_command_line_writes_whole_files(tmp_path, capsys):
    flags = (
        "--epochs=1 --seeds=2 --batch-size=16 --data.train-size=32 --data.test-size=50 "
        "--model.widths 4 8 --pruning.every=2 --pruning.methods snip gradual "
        "--pruning.sparsities 0.8 0.95"
    ).split()
    run.main(["digits", *flags, f"--workdir={tmp_path}"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "runs",
        "results.json",
        "accuracy.png",
        "density.png",
    }
    for figure in ("accuracy.png", "density.png"):
        assert (tmp_path / figure).read_bytes().startswith(PNG)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["name"] == "digits"
    assert found["config"]["pruning"]["sparsities"] == [0.8, 0.95]
    assert found["images"] == {"train": 32, "validation": 360, "test": 50}
    assert {"commit", "packages"} <= set(found["environment"])
    assert [r["method"] for r in found["results"]] == [
        *("dense", "snip", "snip", "gradual", "gradual")
    ]
    for row in found["results"]:
        assert len(row["test_accuracy"]) == 2
        assert (row["score_seconds"] is None) == (row["method"] != "snip")
    shown = capsys.readouterr().out
    assert all(method in shown for method in ("dense", "snip", "gradual"))


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
        (["--pruning.methods", "wanda"], ("wanda", "--model.convolution=xla")),
    ],
    ids=["sparsity", "seeds", "method", "batch", "inputs"],
)
def test_bad_options_are_refused_before_training(flags, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run.main(["digits", *flags, f"--workdir={tmp_path}"])
    shown = capsys.readouterr()
    text = " ".join(f"{shown.out} {shown.err} {stopped.value.code}".split())
    assert stopped.value.code not in (0, None)
    assert all(word in text for word in words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("mnist_lenet300", "tfds build mnist"),
        ("cifar100_resnet56", "tfds build cifar100"),
        ("tiny_imagenet_mobilenet", "tfds new tiny_imagenet"),
    ],
)
def test_missing_data_set_says_where_and_how(name, command, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run.main([name, f"--data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}"])
    message = str(stopped.value.code)
    assert str(tmp_path) in message
    assert "--data.dir" in message
    assert command in message
    assert not list(tmp_path.iterdir())  # Nothing was downloaded or begun.


def test_a_run_that_is_killed_leaves_the_old_results(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run.main(["digits", f"--workdir={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    records.write(path, b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        records.write(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_sources_are_those_of_the_documentation():
    text = (report.HERE.parent / "docs" / "methods.md").read_text()
    rows = dict(re.findall(r"^\| \[`?(\w+)`?\].*?<br>\*(.*?)\*", text, re.M))
    said = [(row.source, rows.get(row.row or name)) for name, row in METHODS.items()]
    said = [(source, theirs) for source, theirs in said if source and theirs]
    assert len(said) > 20
    for source, theirs in said:
        assert source.replace(",", "") in theirs or theirs == "2:4 sparsity"


def test_best_epoch_is_of_the_final_sparsity():
    history = lab.Metrics(
        loss=np.zeros((3, 1)),
        validation=np.array([[0.9], [0.5], [0.4]]),
        test=np.array([[0.8], [0.6], [0.7]]),
        sparsity=np.array([[0.0], [0.9], [0.9]]),
    )
    found = comparison.summarize(history)
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


CONVOLUTIONS = {  # inputs, outputs, size, groups, padding
    "3x3": (4, 5, 3, 1, "SAME"),
    "1x1": (4, 5, 1, 1, "SAME"),
    "5x5 valid": (4, 5, 5, 1, "VALID"),
    "depthwise": (4, 4, 3, 4, "SAME"),
    "grouped": (4, 6, 3, 2, "SAME"),
    "depth multiplier": (4, 8, 3, 4, "SAME"),
    "one channel": (1, 5, 3, 1, "SAME"),
}


@pytest.mark.parametrize("implementation", ["patches", "mixed"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_every_implementation_gives_the_same_convolution(case, strides, implementation):
    inputs, outputs, size, groups, padding = case
    for sides in [(7, 8), (2, 2)]:
        if padding == "VALID" and size > min(sides):
            continue
        images = jax.random.normal(jax.random.key(0), (3, *sides, inputs))
        options = {"strides": strides, "groups": groups, "padding": padding}
        found, xla = (
            _layers.conv(inputs, outputs, size, name, nnx.Rngs(1), **options)(images)
            for name in (implementation, "xla")
        )
        np.testing.assert_allclose(found, xla, rtol=1e-4, atol=1e-5)


SIZES = {  # Lubana & Dick's code, He et al., torchvision, Caffe, LeCun et al.
    "vgg13": [((32, 32, 3), 10, 9_413_066), ((32, 32, 3), 100, 9_459_236)],
    "mobilenet_v1": [((32, 32, 3), 10, 3_217_226), ((32, 32, 3), 100, 3_309_476)],
    "resnet56": [((32, 32, 3), 10, 855_770), ((32, 32, 3), 100, 861_620)],
    "resnet20": [((32, 32, 3), 10, 269_722)],
    "resnet18": [((32, 32, 3), 10, 11_173_962)],
    "resnet50": [((224, 224, 3), 1000, 25_557_032)],
    # 13 kernels of 3x3, a scale and a bias of BatchNorm for 4,224 filters, one layer.
    "vgg16": [((32, 32, 3), 10, 9 * 1_634_496 + 2 * 4_224 + 5_130)],
    # Stem; 3x3 and 1x1 kernels of three stages; BatchNorm of 1,360 channels; output.
    "wrn22_2": [
        ((32, 32, 3), 10, 432 + 51_200 + 204_800 + 819_200 + 2 * 1_360 + 1_290)
    ],
    "lenet300": [((28, 28, 1), 10, 266_610)],
    "lenet5": [((28, 28, 1), 10, 431_080)],
    # Embedding and positions; 6 x (4 in attention, 2 in the MLP, norms); norm; output.
    "vit": [
        (
            (32, 32, 3),
            10,
            (48 * 256 + 256 + 64 * 256)
            + 6 * (4 * (256**2 + 256) + 2 * 4 * 256**2 + 5 * 256 + 4 * 256)
            + 2 * 256
            + 2570,
        )
    ],
}


@pytest.mark.parametrize("name", models.PUBLISHED)
def test_published_networks_have_their_published_sizes(name):
    for shape, classes, size in SIZES[name]:
        net = models.network(models.PUBLISHED[name], shape, classes)
        params, _ = jax.eval_shape(net.init, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size


def test_lenet5_on_its_first_images_has_its_first_size():
    net = models.network(Model("lenet5", (6, 16, 120, 84)), (32, 32, 1), 10)
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706


def test_resnet18_for_large_images_has_its_published_size():
    config = dataclasses.replace(models.PUBLISHED["resnet18"], stem="imagenet")
    net = models.network(config, (224, 224, 3), 1000)
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_689_512


CHANNELS = {
    "vgg13": 2_944,
    "mobilenet_v1": 5_984,
    "resnet56": 1_008 + 16 + 32 + 64,  # Inside the blocks, and three streams.
    "vit": 256 + 6 * (4 + 1024),  # The stream, heads and hidden units.
}


@pytest.mark.parametrize(
    "name, convolution",
    [(name, "xla") for name in CHANNELS]
    + [("vgg13", "patches"), ("mobilenet_v1", "patches"), ("mobilenet_v1", "mixed")],
)
def test_all_channels_of_published_networks_can_be_removed(name, convolution):
    config = dataclasses.replace(models.PUBLISHED[name], convolution=convolution)
    net = models.network(config, (32, 32, 3), 10)
    groups = jp.structured.channel_groups(
        lambda state, x: net.apply(*state, x, train=False)[0],
        jax.eval_shape(net.init, jax.random.key(0)),
        jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
    )
    assert sum(group.size for group in groups) == CHANNELS[name]


SMALL_NETWORKS = {
    "lenet5": Model("lenet5", (3, 4, 8)),
    "vgg": Model("vgg", (4, 6), (1, 2)),
    "mobilenet": Model("mobilenet", (4, 8, 8, 16)),
    "bottleneck": Model(
        "resnet", (2, 4), 1, block="bottleneck", shortcut="project", stem="imagenet"
    ),
    "vit": Model("vit", (8,), 1, heads=2, patch=8),
}


@pytest.mark.parametrize("config", SMALL_NETWORKS.values(), ids=SMALL_NETWORKS.keys())
def test_networks_compute_alike_whatever_the_convolution(config):
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    outputs = []
    for convolution in ("xla", "mixed"):
        config = dataclasses.replace(config, convolution=convolution)
        net = models.network(config, (16, 16, 3), 5)

        def run(key, net=net):
            return net.apply(*net.init(key), images, train=True)[0]

        outputs.append(jax.jit(run, compiler_options=QUICK)(jax.random.key(0)))
    assert outputs[0].shape == (2, 5) and np.ptp(outputs[0]) > 0.01
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Model("lenet5", (3, 4)), "16x16 pixels or more; these are 8x8"),
        (Model("lenet5", (3,)), "filters of its two convolutions"),
        (Model("vit", (10,), 1, heads=4), "a multiple of its heads"),
        (Model("vit", (8,), 1, patch=9), "no larger than the image"),
        (Model("vgg", (4, 8), (1, 1, 1)), "blocks holds 3 numbers for 2 widths"),
    ],
    ids=["image", "widths", "heads", "patch", "blocks"],
)
def test_networks_refuse_what_they_cannot_be_made_of(config, words):
    side = 16 if "filters" in words else 8
    with pytest.raises(ValueError, match=words):
        models.network(config, (side, side, 1), 10)


def _made_up(config, rows, **fields):
    """The content of results.json, with the same numbers in all rows."""
    same = {
        "sparsity_reached": [0.9] * config.seeds,
        "test_accuracy": [0.9, 0.8][: config.seeds],
        "pruning_seconds": 0.5,
        "density": {},
        "seconds": 90.0 / len(rows),
        **fields,
    }
    found = [
        {"method": m, "sparsity": s, "variant": v, **same, "sparsity_reached": [s]}
        for m, s, v in rows
    ]
    place = {**records.environment(), "commit": "abc", "command": ["digits"]}
    dataset = data.load(dataclasses.replace(config.data, train_size=10))
    return records.summary("digits", config, place, dataset, found)


def test_figures_take_deep_nets_and_single_sparsities():
    layers = {f"layers/{i}/conv": 0.1 * (i % 3) for i in range(22)}
    config = Config(pruning=Pruning(methods=("snip",), sparsities=(0.9,)), seeds=1)
    found = _made_up(config, comparison.plan(config), density=layers)
    files = report.files(found)
    assert files["accuracy.png"].startswith(PNG)
    assert files["density.png"].startswith(PNG)


# Iterative magnitude pruning


def test_rounds_meet_every_target_and_remove_a_fifth():
    found = chain_sparsities((0.5, 0.3), 0.2)
    np.testing.assert_allclose(found, [0.2, 0.3, 0.44, 0.5])
    assert chain_sparsities((0.9,), 1.0) == [0.9]


def test_the_chain_is_nested_exact_and_starts_from_the_saved_weights():
    saved = {"w": jax.random.normal(jax.random.key(0), (2, 4, 5))}
    whole = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), saved)
    seen = []

    def train(mask):
        seen.append(mask)  # "Training" adds 1 to what is left.
        return jax.tree.map(lambda p, m: jnp.where(m, p + 1, 0.0), saved, mask)

    links = list(chain(train, whole, (0.2, 0.5), 0.2))
    assert [sparsity for sparsity, _, _ in links] == [0.2, 0.5]
    assert len(seen) == len(chain_sparsities((0.2, 0.5), 0.2)) == 4
    for sparsity, mask, _ in links:
        np.testing.assert_array_equal(
            (~mask["w"]).sum((1, 2)), [round(20 * sparsity)] * 2
        )
    masks = [*seen, links[-1][1]]
    for before, after in itertools.pairwise(masks):
        assert not np.any(after["w"] & ~before["w"])
    # Each seed loses its own smallest |p + 1|.
    order = np.abs(np.asarray(saved["w"]) + 1).reshape(2, -1).argsort(1)
    for mask, ranked in zip(np.asarray(links[0][1]["w"]), order, strict=True):
        assert set(np.flatnonzero(~mask.ravel())) == set(ranked[:4])
    assert links[0][2] <= links[1][2]


def test_checks_and_ablations_follow_the_methods():
    pruning = Pruning(
        methods=("snip", "imp"),
        sparsities=(0.9,),
        checked=("snip", "imp"),
        ablated=("drive",),
    )
    found = comparison.plan(Config(pruning=pruning))
    assert [tuple(run) for run in found[:8]] == [
        ("dense", 0.0, ""),
        ("snip", 0.9, ""),
        ("imp", 0.9, ""),
        ("snip", 0.98, "shuffled"),
        ("snip", 0.98, "redrawn"),
        ("snip", 0.98, "inverted"),
        ("imp", 0.98, "shuffled"),
        ("imp", 0.98, "redrawn"),
    ]
    assert {run.method for run in found[8:]} == {"drive"}
    assert len({run.file for run in found}) == len(found)


def test_the_page_of_results_is_the_one_that_is_generated():
    written = (report.HERE / "README.md").read_text()
    assert written == report.page(report.HERE / "results")


def test_the_page_shows_what_a_comparison_found(tmp_path):
    config = Config(pruning=Pruning(methods=("snip",), sparsities=(0.9,)), seeds=2)
    rows = [*comparison.plan(config), ("snip", 0.9, "shuffled")]
    (tmp_path / "digits").mkdir()
    records.save(tmp_path / "digits" / "results.json", _made_up(config, rows))
    text = report.page(tmp_path)
    assert "Fitness" not in text
    assert "| snip | 0.5 s | 85.0 ±7.1 |" in text
    assert "| snip | shuffled | 90.0 % | 85.0 ±7.1 |" in text
    seeds = "Seeds: 2 of 5 (the rest was not run); epochs: 20; images: 10 train"
    assert seeds in text
    assert "python -m experiments.run digits\n" in text


def test_the_page_says_how_far_k_starts_masks_differ():
    row = {"method": "k_starts", "sparsity": 0.9, "fitness": [[0.1, 0.3], [0.2, 0.4]]}
    other = {"method": "snip", "sparsity": 0.9, "fitness": None}
    assert report._tables.fitness({"results": [row, other]}) == (
        "- Fitness of the 2 masks of k_starts at 90 %: 0.250, standard deviation 0.1, "
        "best 0.350, worst 0.150.\n"
    )


def test_results_do_not_say_where_things_lie(monkeypatch):
    args = ["run", "digits", "--data.dir=/home/me", "--seeds=2", "--workdir=/tmp/x"]
    monkeypatch.setattr(records.sys, "argv", args)
    assert records.environment()["command"] == ["digits", "--seeds=2"]
    config = Config(
        data=Data("mnist", dir="/home/me"), workdir=records.pathlib.Path("/")
    )
    plain = records.plain_config(config)
    assert plain["data"]["dir"] is None and plain["workdir"] is None


def test_a_terminal_wraps_titles_and_cuts_nothing_off(capsys):
    config = Config(pruning=Pruning(methods=("gradient_preservation", "imp")), seeds=2)
    found = _made_up(config, comparison.plan(config))
    table, *texts = report.parts(found)
    console = rich.console.Console(width=80)
    console.print(table)
    shown = capsys.readouterr().out
    assert "…" not in shown and all(len(line) <= 80 for line in shown.splitlines())
    words = {
        word for row in (table.titles, *table.rows) for x in row for word in x.split()
    }
    assert words <= {*shown.split()}
    assert "Pruned in" in texts[0]
