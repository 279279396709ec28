"""The command line's parser: defaults < `--config` < files of sections < flags; errors are one sentence."""

import re
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import jsonargparse

from vit_keras.messages import nearest

from .recipe import config_file
from .run_folder import read_config
from .settings import type_name

_ANSWERS = ("true", "false", "yes", "no", "on", "off", "null")


class Parser(jsonargparse.ArgumentParser):
    """A parser in which flags win over files wherever they stand, and a flag for yes or no may stand alone."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, allow_abbrev=False, exit_on_error=False, **kwargs)

    def parse_args(self, args: Sequence[str], *rest, **kwargs) -> Any:
        """Parses words; the parser of each command is called with those behind the command."""
        return super().parse_args(self._files_first(self._answered(args)), *rest, **kwargs)

    def error(self, message: str, *args, **kwargs) -> None:
        raise ValueError(self._sentence(message))

    def let_flags_stand_alone(self) -> None:
        """Lets `--input.skip_bad` mean `--input.skip_bad true`: jsonargparse wants a value with every bool."""
        for action in self._questions():
            action.nargs, action.const = "?", True

    def _questions(self) -> list[Any]:
        """The flags for yes or no."""
        return [action for action in self._actions if _type_of(action) in (bool, bool | None)]

    def _answered(self, words: Sequence[str]) -> list[str]:
        """Answers each flag that stands alone, or it would take whatever word comes next for its answer."""
        flags = {flag for action in self._questions() for flag in action.option_strings}
        after = [*(word.lower() for word in words[1:]), ""]
        return [
            f"{word}=true" if word in flags and following not in _ANSWERS else word
            for word, following in zip(words, after, strict=False)
        ]

    def _files_first(self, words: Sequence[str]) -> list[str]:
        """Puts `--config FILE` first and then `--fit FILE` and the like, since of two words the later one wins."""
        keys = [action.dest for action in self._actions]
        ranks = {}
        for action in self._actions:
            of_section = any(key.startswith(f"{action.dest}.") for key in keys)
            if isinstance(action, ConfigFile) or of_section:
                ranks |= dict.fromkeys(action.option_strings, int(of_section))
        files, others, left = [], [], list(words)
        while left:
            word = left.pop(0)
            if word in ranks and left and not left[0].startswith("--"):
                word = f"{word}={left.pop(0)}"
            flag, equals, _ = word.partition("=")
            if flag in ranks and equals:
                files.append((ranks[flag], word))
            else:
                others.append(word)
        return [*(word for _, word in sorted(files, key=itemgetter(0))), *others]

    def _sentence(self, message: str) -> str:
        """Says what jsonargparse or argparse has to say in this house's words."""
        unknown = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
        if unknown:
            return self._unknown(unknown[1].split("=")[0])
        command = re.search(r"invalid choice: '(\S*)' \(choose from (.+)\)", message)
        if command:
            known = re.findall(r"\w+", command[2])
            return f"Unknown command {command[1]!r}.{nearest(command[1], known)} Commands: {', '.join(known)}"
        missing = re.search(r'expected "(?:(\w+)\.)?command" to be one of', message)
        if missing:
            parser = _commands(self)[missing[1]] if missing[1] else self
            return f"A command is missing. Commands: {', '.join(_commands(parser))}"
        wrong = re.search(r'^Parser key "([\w.]+)":.*(?:Got|Given) value: (.*)', message, re.DOTALL)
        types = [_type_of(action) for action in self._actions if wrong and action.dest == wrong[1]]
        if wrong and types:
            return f"{wrong[1]} must be of type {type_name(types[0])}. Received: {wrong[1]}={wrong[2].strip()}"
        return message

    def _unknown(self, word: str) -> str:
        command = self.prog.replace(" [options]", "")
        if not word.startswith("-"):
            return f"{command} takes no such argument. Received: {word!r}"
        flags = [flag for action in self._actions for flag in action.option_strings]
        return f"Unknown flag {word!r} of {command}.{nearest(word, flags)}"


class ConfigFile(jsonargparse.ActionConfigFile):
    """Takes settings from a file, or the recipe of a name. Checks them first: jsonargparse's errors name no file."""

    def __call__(self, parser, cfg, values, option_string=None) -> None:
        file = config_file(values)
        read_config(file)
        super().__call__(parser, cfg, str(file), option_string)


def _type_of(action: Any) -> Any:
    return getattr(action, "_typehint", None)


def _commands(parser: jsonargparse.ArgumentParser) -> dict[str, jsonargparse.ArgumentParser]:
    return next((action.choices for action in parser._actions if action.dest == "command"), {})
