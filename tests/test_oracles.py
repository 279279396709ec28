"""keras-tuner's oracles as searches use them: what counts, what is learnt, and what a kill leaves."""

import pytest
from keras_tuner.engine.trial import TrialStatus

from vit_keras.pipelines.oracles import MOST_FAILURES, MOST_LOSSES, make_oracle, next_trial, report
from vit_keras.pipelines.search_folder import Record, SearchFolder
from vit_keras.pipelines.space import make_space
from vit_keras.pipelines.tune_config import TUNERS, TuneConfig

SPACE = make_space(
    {
        "override.num_layers": {"int": [1, 4]},
        "override.pooling": {"choice": ["average", "token"]},
        "fit.learning_rate": {"float": [1e-4, 1e-2], "sampling": "log"},
    }
)
GRID = make_space({"override.num_layers": {"int": [1, 3]}, "override.pooling": {"choice": ["average", "token"]}})


def oracle_of(tmp_path, tuner="random", trials=5, space=SPACE):
    folder = SearchFolder(tmp_path)
    folder.trials.mkdir(exist_ok=True)
    oracle = make_oracle(TuneConfig(tuner=tuner, trials=trials), space.hyperparameters(), 9, False)
    oracle.attach(folder, trials)
    return oracle


def end(oracle, trial, status="trained", score=0.5):
    values = dict(trial.hyperparameters.values)
    record = Record(trial.trial_id, status, values, score if status == "trained" else None)
    oracle.folder.keep(record)
    report(oracle, trial, record)
    return values


@pytest.mark.parametrize("tuner", TUNERS)
def test_rejected_and_failed_trials_use_up_no_trained_ones(tmp_path, tuner):
    oracle = oracle_of(tmp_path, tuner, trials=4)
    fates = ["rejected", "failed", "trained"] * 10
    while trial := next_trial(oracle, "alone"):
        end(oracle, trial, fates.pop(0))
    assert oracle.folder.counts() == {"trained": 4, "rejected": 4, "failed": 4}


@pytest.mark.parametrize("tuner", TUNERS)
def test_rejections_end_a_search_at_ten_for_every_trial(tmp_path, tuner):
    oracle = oracle_of(tmp_path, tuner, trials=1)
    while trial := next_trial(oracle, "alone"):
        end(oracle, trial, "rejected")
    assert oracle.folder.counts() == {"rejected": 10}
    assert "10 shapes were rejected" in oracle.stopped()


def test_failures_alone_end_a_search(tmp_path):
    oracle = oracle_of(tmp_path, trials=3)
    while trial := next_trial(oracle, "alone"):
        end(oracle, trial, "failed")
    assert oracle.folder.counts() == {"failed": MOST_FAILURES}


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_killed_search_asks_for_what_it_would_have_asked(tmp_path, tuner):
    """Values are those of a search that nobody killed, and the trial in flight is given out again."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = oracle_of(tmp_path / "whole", tuner, 6, GRID if tuner == "grid" else SPACE)
    expected = [end(whole, next_trial(whole, "alone"), score=i / 10) for i in range(6)]
    seen = []
    for i in range(6):
        oracle = oracle_of(tmp_path / "killed", tuner, 6, GRID if tuner == "grid" else SPACE)
        given = next_trial(oracle, "alone")
        again = oracle_of(tmp_path / "killed", tuner, 6, GRID if tuner == "grid" else SPACE)  # Killed here.
        trial = next_trial(again, "alone")
        assert (trial.trial_id, trial.hyperparameters.values) == (given.trial_id, given.hyperparameters.values)
        seen.append(end(again, trial, score=i / 10))
    if tuner == "bayesian":  # Its random state is not part of keras-tuner's state: the random ones are the same.
        assert seen[:3] == expected[:3] and len({str(v) for v in seen}) == 6
    else:
        assert seen == expected


def test_a_grid_is_tried_whole_once(tmp_path):
    oracle = oracle_of(tmp_path, "grid", 100, GRID)
    seen = []
    while trial := next_trial(oracle, "alone"):
        seen.append(tuple(end(oracle, trial, "rejected" if len(seen) == 2 else "trained").values()))
    assert len(seen) == len(set(seen)) == 6
    assert oracle.stopped() == "the space is exhausted"


def test_bayesian_search_leaves_a_region_that_is_rejected(tmp_path):
    """Nothing above one layer fits. keras-tuner by itself leaves failures out, and proposes the same point again."""
    oracle = oracle_of(tmp_path, "bayesian", trials=12)
    proposals = []
    while len(proposals) < 14:
        trial = next_trial(oracle, "alone")
        layers = trial.hyperparameters.values["override.num_layers"]
        proposals.append(layers)
        end(oracle, trial, "trained" if layers == 1 else "rejected", score=0.8)
    assert proposals[8:].count(1) >= 4, proposals  # One or two of six, were they drawn.


def test_hyperband_promotes_the_best_and_fills_the_place_of_the_rejected(tmp_path):
    oracle = oracle_of(tmp_path, "hyperband", trials=40)
    first, promoted = {}, []
    for i in range(40):
        trial = next_trial(oracle, "alone")
        values = trial.hyperparameters.values
        if values["tuner/bracket"] < 2:
            break
        if values["tuner/round"] == 0 and i % 3 == 0:
            end(oracle, trial, "rejected")
            continue
        if values["tuner/round"] == 0:
            first[trial.trial_id] = i / 100
        elif values["tuner/round"] == 1:
            promoted.append(values["tuner/trial_id"])
            assert (values["tuner/epochs"], values["tuner/initial_epoch"]) == (3, 1)
        end(oracle, trial, score=i / 100)
    assert len(first) == oracle._get_size(2, 0)
    assert set(promoted) == set(sorted(first, key=first.get)[-oracle._get_size(2, 1) :])


def test_no_more_trials_are_in_flight_than_are_wanted(tmp_path):
    oracle = oracle_of(tmp_path, trials=2)
    one, two = (oracle.create_trial(name) for name in ("a", "b"))
    assert oracle.create_trial("c").status == TrialStatus.IDLE
    end(oracle, one)
    assert oracle.create_trial("a").status == TrialStatus.IDLE
    end(oracle, two, "failed")
    third = oracle.create_trial("c")
    assert third.status == TrialStatus.RUNNING and third.trial_id not in (one.trial_id, two.trial_id)
    end(oracle, third)
    assert {oracle.create_trial(name).status for name in "abc"} == {TrialStatus.STOPPED}
    assert not oracle.tuner_ids


def test_the_trial_of_a_dead_worker_goes_to_another_and_fails_after_some(tmp_path):
    oracle = oracle_of(tmp_path, trials=1)
    given = oracle.create_trial("dead")
    assert oracle.give_back("dead") == given.trial_id
    for worker in range(MOST_LOSSES - 1):
        again = oracle.create_trial(f"next {worker}")
        assert again.trial_id == given.trial_id
        oracle.give_back(f"next {worker}")
    assert oracle.folder.record(given.trial_id).status == "failed"
    assert oracle.create_trial("last").trial_id != given.trial_id
    assert oracle.give_back("nobody") is None


def test_the_state_is_whole_or_absent(tmp_path, monkeypatch):
    oracle = oracle_of(tmp_path)
    end(oracle, next_trial(oracle, "alone"))
    before = oracle.folder.oracle_file.read_bytes()
    monkeypatch.setattr("pathlib.Path.write_text", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        oracle.save()
    monkeypatch.undo()
    assert oracle.folder.oracle_file.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"trials", "oracle.json"}
