"""A search on several machines: a chief that holds keras-tuner's oracle, and workers that ask it over gRPC.

The service is keras-tuner's own (`keras_tuner.distribute`). What is added is what its chief and client lack: a chief
that takes the trial of a silent worker back, and a worker that does not wait an hour for a chief that is gone.
"""

import collections
import logging
import os
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.distribute.oracle_client import OracleClient

from .search_folder import Record
from .tune_config import split_address

logger = logging.getLogger(__name__)

WORKER_SECONDS = 20.0
"""A worker that was silent for so long is taken to be dead."""
CHIEF_SECONDS = 30.0
"""A chief that does not answer for so long is taken to be dead."""
FIRST_SECONDS = 180.0
"""Time that a worker waits for a chief that is not there yet: it imports and measures before it listens."""
BEAT_SECONDS = 2.0
_WORKER = "worker"
"""Name of the metadata that say who asks."""


class TrialLostError(Exception):
    """The chief has given this trial to another worker."""


# The chief


class _Servicer(OracleServicer):
    """keras-tuner's service, which also notes who was heard of when, and refuses who has lost a trial."""

    def __init__(self, oracle: Any) -> None:
        super().__init__(oracle)
        self.heard: dict[str, float] = {}

    def CreateTrial(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's names)
        self.heard[request.tuner_id] = time.monotonic()
        return super().CreateTrial(request, context)

    def GetTrial(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(request.trial_id, context)
        return super().GetTrial(request, context)

    def UpdateTrial(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(request.trial_id, context)
        return super().UpdateTrial(request, context)

    def EndTrial(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(request.trial.trial_id, context)
        return super().EndTrial(request, context)

    def _check(self, trial_id: str, context: Any) -> None:
        worker = dict(context.invocation_metadata()).get(_WORKER, "")
        self.heard[worker] = time.monotonic()
        held = self.oracle.ongoing_trials.get(worker)
        if held is None or held.trial_id != trial_id:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"trial {trial_id} is not with {worker}")

    def silent(self, seconds: float) -> list[str]:
        """Returns the workers that were not heard of for so long."""
        known = {*self.oracle.tuner_ids, *self.oracle.ongoing_trials}
        now = time.monotonic()
        return [worker for worker in known if now - self.heard.setdefault(worker, now) > seconds]


def serve(oracle: Any, address: str, tick: Callable[[], None], patience: float | None = None) -> None:
    """Gives out an oracle's trials until it has no more and all that were given out have ended.

    Args:
        oracle: One of `oracles`.
        address: HOST:PORT to listen on.
        tick: Called about twice a second.
        patience: Seconds after which a silent worker's trial is given to another; `WORKER_SECONDS` if `None`.

    Raises:
        OSError: the address cannot be listened on.
    """
    host, port = split_address(address)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)])
    servicer = _Servicer(oracle)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise OSError(f"The chief cannot listen on {address}; is the port taken?")
    server.start()
    try:
        while not (oracle.stopped() and not oracle.ongoing_trials and not oracle.tuner_ids):
            for worker in servicer.silent(patience or WORKER_SECONDS):
                trial_id = oracle.give_back(worker)
                if trial_id:
                    logger.warning("%s is silent; trial %s goes to another worker.", worker, trial_id)
            tick()
            time.sleep(0.5)
    finally:
        server.stop(grace=1).wait()


# A worker

_Fields = collections.namedtuple("_Fields", ("method", "timeout", "metadata", "credentials", "wait_for_ready"))


class _Details(_Fields, grpc.ClientCallDetails):
    """How a call is made."""


class _Calls(grpc.UnaryUnaryClientInterceptor):
    """Gives every call a short time limit and the worker's name."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self.seconds = FIRST_SECONDS

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        details = client_call_details
        metadata = [*(details.metadata or ()), (_WORKER, self._worker)]
        changed = _Details(details.method, self.seconds, metadata, details.credentials, True)
        return continuation(changed, request)


class Client(OracleClient):
    """keras-tuner's client, with an end to its waiting.

    Args:
        oracle: The worker's own copy of the oracle, which is asked for settings only.
        address: HOST:PORT of the chief.
        worker: Name of this worker.
    """

    def __init__(self, oracle: Any, address: str, worker: str) -> None:
        host, port = split_address(address)
        names = {"KERASTUNER_ORACLE_IP": host, "KERASTUNER_ORACLE_PORT": str(port), "KERASTUNER_TUNER_ID": worker}
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(names)  # keras-tuner's client reads them, and nothing else shall.
        try:
            super().__init__(oracle)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self._calls = _Calls(worker)
        channel = grpc.intercept_channel(grpc.insecure_channel(address), self._calls)
        self.stub = protos.get_service_grpc().OracleStub(channel)
        self.address = address
        self._answered = self._asked = time.monotonic()

    def wait(self) -> None:
        """Waits until the chief is there.

        Raises:
            ConnectionError: it does not come.
        """
        try:
            self.get_space()
        except grpc.RpcError as error:
            raise ConnectionError(f"No chief at {self.address} in {FIRST_SECONDS:g} s.") from error
        self._calls.seconds = CHIEF_SECONDS

    def ask(self, question: Callable[[], Any]) -> Any:
        """Calls the chief.

        Raises:
            ConnectionError: it is gone.
            TrialLostError: the trial was given to another worker.
        """
        try:
            return question()
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:  # type: ignore
                raise TrialLostError(error.details()) from error  # type: ignore
            raise ConnectionError(
                f"The chief at {self.address} is gone. Start it again with the same command, and then this worker: "
                "what was trained is kept, and the trial that was being trained goes on."
            ) from error

    def begin(self) -> None:
        """Counts the chief's silence from now on."""
        self._answered = time.monotonic()

    def beat(self, trial_id: str) -> None:
        """Tells the chief now and then that a trial is still being worked on.

        Raises:
            ConnectionError: the chief has not answered for `CHIEF_SECONDS`.
            TrialLostError: the trial was given to another worker.
        """
        if time.monotonic() - self._asked < BEAT_SECONDS:
            return
        self._calls.seconds = BEAT_SECONDS
        try:
            self.ask(lambda: self.get_trial(trial_id))
            self._answered = time.monotonic()
        except ConnectionError:
            if time.monotonic() - self._answered > CHIEF_SECONDS:
                raise
        finally:
            self._asked = time.monotonic()
            self._calls.seconds = CHIEF_SECONDS


def work(client: Client, worker: str, run: Callable[[Any, Callable[..., None]], Record], tick: Callable[..., None]):
    """Runs the chief's trials until it has no more.

    Args:
        client: The way to the chief.
        worker: Name of this worker.
        run: Runs a trial and returns its record; calls what it is given twice a second.
        tick: Called as often, with the stage of the trial.

    Raises:
        ConnectionError: the chief is gone.
    """
    from .oracles import next_trial, report

    client.wait()
    while True:
        trial = client.ask(lambda: next_trial(client, worker))
        if trial is None:
            return
        client.begin()

        def beat(stage: dict[str, Any], held: Any = trial) -> None:
            client.beat(held.trial_id)
            tick(held, stage)

        try:
            record = run(trial, beat)
            client.ask(lambda held=trial, ended=record: report(client, held, ended))
        except TrialLostError as error:
            logger.warning("%s", error)
