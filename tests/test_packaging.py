"""What is installed, what may import what, and that the tree is clean."""

import ast
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
import venv
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = {"vit_keras": "vit_keras", "vit_keras.export": "export", "vit_keras.pipelines": "pipelines"}
"""Import name to folder in the tree."""
SCRIPTS = "standalone"
"""Folder of scripts that are copied to where they run and import nothing of ours."""
SYMLINKS = {"vit_keras/export": "../export", "vit_keras/pipelines": "../pipelines"}

needs_symlinks = pytest.mark.skipif(
    any((ROOT / link).is_file() for link in SYMLINKS), reason="this checkout has symlinks as text files"
)


@pytest.fixture(scope="module")
def declared() -> dict:
    """The arguments that setup.py gives to `setup`."""
    given = {}
    real = sys.modules.get("setuptools")
    sys.modules["setuptools"] = types.SimpleNamespace(setup=given.update)  # type: ignore
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        del sys.modules["setuptools"]
        if real:
            sys.modules["setuptools"] = real
    return given


@pytest.fixture(scope="module")
def files() -> list[str]:
    """What git tracks, or would if it were added: paths from the root."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted({name for name in listed.split("\0") if os.path.lexists(ROOT / name) and name})


def sources(folder: str) -> list[Path]:
    """Returns the Python files below a folder of the tree, without those behind its symlinks and the scripts that are
    data of the package."""
    found = []
    for path, folders, names in os.walk(ROOT / folder):
        folders[:] = [
            name for name in folders if not (Path(path) / name).is_symlink() and name not in ("__pycache__", SCRIPTS)
        ]
        found += [Path(path) / name for name in names if name.endswith(".py")]
    return sorted(found)


def imports(file: Path, module_level: bool = False) -> Iterator[str]:
    """Yields the first part of every module that a file imports by an absolute name.

    Args:
        file: A Python file.
        module_level: Whether to leave out what only functions and type checkers import.
    """

    def runs_later(node: ast.AST) -> bool:
        if isinstance(node, ast.If):
            return ast.unparse(node.test).endswith("TYPE_CHECKING")
        return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]
        elif module_level and runs_later(node):
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(file.read_text(encoding="utf-8")))


def python(code: str, *arguments: str) -> str:
    """Runs code in a fresh interpreter and returns what it prints."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


# The list of packages


def test_packages_match_the_tree(declared):
    expected = {}
    for package, folder in FOLDERS.items():
        for file in sources(folder):
            parts = file.parent.relative_to(ROOT / folder).parts
            expected[".".join((package, *parts))] = file.parent
    assert sorted(declared["packages"]) == sorted(expected)
    for package, folder in expected.items():
        assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)} holds Python files but no __init__.py"
        # As setuptools does: the nearest parent in package_dir, and the rest of the name below it.
        parent = package
        while parent not in declared["package_dir"]:
            parent = parent.rpartition(".")[0]
        below = package[len(parent) :].strip(".").replace(".", "/")
        assert ROOT / declared["package_dir"][parent] / below == folder


def test_version_is_the_package_s(declared):
    assert declared["version"] == python("import vit_keras; print(vit_keras.__version__)").strip()
    assert f"## {declared['version']} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@needs_symlinks
@pytest.mark.parametrize("link", SYMLINKS)
def test_symlinks_are_relative(link):
    assert Path(ROOT / link).readlink().as_posix() == SYMLINKS[link]
    assert (ROOT / link / "__init__.py").is_file()


def test_every_requirement_has_a_lower_bound(declared):
    lines = [*declared["install_requires"], *(line for extra in declared["extras_require"].values() for line in extra)]
    requirements = [Requirement(line) for line in lines]
    assert len(declared["install_requires"]) > 3
    for requirement in requirements:
        assert any(part.operator in (">=", "==", "~=") for part in requirement.specifier), str(requirement)


def test_constraints_pin_what_is_required(declared):
    file = ROOT / "constraints.txt"
    if not file.exists():
        pytest.skip("constraints.txt is not there yet; `make constraints` writes it")
    pins = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.+!]+", line), line
        name, _, version = line.partition("==")
        pins[canonicalize_name(name)] = version
    for line in [*declared["install_requires"], *declared["extras_require"]["test"]]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt has no {name}"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{line}, but {name}=={pins[name]}"


