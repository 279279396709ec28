"""The settings of a run: what they may be, and that what they say is done."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import SHORT

from vit_keras.pipelines import running
from vit_keras.pipelines.cli import _run_config, build_parser
from vit_keras.pipelines.config import FitConfig, RunConfig
from vit_keras.pipelines.run_folder import RunFolder, read_config


def test_gradients_need_not_be_clipped(tmp_path):
    """Then a training is that with a limit which no gradient reaches, and not that with a low one."""
    losses = []
    for name, clip_norm in (("none", None), ("high", 1e9), ("low", 1e-9)):
        fit = FitConfig(1, 128, "sgd", learning_rate=0.05, warmup_epochs=0, clip_norm=clip_norm, jit=False)
        running.train(RunConfig(out=str(tmp_path / name), **{**SHORT, "fit": fit}))
        losses.append(RunFolder(tmp_path / name).read_metrics()[0]["loss"])
    assert read_config(tmp_path / "none" / "config.yaml").fit.clip_norm is None
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert abs(losses[0] - losses[2]) > 1e-3


@pytest.mark.parametrize(("word", "clip_norm"), [("null", None), ("0.5", 0.5), ("1e-1", 0.1)])
def test_the_limit_of_gradients_as_a_flag(word, clip_norm):
    options = build_parser()[0].parse_args(["run", "--fit.clip_norm", word])
    assert _run_config(options.run).fit == replace(FitConfig(), clip_norm=clip_norm)
