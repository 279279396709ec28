"""What the words of a command and the lines of its files come to: which of them win, and what counts as a number."""

import itertools

import pytest

from vit_keras.pipelines.cli import _run_config, build_parser, main
from vit_keras.pipelines.config import FitConfig, RunConfig
from vit_keras.pipelines.run_folder import RunFolder, read_config
from vit_keras.pipelines.yaml_text import read_yaml, write_yaml


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Two configurations, and files of a section, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("fit: {epochs: 11, batch_size: 12, learning_rate: 1e-3}\n")
    (tmp_path / "b.yaml").write_text("fit: {epochs: 21, seed: 23}\n")
    (tmp_path / "fit.yaml").write_text("epochs: 31\nweight_decay: 1e-2\n")


def parsed(*words):
    return build_parser()[0].parse_args(list(words)).clone(with_meta=False)


def configured(*words):
    options = parsed(*words)
    return _run_config(options[options.command])


# Numbers


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-03", "0.1e-2", "1.e-3"])
def test_a_power_of_ten_is_a_number_in_a_file_as_it_is_in_a_flag(tmp_path, text):
    (tmp_path / "c.yaml").write_text(
        f"override: {{drop_path_rate: {text}}}\nfit:\n  learning_rate: {text}\naugment: {{mixup: {text}}}\n"
    )
    flags = [f"--fit.learning_rate={text}", f"--override.drop_path_rate={text}", f"--augment.mixup={text}"]
    for config in (read_config("c.yaml"), configured("run", "--config", "c.yaml"), configured("train", *flags)):
        assert config.fit.learning_rate == 0.001
        assert config.override == {"drop_path_rate": 0.001}
        assert config.augment.mixup == 0.001


def test_a_configuration_is_read_as_it_was_written(tmp_path):
    texts = ["1e3", "1.5e3", ".5e-3", "._", "1_0", "1:30", "2024-01-01", "yes", "null", "12", "", "a: b", "ä"]
    for text in texts:
        assert read_yaml(write_yaml({"out": [text]})) == {"out": [text]}
    config = RunConfig(data="1e3", out=str(tmp_path / "run"), fit=FitConfig(learning_rate=1e-5, epochs=1))
    RunFolder(tmp_path / "run").begin(config, overwrite=False)
    assert read_config(tmp_path / "run" / "config.yaml") == config
    assert configured("run", "--config", str(tmp_path / "run" / "config.yaml")) == config


# Who wins


@pytest.mark.parametrize("words", list(itertools.permutations(["--fit.epochs=3", "--config a.yaml", "--fit fit.yaml"])))
def test_flags_win_over_files_wherever_they_stand(words):
    fit = configured("train", *" ".join(words).split()).fit
    assert (fit.epochs, fit.batch_size, fit.learning_rate, fit.weight_decay) == (3, 12, 0.001, 0.01)
    fit = configured("train", *[word.replace(" ", "=") for word in words if "epochs" not in word]).fit
    assert (fit.epochs, fit.batch_size, fit.weight_decay, fit.seed) == (31, 12, 0.01, 0)  # A section's file too.


@pytest.mark.parametrize(("order", "epochs"), [("ab", 21), ("ba", 11)])
def test_of_two_files_the_later_wins(order, epochs):
    words = [word for name in order for word in ("--config", f"{name}.yaml")]
    fit = configured("run", words[0], words[1], "--fit.label_smoothing", "0.2", *words[2:]).fit
    assert (fit.epochs, fit.batch_size, fit.seed, fit.label_smoothing) == (epochs, 12, 23, 0.2)


def test_of_two_flags_the_later_wins():
    assert configured("run", "--fit.epochs", "3", "--config", "a.yaml", "--fit.epochs", "4").fit.epochs == 4


def test_a_section_may_be_a_file_or_a_text(capsys):
    assert configured("run", "--fit", "{epochs: 5}").fit.epochs == 5
    assert parsed("data", "show", "digits", "--augment", "{policy: none}").data.show.augment.policy == "none"
    assert main(["run", "--fit", "none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--config"], ["--fit.epochs", "3", "--config"], ["--config", "--fit.epochs", "3"]])
def test_a_flag_without_its_file_is_said(capsys, words):
    assert main(["run", *words]) == 2
    assert "--config: expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--fit.epochs", "3", "--export.targets", "cpu"]])
def test_what_is_printed_as_configuration_is_one(tmp_path, capsys, flags):
    with pytest.raises(SystemExit):
        main(["run", *flags, "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert configured("run", "--config", "printed.yaml") == configured("run", *flags)


# Yes and no


@pytest.mark.parametrize("flag", ["--saved_model", "--input.skip_bad", "--sensitivity"])
def test_a_flag_that_stands_alone_leaves_the_next_word(flag):
    for words in ([flag, "runs/a"], ["runs/a", flag], [flag, "true", "runs/a"], [f"{flag}=true", "runs/a"]):
        options = parsed("export", *words).export
        assert options.path == "runs/a"
        assert options[flag.removeprefix("--")] is True


@pytest.mark.parametrize(
    ("answer", "value"), [("false", False), ("No", False), ("off", False), ("TRUE", True), ("on", True), ("null", None)]
)
def test_a_flag_takes_an_answer(answer, value):
    options = parsed("data", "show", "--augment.flip", answer, "pictures").data.show
    assert (options.data, options.augment.flip) == ("pictures", value)


def test_flags_that_stand_alone_side_by_side():
    options = parsed("data", "show", "--input.skip_bad", "--augment.flip", "--overwrite", "pictures").data.show
    assert (options.input.skip_bad, options.augment.flip, options.overwrite, options.data) == (*[True] * 3, "pictures")


# What is said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("run --fit.epochs 1.5", "fit.epochs must be of type int | null. Received: fit.epochs=1.5"),
        ("run --augment.flip=perhaps", "augment.flip must be of type bool | null. Received: augment.flip=perhaps"),
        ("run --fit.learning_rate fast", "fit.learning_rate must be of type float. Received: fit.learning_rate=fast"),
        ("run --input.image_size 8,8", "input.image_size must be of type int | tuple[int, int] | null. Received"),
        ("benchmark a.tflite --threads x", "threads must be of type int. Received: threads=x"),
        ("run extra", "vit-keras run takes no such argument. Received: 'extra'"),
        ("run --config wrong.yaml", "fit.jit must be of type bool. Received: fit.jit='maybe'"),
    ],
)
def test_a_wrong_word_is_said_in_one_sentence(tmp_path, capsys, words, sentence):
    (tmp_path / "wrong.yaml").write_text("fit: {jit: maybe}\n")
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("words", ["--verbose list vit_m*", "list --verbose vit_m*", "list vit_m* --verbose"])
def test_verbose_may_stand_anywhere(monkeypatch, words):
    import logging

    monkeypatch.setattr(logging.getLogger("vit_keras"), "level", logging.WARNING)
    assert main(words.split()) == 0
    assert logging.getLogger("vit_keras").level == logging.INFO


# What it comes to


@pytest.mark.parametrize("words", [["--export.targets", "cpu"], ["--config", "c.yaml"]])
def test_targets_choose_the_kinds_of_a_run(tmp_path, words):
    (tmp_path / "c.yaml").write_text("export: {targets: cpu}\n")
    assert configured("run", *words).export.kinds == ("static_int8",)
    assert len(configured("run").export.kinds) == 6
