"""Every notebook runs from top to bottom, and is committed without outputs."""

import ast
import os
import re
import shlex
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from vit_keras.pipelines import cli

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SECONDS_PER_CELL = 300

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


class ThisInterpreter(KernelSpecManager):
    """Gives the interpreter of the tests as kernel, whatever kernels the machine has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Runs a notebook in an empty folder and returns it with its outputs; raises where a cell does."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisInterpreter()),
        timeout=SECONDS_PER_CELL,
        resources={"metadata": {"path": str(folder)}},
    )
    inline = "module://matplotlib_inline.backend_inline"
    return client.execute(env={**os.environ, "MPLBACKEND": inline})


def printed(notebook: nbformat.NotebookNode) -> str:
    """Returns what the cells have printed."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
def test_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@notebooks
def test_commands_in_the_text_exist(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for line in re.findall(r"^vit-keras .+$", text, re.MULTILINE):
        cli.build_parser()[0].parse_args(shlex.split(line)[1:])


@notebooks
def test_notebook_runs(path, tmp_path):
    notebook = executed(path, tmp_path)
    assert list(tmp_path.iterdir()) == []
    if path.stem == "01_quickstart":
        check_quickstart(notebook)
    if path.stem == "02_what_vit_sees":
        check_what_vit_sees(notebook)


def check_quickstart(notebook: nbformat.NotebookNode) -> None:
    """Checks the table of proofs, by its heading's words, and that the maps are shown."""
    lines = printed(notebook).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("kind ") and "agreement" in line)
    heading = re.split(r"\s{2,}", lines[start])
    rows = {row[0]: row for row in (re.split(r"\s{2,}", line.strip()) for line in lines[start + 1 : start + 3])}
    assert set(rows) == {"float32", "static_int8"}
    assert float(rows["float32"][heading.index("agreement")]) == 1.0
    assert float(rows["static_int8"][heading.index("agreement")]) > 0.9
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def check_what_vit_sees(notebook: nbformat.NotebookNode) -> None:
    """Checks what the text concludes: every sentence with a number behind it."""
    text = printed(notebook)
    assert float(re.search(r"test accuracy ([\d.]+)", text)[1]) > 0.8
    near, far = map(
        float, re.search(r"positions of neighbours ([\d.]+), of opposite corners (-?[\d.]+)", text).groups()
    )
    assert near > far
    before, after = map(float, re.search(r"same digit: ([\d.]+)% before training, ([\d.]+)% after", text).groups())
    assert after > before + 10
    curves = ast.literal_eval(re.search(r"\{'drop_random'.*\}", text)[0])
    assert curves["drop_salient"][3] < curves["drop_random"][3] < curves["drop_non_salient"][3]
    assert curves["shuffle"][1] < curves["shuffle"][0] - 0.2
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 8
