"""Search spaces and settings of a search: what is read, what is refused, and what values make of a run."""

import dataclasses

import keras_tuner
import pytest

from vit_keras.pipelines.config import RunConfig
from vit_keras.pipelines.fitting import build_model
from vit_keras.pipelines.measuring import Measurement, look_up, read_measurements, shape_key
from vit_keras.pipelines.resolving import resolve_sizes
from vit_keras.pipelines.space import apply, list_spaces, make_space, read_space, shape_cost
from vit_keras.pipelines.tune_config import TuneConfig, split_address

BASE = RunConfig(model="vit_micro_patch2_8")


@pytest.mark.parametrize("name", list_spaces())
def test_a_ready_space_holds_shapes_that_can_be_built(name):
    space = read_space(name)
    hp = space.hyperparameters()
    assert [p.name for p in hp.space] == [p.name for p in space.parameters]
    model = "vit_mini_patch8_64" if name == "edge" else BASE.model
    base = dataclasses.replace(BASE, model=model)
    for values in (hp.values, space.smallest(base, "latency")[0]):
        config = resolve_sizes(apply(values, base))
        config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, prompts=2))
        built = build_model(config, 3, None)
        assert built.output_shape == (None, 3)
    assert list_spaces()[name]


def test_the_ready_spaces_are_those_that_the_command_names():
    assert set(list_spaces()) == {"small", "regularisation", "finetune", "edge"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("{}", "empty"),
        ("- a", "empty"),
        ("fit.lerning_rate: {float: [1, 2]}", "Did you mean 'fit.learning_rate'?"),
        ("fit.seed: {int: [1, 2]}", "Unknown setting 'fit.seed'"),
        ("export.kinds: {choice: [a]}", "Unknown setting 'export.kinds'"),
        ("fit.epochs: {int: [9, 2]}", "must rise from low to high"),
        ("fit.epochs: {int: [2, 9], default: 10}", "default between"),
        ("fit.epochs: {int: [2, 9.5]}", "the lowest and the highest number"),
        ("fit.epochs: {int: [2]}", "the lowest and the highest number"),
        ("fit.epochs: {choice: []}", "not an empty one"),
        ("fit.epochs: {choice: [2, 2]}", "each once"),
        ("fit.epochs: {choice: [2, a]}", "of one type"),
        ("fit.epochs: {choice: [2, 3], int: [2, 3]}", "must have one of"),
        ("fit.epochs: {chioce: [2, 3]}", "must have one of"),
        ("fit.epochs: {choice: [2, 3], stepp: 2}", "stepp"),
        ("fit.epochs: {choice: [2, 3], default: 4}", "one of its values"),
        ("fit.learning_rate: {float: [0.0, 0.1], sampling: log}", "log from > 0 on"),
        ("adapt.rank: {choice: [4], when: {adapt.method: lora}}", "must stand before it"),
        ("adapt.method: {choice: [full]}\nadapt.rank: {choice: [4], when: {adapt.method: lora}}", "['lora']"),
        ("mlp_ratio: {choice: [2]}\noverride.mlp_dim: {choice: [64]}", "not both"),
    ],
)
def test_a_space_that_says_nothing_or_contradicts_itself_is_refused(tmp_path, text, part):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        read_space(str(tmp_path / "space.yaml"))
    assert part in str(caught.value)
    assert "space.yaml" in str(caught.value)


def test_unknown_spaces():
    with pytest.raises(ValueError, match="Did you mean 'small'"):
        read_space("smal")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        read_space("none.yaml")


def test_values_become_a_run():
    values = {"override.hidden_dim": 64, "mlp_ratio": 3, "fit.learning_rate": 0.00123456789, "tuner/epochs": 7}
    config = apply({**values, "model": "vit_mini_patch4_28", "own": 1}, BASE)
    assert config.model == "vit_mini_patch4_28"
    assert config.override == {"hidden_dim": 64, "mlp_dim": 192}
    assert config.fit.learning_rate == 0.00123457
    assert config.fit.epochs == 7
    assert BASE.override == {}
    with pytest.raises(ValueError, match=r"fit\.label_smoothing"):
        apply({"fit.label_smoothing": 2.0}, BASE)


def test_the_strength_of_augmentation_multiplies_the_policy():
    off, twice = (apply({"augment_strength": s}, BASE).augment.changes((8, 8)) for s in (0.0, 2.0))
    own = BASE.augment.changes((8, 8))
    assert (off.shift, off.rotation, off.zoom, off.noise) == (0, 0, 0, 0)
    assert (twice.shift, twice.rotation, twice.noise) == (2 * own.shift, 2 * own.rotation, 2 * own.noise)
    assert apply({"augment_strength": 99.0}, BASE).augment.rotation == 180


def test_what_hangs_on_a_choice_counts_only_with_it():
    hp = read_space("finetune").hyperparameters()
    hp.values["adapt.method"] = "lora"
    hp.ensure_active_values()
    assert "adapt.rank" in hp.values and "fit.layer_decay" not in hp.values
    declared = keras_tuner.HyperParameters()
    assert "adapt.rank" not in read_space("finetune").declare(declared)


