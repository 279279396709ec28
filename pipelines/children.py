"""The parent's side of the child processes that measure and train: one works, and the next one warms up meanwhile."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vit_keras

TICK_SECONDS = 0.5
_TAIL = 2000
"""Characters of what a child said last that are looked through for why it ended."""


class Child:
    """A process that obeys jobs, as `vit_keras.pipelines.trial` does.

    Args:
        backend: Keras's backend there; this process's own if `None`.
    """

    def __init__(self, backend: str | None = None) -> None:
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115
        # It must find the same package, and the modules of a user's function.
        paths = [str(Path(vit_keras.__file__).parents[1]), *(path or str(Path.cwd()) for path in sys.path)]
        variables = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "TF_CPP_MIN_LOG_LEVEL": "3"}
        variables |= {"KERAS_BACKEND": backend} if backend else {}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vit_keras.pipelines.trial"],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # Ctrl+C reaches the search, which ends its children.
        )
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self._said.put(json.loads(line))
        self._said.put(None)

    def send(self, job: dict[str, Any]) -> None:
        """Gives it a job."""
        if self.process.stdin:
            try:
                self.process.stdin.write(json.dumps(job) + "\n")
                self.process.stdin.flush()
            except OSError:  # It has ended; the next `said` tells.
                return

    def said(self, seconds: float) -> dict[str, Any] | None:
        """Returns what it says next, `{}` if that takes longer; `None` if it has ended."""
        try:
            return self._said.get(timeout=seconds)
        except queue.Empty:
            return {}

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """Gives it a job, and returns its answer; of a child that died, one with the status `"failed"`."""
        self.send(job)
        while (said := self.said(TICK_SECONDS)) is not None:
            if "answer" in said:
                return said["answer"]
        return {"status": "failed", "message": self.ending()}

    def ending(self) -> str:
        """Says how a child ended that should not have."""
        code = self.process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace")[-_TAIL:].strip().splitlines()
        why = f": {lines[-1][:300]}" if lines else ""
        if code < 0:
            hint = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-code).name}{hint}"
        return f"its process ended with code {code}{why}"

    def stop(self) -> None:
        """Ends it, whatever it does; what it has written stays for whoever goes on."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self._log):
            try:
                if file:
                    file.close()
            except OSError:  # What was still to be sent has nobody to go to.
                continue


class Children:
    """Gives jobs to child processes, one at a time.

    A child that has trained ends by itself; its successor starts when the training does, so that nobody waits for its
    imports, and no measuring is disturbed by them.
    """

    def __init__(self) -> None:
        self._now: Child | None = None
        self._next: Child | None = None

    def warm_up(self) -> None:
        """Starts a child ahead of its first job."""
        self._now = self._now or Child()

    def do(
        self, job: dict[str, Any], tick: Callable[[dict[str, Any]], None] | None = None, more: bool = True
    ) -> dict[str, Any]:
        """Has a job done, and returns its answer.

        Args:
            job: What `trial.perform` takes.
            tick: Called twice a second with the last stage that the child has reported; what it raises ends the child.
            more: Whether another job is likely to follow.

        Returns:
            The answer; of a child that died, one with the status `"failed"`.
        """
        child = self._now = self._now or Child()
        stage: dict[str, Any] = {}
        try:
            child.send(job)
            while True:
                said = child.said(TICK_SECONDS)
                if said is None:
                    message = child.ending()
                    self._replace()
                    return {**stage, "status": "failed", "message": message}
                if "answer" in said:
                    if said["answer"].get("ends"):
                        child.process.wait()
                        self._replace()
                    return said["answer"]
                if "stage" in said:
                    stage = said
                    if more and self._next is None:
                        self._next = Child()
                if tick:
                    tick(stage)
        except BaseException:
            self._replace()
            raise

    def _replace(self) -> None:
        """Ends the child that worked, and puts the one that has warmed up in its place."""
        if self._now:
            ended, self._now = self._now, self._next
            self._next = None
            ended.stop()

    def close(self) -> None:
        """Ends all of them."""
        for child in (self._now, self._next):
            if child:
                child.stop()
        self._now = self._next = None
