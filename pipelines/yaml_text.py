"""YAML as the command line reads it, for all files: 1e-3 is a number, which PyYAML alone takes for text."""

import re
from typing import Any

import jsonargparse
import yaml


class _Dumper(yaml.SafeDumper):
    """Writes quotation marks round a text that `read_yaml` would take for a number, such as a folder called 1e3."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[\d_]*\.?[\d_]*([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """Returns what a YAML text says, read as `--config` is.

    Raises:
        yaml.YAMLError: the text is no YAML.
    """
    return jsonargparse.get_loader("yaml")(text)


def write_yaml(values: Any) -> str:
    """Returns dictionaries, lists and plain values as a YAML text, from which `read_yaml` gives them back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
