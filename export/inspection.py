"""Looking at a TensorFlow Lite file that may be hostile: in a child process, with bounds on memory and time.

`python -m vit_keras.export.inspection read|run FILE THREADS` prints one line of JSON: `{"file": …}` for `read`,
`{"run": …}` for `run`, `{"error": …}` where the file is refused. LiteRT trusts the files that it loads, and a damaged
one may end the process: the parent says so, and lives on.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .flatbuffer import FileInfo, printable, read_file

READ_SECONDS = 60.0
RUN_SECONDS = 300.0
ADDRESS_SPACE = 4 * 2**30
"""Bytes of address space that a child may use besides 16 times the file's size."""


MOST_THREADS = 64
"""Threads of an interpreter: with many thousands, LiteRT ends the process."""


def check_threads(threads: int, name: str = "threads") -> None:
    """Refuses a number of threads that an interpreter cannot have.

    Args:
        threads: The number.
        name: What it is called, for the error.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"{name} must be 1 to {MOST_THREADS}. Received: {name}={threads}")


def all_threads() -> int:
    """Returns as many threads as there are cores, or as an interpreter can have."""
    return min(os.cpu_count() or 1, MOST_THREADS)


@dataclass(frozen=True)
class Run:
    """One run of a file in a process of its own.

    Attributes:
        memory: Peak of resident memory in bytes beyond that of a process with the interpreter's library and no file.
            It holds the file's own pages as far as they were read. 0 where the system does not tell.
    """

    memory: int


def inspect_file(path: str | Path, seconds: float = READ_SECONDS) -> FileInfo:
    """Reads what a file is made of, in a child process. Runs nothing of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no TensorFlow Lite file, or too large to be read within the bounds.
    """
    return FileInfo.from_json(_child("read", path, 1, seconds)["file"])


def try_file(path: str | Path, threads: int = 1, seconds: float = RUN_SECONDS) -> Run:
    """Reads a file, loads it in LiteRT and runs it once on zeros, in a child process.

    Files from elsewhere are given to this before they are loaded in the process that matters.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `threads` outside 1 to 64, or the file is damaged, cannot be run, ended the process, or passed the
            bounds on memory or time.
    """
    check_threads(threads)
    return Run(**_child("run", path, threads, seconds)["run"])


def _child(task: str, path: str | Path, threads: int, seconds: float) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No TensorFlow Lite file at {path}.")
    # -P: a file from elsewhere may lie beside modules from elsewhere, and their folder be the one that we are in.
    command = [sys.executable, "-P", "-m", "vit_keras.export.inspection", task, str(path), str(threads)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        result = subprocess.run(command, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path} could not be {_PAST[task]} within {seconds:g} s; it may be damaged.") from None
    answer = _answer(result.stdout)
    if answer is None:
        why = result.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(
            f"{path} is damaged, or needs more memory than there is: the process that {_PAST[task]} it ended with "
            f"{ending(result.returncode)}{': ' + printable(why[-1])[:300] if why else ''}"
        )
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer


_PAST = {"read": "read", "run": "run"}


def _answer(output: bytes) -> dict[str, Any] | None:
    lines = output.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and len(answer) == 1 else None


def ending(code: int) -> str:
    """Says how a child process has ended, by the code that Python gives of it: "SIGKILL" or "code 1"."""
    try:
        return signal.Signals(-code).name if code < 0 else f"code {code}"
    except ValueError:
        return f"signal {-code}"


# In the child


def main(task: str, path: str, threads: int) -> dict[str, Any]:
    """Does a task and returns what is to be printed."""
    _limit_memory(ADDRESS_SPACE + 16 * Path(path).stat().st_size)
    try:
        info = read_file(path)
        return {"file": dataclasses.asdict(info)} if task == "read" else {"run": {"memory": _run(path, threads)}}
    except MemoryError:
        return {"error": f"{path} needs more memory than {ADDRESS_SPACE:,} bytes and 16 times its size."}
    except ValueError as error:
        return {"error": str(error)}


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such bound.
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run(path: str, threads: int) -> int:
    from ai_edge_litert.interpreter import Interpreter

    before = _start_measuring()
    try:
        interpreter = Interpreter(path, num_threads=threads)
        interpreter.allocate_tensors()
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        message = printable(" ".join(str(error).split()))[:500]
        raise ValueError(f"{path} is not a TensorFlow Lite model that can be run here: {message}") from None
    return max(_resident("VmHWM") - before, 0)


def _start_measuring() -> int:
    """Lets the peak of resident memory start anew, where the system can, and returns what is resident now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _resident("VmHWM")
    return _resident("VmRSS")


def _resident(field: str) -> int:
    """Returns this process's resident memory in bytes, from Linux's status file; elsewhere the peak.

    Linux has the peak in `getrusage` too, but hands it on from the parent, which may be large.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