def test_the_smallest_shape_can_be_built_and_is_the_smallest():
    space = read_space("small")
    least = space.smallest(BASE, "latency")[0]
    assert least["override.patch_size"] == 8 and least["override.num_layers"] == 1
    assert least["override.hidden_dim"] == 32 and least["mlp_ratio"] == 1
    assert shape_cost({**least, "override.patch_size": 7}, BASE) is None
    assert space.smallest(BASE, "bytes")[0]["override.patch_size"] == 2
    assert make_space({"override.patch_size": {"choice": [3, 5]}}).smallest(BASE, "latency") == []


# Settings of a search


@pytest.mark.parametrize(
    ("given", "amount"), [("2M", 2_000_000), ("1.5k", 1500), ("300", 300), ("1Ki", 1024), ("2MB", 2_000_000)]
)
def test_sizes(given, amount):
    assert TuneConfig(max_bytes=given).max_bytes == amount


@pytest.mark.parametrize(("given", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("7", 7), (2.5, 2.5)])
def test_times(given, seconds):
    assert TuneConfig(time_budget=given).time_budget == seconds


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"tuner": "bayes"}, "Did you mean 'bayesian'?"),
        ({"trials": 0}, "trials"),
        ({"max_bytes": "2X"}, "max_bytes"),
        ({"max_bytes": "0"}, "max_bytes"),
        ({"max_latency_ms": 0.0}, "max_latency_ms"),
        ({"time_budget": "soon"}, "time_budget"),
        ({"objective": "accuracy"}, "val_accuracy"),
        ({"objective": "latency,latency"}, "each once"),
        ({"objective": "latency=x"}, "weights above 0"),
        ({"kind": "static_int4"}, "static_int8"),
        ({"seeds": -1}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
    ],
)
def test_settings_out_of_range_are_refused(settings, part):
    with pytest.raises(ValueError) as caught:
        TuneConfig(**settings)
    assert part in str(caught.value)


@pytest.mark.parametrize("address", [None, "here", "here:x", ":80", "here:0", "here:70000"])
def test_addresses(address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address(address)


def test_the_objective_weighs_accuracy_against_the_device():
    device = {"latency": 10.0, "bytes": 2e6, "memory": 5e6}
    assert TuneConfig().score(0.9, device) == pytest.approx(0.9)
    tune = TuneConfig(objective="val_accuracy=2,latency=0.01,bytes=0.1,memory=0.02")
    assert tune.score(0.9, device) == pytest.approx(1.8 - 0.1 - 0.2 - 0.1)
    assert TuneConfig(objective="latency").score(0.9, device) == -10


# Measurements of another device


def test_measurements_are_found_by_their_settings(tmp_path):
    file = tmp_path / "phone.csv"
    file.write_text("override.num_layers,fit.optimizer,latency_ms,bytes\n1,,3.5,1000\n2,adamw,7,2000\n")
    rows = read_measurements(file, {"latency", "bytes"})
    assert look_up(rows, {"override.num_layers": 1}, BASE) == Measurement(3.5, 1000, None)
    assert look_up(rows, {"override.num_layers": 2}, BASE) == Measurement(7, 2000, None)
    assert look_up(rows, {"override.num_layers": 3}, BASE) is None
    (tmp_path / "phone.json").write_text('[{"override.num_layers": 1, "latency_ms": 3.5}]')
    assert read_measurements(tmp_path / "phone.json", {"latency"})[0]["latency_ms"] == 3.5
    with pytest.raises(ValueError, match=r"row 1 must hold a number as memory"):
        read_measurements(file, {"memory"})
    (tmp_path / "empty.csv").write_text("latency_ms\n")
    with pytest.raises(ValueError, match="0 rows"):
        read_measurements(tmp_path / "empty.csv", set())
    with pytest.raises(FileNotFoundError, match=r"no\.csv"):
        read_measurements(tmp_path / "no.csv", set())


def test_a_measurement_says_what_is_over_its_limit():
    found = Measurement(12.3, 2_500_000, 5)
    assert found.excess({"latency": 13, "bytes": 2_500_000}) is None
    assert found.excess({"latency": 12.0}) == "latency 12.3 ms > 12"
    assert "bytes" in str(found.excess({"bytes": 2e6})) and "latency" not in str(found.excess({"bytes": 2e6}))
    assert Measurement().excess({"latency": 1.0}) is None


def test_shapes_that_differ_in_training_alone_are_measured_once():
    def key(**changes):
        return shape_key(resolve_sizes(dataclasses.replace(BASE, **changes)), 10, "static_int8", 1)

    assert key() == key(override={"dropout_rate": 0.5})
    assert key() != key(override={"num_layers": 2})
    assert key() != key(model="vit_mini_patch4_28")
    assert key()["image_size"] == [8, 8]