def test_wheel_holds_the_package_and_nothing_else(declared, files, tmp_path):
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("setuptools is not installed")
    if not importlib.util.find_spec("wheel") and not importlib.util.find_spec("setuptools.command.bdist_wheel"):
        pytest.skip("wheel is not installed, and setuptools is too old to build one without it")
    tree = tmp_path / "tree"
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    fetched = tree / "export" / "web" / "vendor" / "litert.js"  # Where `make web` has been called.
    fetched.parent.mkdir()
    fetched.write_text("")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*command, "-w", str(tmp_path), "."], cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = Counter(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "vit-keras = vit_keras.pipelines.cli:main" in archive.read(entry_points).decode()

    expected = set()
    for package, folder in FOLDERS.items():
        inside = [name for name in files if name.startswith(f"{folder}/") and name not in SYMLINKS]
        expected |= {package.replace(".", "/") + name.removeprefix(folder) for name in inside}
    expected.add("vit_keras/export/web/vendor/litert.js")
    assert {"vit_keras/py.typed", "vit_keras/export/__init__.py", "vit_keras/pipelines/cli.py"} <= expected
    information = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert set(names) - information == expected
    assert set(names.values()) == {1}
    assert any(name.endswith("/LICENSE") for name in information)


# Who imports what


def test_folders_import_each_other_by_full_names():
    for file in [*sources("export"), *sources("pipelines")]:
        assert not {"export", "pipelines"} & set(imports(file)), file


def test_models_import_keras_and_numpy_only():
    """And what Keras brings along; huggingface_hub, an extra, only in the function that needs it."""
    needed_by_keras = {"h5py", "ml_dtypes"}
    assert {name.replace("_", "-") for name in needed_by_keras} <= {
        Requirement(line).name.replace("_", "-") for line in metadata.requires("keras") or []
    }
    for file in sources("vit_keras"):
        needed = set(imports(file, module_level=True)) - set(sys.stdlib_module_names)
        assert needed <= {"keras", "numpy", "vit_keras", *needed_by_keras}, file
        assert set(imports(file)) - set(sys.stdlib_module_names) - needed <= {"huggingface_hub"}, file


def test_training_is_keras_only():
    assert "tensorflow" not in set(imports(ROOT / "pipelines" / "training.py"))


@pytest.mark.parametrize("module", ["vit_keras", "vit_keras.pipelines.config", "vit_keras.pipelines.cli"])
def test_import_loads_no_keras(module):
    code = f"import sys, {module}; print(sorted({{'keras', 'tensorflow'}} & set(sys.modules)))"
    assert python(code).strip() == "[]"


def test_command_line_imports_tensorflow_late():
    for name in ("config.py", "cli.py"):
        found = set(imports(ROOT / "pipelines" / name, module_level=True))
        assert not {"tensorflow", "keras"} & found, name


OPTIONAL = {
    "PIL",
    "ai_edge_litert",
    "ai_edge_quantizer",
    "jsonargparse",
    "keras_tuner",
    "matplotlib",
    "sklearn",
    "tensorflow_datasets",
    "yaml",
}
"""Modules that `vit_keras.models` must do without, whatever Keras or the backend may come to need."""

WITHOUT = """
import builtins, importlib, sys

blocked = set(sys.argv[1].split(","))

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked", name=name)

real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.split(".")[0] == "vit_keras" and not level and name.split(".")[0] == "rich":
        raise ImportError(f"{importer} imports rich, which is there for Keras's sake only")
    return real(name, globals, locals, fromlist, level)

sys.meta_path.insert(0, Blocker())
builtins.__import__ = guarded
for module in ("models", "layers", "heads", "registry", "distillation", "explain", "loading"):
    importlib.import_module(f"vit_keras.{module}")
import numpy, vit_keras
model = vit_keras.create_model("vit_micro_patch2_8", 3, num_layers=1)
print(vit_keras.explain.rollout_maps(model, numpy.zeros((1, 8, 8, 3))).shape)
"""


def closure(name: str, found: set[str]) -> set[str]:
    """Adds a distribution and all that it requires to `found`, by their normalised names."""
    name = canonicalize_name(name)
    if name in found:
        return found
    found.add(name)
    try:
        requirements = [Requirement(line) for line in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return found
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, found)
    return found


def test_models_work_with_keras_numpy_and_a_backend_alone():
    allowed = {"vit-keras-edge"}
    for name in ("keras", "numpy", os.environ.get("KERAS_BACKEND", "tensorflow")):
        closure(name, allowed)
    owners = {
        module: {canonicalize_name(n) for n in names} for module, names in metadata.packages_distributions().items()
    }
    blocked = {module for module, names in owners.items() if not names & allowed}
    printed = python(WITHOUT, ",".join(sorted(blocked | OPTIONAL)))
    assert printed.splitlines()[-1] == "(1, 4, 4)"


@needs_symlinks  # Import-linter reads the tree, not what is installed.
def test_import_contract_is_kept():
    code = "from importlinter.cli import lint_imports_command as c; c(['--config', 'pyproject.toml', '--no-cache'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr


# The tree is clean


@needs_symlinks  # Without them, ruff takes vit_keras.export for somebody else's and wants it sorted elsewhere.
@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff_is_content(arguments):
    result = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_pyright_is_content(tmp_path):
    pyright = [sys.executable, "-m", "pyright"]
    started = subprocess.run([*pyright, "--version"], cwd=ROOT, capture_output=True, text=True)
    if started.returncode or not re.search(r"pyright \d", started.stdout):
        pytest.skip("pyright does not start: it fetches its own program, and node, from the network")
    # An interpreter without packages, as pyproject.toml allows for: with them, the result would hang on whether an
    # environment is active.
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    assert bare.exists()
    command = [*pyright, "--outputjson", "--pythonpath", str(bare)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(result.stdout[result.stdout.index("{") :])
    shown = [f"{x['file']}:{x['range']['start']['line'] + 1}: {x['message']}" for x in found["generalDiagnostics"]]
    assert result.returncode == 0, "\n".join(shown)
    assert found["summary"]["filesAnalyzed"] >= 30


def test_no_file_names_somebody_s_folder(files):
    machine = re.compile(r"(?<![\w.~}-])/(?:work|home|root|Users)/")
    for name in files:
        if (ROOT / name).is_symlink():
            continue
        content = (ROOT / name).read_bytes()
        if b"\0" in content:
            continue
        lines = content.decode("utf-8", "replace").splitlines()
        found = [f"{name}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if machine.search(line)]
        assert not found, "\n".join(found)
