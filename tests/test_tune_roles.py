"""A search of several processes on loopback: chief and workers, one killed, and a chief that dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras_tuner
import pytest

import vit_keras
from vit_keras.pipelines import tune_roles
from vit_keras.pipelines.oracles import next_trial
from vit_keras.pipelines.search_folder import SearchFolder

SPACE = "override.num_layers: {choice: [1, 2]}\nfit.learning_rate: {float: [1e-3, 8e-3]}\n"
PHONE = "override.num_layers,latency_ms,bytes\n1,5.0,100000\n2,9.0,200000\n"


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(role, address, folder, epochs, log, trials=4):
    """Starts a chief or a worker, as on the command line."""
    words = ["tune", "--role", role, "--oracle", address, "--out", str(folder / "search"), "--trials", str(trials)]
    words += ["--space", str(folder / "space.yaml"), "--measurements", str(folder / "phone.csv"), "--seeds", "0"]
    words += [f"--fit.epochs={epochs}", "--fit.batch_size=128", "--fit.jit=false"]
    words += ["--override", '{"hidden_dim": 24, "num_heads": 2, "mlp_dim": 24}']
    code = (
        "import sys; from vit_keras.pipelines import cli, tune_roles\n"
        "tune_roles.WORKER_SECONDS, tune_roles.CHIEF_SECONDS = 6.0, 6.0\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(vit_keras.__file__).parents[1])}
    with (folder / log).open("w") as file:
        return subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stdout=file, stderr=file)


@pytest.fixture
def processes():
    """What a test has started, and ends with it."""
    started = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def wait_for(found, folder, seconds=300):
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, "\n".join(log.read_text() for log in folder.glob("*.log"))
        time.sleep(0.1)
    return answer


def in_training(search, workers):
    """Returns one of the workers whose trial has ended its first epoch, and the trial; `None` if there is none yet."""
    if not search.oracle_file.exists():
        return None
    held = json.loads(search.oracle_file.read_text())["state"]["ongoing_trials"]
    for worker in workers:
        trial = next((held[name] for name in held if name.endswith(f"-{worker.pid}")), None)
        if trial and (search.trials / trial / ".state/training/state.json").exists():
            return worker, trial
    return None


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "phone.csv").write_text(PHONE)
    return tmp_path


def test_a_chief_and_two_workers_one_of_which_is_killed(folder, processes):
    """Every trial is accounted for: the killed worker's goes to the other."""
    address = free_address()
    chief = start("chief", address, folder, 30, "chief.log", trials=3)
    workers = [start("worker", address, folder, 30, f"worker{i}.log", trials=3) for i in range(2)]
    processes += [chief, *workers]
    search = SearchFolder(folder / "search")
    killed, trial = wait_for(lambda: in_training(search, workers), folder)
    killed.send_signal(signal.SIGKILL)
    assert chief.wait(200) == 0, (folder / "chief.log").read_text()
    other = next(worker for worker in workers if worker is not killed)
    assert other.wait(60) == 0, "\n".join(log.read_text() for log in folder.glob("worker*.log"))
    assert f"-{killed.pid} is silent; trial {trial} goes to another worker" in (folder / "chief.log").read_text()
    records = search.records()
    assert search.counts() == {"trained": 3}
    assert [r.id for r in records] == ["0000", "0001", "0002"]
    assert all(r.worker.endswith(f"-{other.pid}") for r in records)
    assert all(search.trial(r.id).trained for r in records)
    assert not list(search.trials.glob("*/.state"))
    for name in (search.summary_file, search.best_file, search.front_plot):
        assert name.is_file()
    assert {p.name for p in search.tensorboard.iterdir()} == {r.id for r in records}


@pytest.mark.slow
def test_a_worker_of_a_dead_chief_says_so_and_the_search_goes_on(folder, processes):
    address = free_address()
    chief = start("chief", address, folder, 60, "chief.log", trials=1)
    worker = start("worker", address, folder, 60, "worker.log", trials=1)
    processes += [chief, worker]
    trials = folder / "search" / "trials"
    wait_for(lambda: list(trials.glob("*/.state/training/state.json")), folder)
    chief.send_signal(signal.SIGKILL)
    assert worker.wait(60) == 2
    said = (folder / "worker.log").read_text()
    assert f"vit-keras: error: The chief at {address} is gone" in said and "Traceback" not in said
    assert SearchFolder(folder / "search").records() == []
    chief = start("chief", address, folder, 60, "chief2.log", trials=1)
    worker = start("worker", address, folder, 60, "worker2.log", trials=1)
    processes += [chief, worker]
    assert chief.wait(120) == 0, (folder / "chief2.log").read_text()
    assert [r.status for r in SearchFolder(folder / "search").records()] == ["trained"]


class Still:
    """An oracle of one trial that nobody ends."""

    def __init__(self):
        self.trial = keras_tuner.engine.trial.Trial(keras_tuner.HyperParameters(), "0000")
        self.ongoing_trials, self.tuner_ids, self.given, self.over = {}, set(), [], False

    def get_space(self):
        return keras_tuner.HyperParameters()

    def create_trial(self, worker):
        self.tuner_ids.add(worker)
        return self.ongoing_trials.setdefault(worker, self.trial)

    def get_trial(self, trial_id):
        return self.trial

    def give_back(self, worker):
        self.tuner_ids.discard(worker)
        self.given.append(worker)
        self.ongoing_trials.pop(worker)
        return "0000"

    def stopped(self):
        return "over" if self.over else None


def test_a_worker_that_stood_still_learns_that_its_trial_is_gone(monkeypatch):
    """The chief takes the trial of a silent worker back, and refuses its beat afterwards."""
    monkeypatch.setattr(tune_roles, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(tune_roles, "CHIEF_SECONDS", 2.0)
    oracle, address = Still(), free_address()
    client = tune_roles.Client(oracle, address, "sleeper")
    ticks = []

    def tick():
        ticks.append(time.monotonic())
        if len(ticks) == 1:
            assert next_trial(client, "sleeper").trial_id == "0000"
            client.begin()
        if not oracle.given and len(ticks) == 2:
            time.sleep(0.6)
            client.beat("0000")  # It is still the worker's own.
        if oracle.given:
            with pytest.raises(tune_roles.TrialLostError, match="0000 is not with sleeper"):
                client.beat("0000")
            oracle.over = True

    tune_roles.serve(oracle, address, tick, patience=2.0)
    assert oracle.given == ["sleeper"]
    with pytest.raises(ConnectionError, match="is gone"):
        client.ask(lambda: client.get_trial("0000"))


def test_an_address_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="cannot listen"):
            tune_roles.serve(Still(), f"127.0.0.1:{taken.getsockname()[1]}", lambda: None)


def test_a_worker_without_a_chief(monkeypatch):
    monkeypatch.setattr(tune_roles, "FIRST_SECONDS", 1.0)
    with pytest.raises(ConnectionError, match=r"No chief at 127.0.0.1:\d+ in 1 s"):
        tune_roles.Client(Still(), free_address(), "early").wait()
    assert not any(name.startswith("KERASTUNER") for name in os.environ)
