"""Recipes: configurations that come with the package, each with the result that it was measured to have."""

from pathlib import Path

from vit_keras.messages import nearest

_FOLDER = Path(__file__).parent / "recipes"


def list_recipes() -> dict[str, str]:
    """Returns the names of all recipes, and of each the first line of its head: what it does and reaches."""
    files = sorted(_FOLDER.glob("*.yaml"))
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in files}


def recipe_file(name: str) -> Path:
    """Returns the file of a recipe.

    Raises:
        ValueError: no recipe of that name; the message holds the nearest one.
    """
    known = list_recipes()
    if name not in known:
        raise ValueError(f"Unknown recipe {name!r}.{nearest(name, known)} Known recipes: {', '.join(known)}")
    return _FOLDER / f"{name}.yaml"


def config_file(name: str) -> Path:
    """Returns the file that `--config` names: a path, or a recipe.

    Raises:
        ValueError: a name that is neither a file nor a recipe.
    """
    path = Path(name).expanduser()
    return recipe_file(name) if name == path.stem and not path.is_file() else path
