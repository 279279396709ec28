"""Processes that compute in turns, each in the environment it needs, and what they cost."""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SAMPLING_SECONDS = 0.02
ENDING_SECONDS = 20


class Worker:
    """A process that answers in lines of JSON, the first one unasked.

    Args:
        command: The program, whose side of it is `obey`, and its arguments.
        environment: Variables beside our own; `None` removes one.
        log: File that takes what the process prints to standard error; nothing if `None`.
        freeze: Whether the process and its children stand still between two answers; for those that would go on
            filling their buffers while others are measured.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str | None] | None = None,
        log: Path | None = None,
        freeze: bool = False,
    ) -> None:
        variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", **(environment or {})}
        variables = {name: value for name, value in variables.items() if value is not None}
        with open(log or os.devnull, "w") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            self.process = subprocess.Popen(command, env=variables, text=True, start_new_session=freeze, **pipes)
        self._freeze = freeze

    def answer(self, request: float | None = None) -> dict:
        """Returns the worker's next report; with a `request`, has it compute that much first."""
        if request is not None:
            self._signal(signal.SIGCONT)
            try:
                print(request, file=self.process.stdin, flush=True)
            except BrokenPipeError:
                return {"error": "the process died"}
        line = self.process.stdout.readline()
        self._signal(signal.SIGSTOP)
        return json.loads(line or '{"error": "the process died"}')

    def stop(self) -> None:
        self._signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(ENDING_SECONDS if self._freeze else None)
        except subprocess.TimeoutExpired:  # Its children keep it from ending.
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        """Reaches the process and its children, if it is one that freezes."""
        if self._freeze:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def obey(reports: Iterable[dict]) -> None:
    """Runs as a worker: reports go to standard output, and what libraries print there does not."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for report in reports:
            print(json.dumps(report), file=pipe, flush=True)
    except Exception:
        text = traceback.format_exc().strip()
        print(text, file=sys.stderr, flush=True)
        print(json.dumps({"error": text.splitlines()[-1]}), file=pipe, flush=True)


def take_turns(workers: Mapping[str, Worker], rounds: int, request: float) -> Iterator[tuple[str, dict]]:
    """Lets workers compute one after the other, A B C, B C A, C A B, and yields each name and answer."""
    names = list(workers)
    for i in range(rounds if names else 0):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            yield name, workers[name].answer(request)


def memory_mb(field: str = "VmHWM") -> int:
    """Returns this process's resident memory, at its peak (`"VmHWM"`) or now (`"VmRSS"`), in MB of 2^20 bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) // 1024


@contextmanager
def watched_memory(pid: int) -> Iterator[list[int]]:
    """While it lasts, samples the resident memory of a process and its descendants; yields `[peak in MB]`."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], _tree_bytes(pid) // 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _tree_bytes(pid: int, parent_command: bytes = b"") -> int:
    """Returns the sum of the proportional resident sets: of pages that two processes share, each has half.

    A child that has its parent's command line is about to start another program, and its memory still its parent's.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        kilobytes = int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
        listed = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except (OSError, IndexError):  # It ended meanwhile.
        return 0
    own = 0 if command == parent_command else kilobytes * 1024
    return own + sum(_tree_bytes(int(child), command) for children in listed for child in children)


def table(*lines: Sequence[str]) -> str:
    """Returns a Markdown table; the first line is its head."""
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]) + "\n"
