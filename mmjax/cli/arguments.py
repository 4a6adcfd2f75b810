"""Command lines: a command's own flags by argparse, `--config...` by ml_collections.config_flags."""

import argparse
import ast
import re
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import NoneType

import ml_collections
from absl import flags
from ml_collections import config_flags

from mmjax.training.structure import ConfigError, choices

_CONFIG_FLAG = re.compile(r"--?(no)?config([.=]|$)")


def make_parser(command: str, summary: str, config: bool = False) -> argparse.ArgumentParser:
    """A parser of the flags of `mmjax <command>`; with `config`, its help shows the config flags."""
    parser = argparse.ArgumentParser(prog=f"mmjax {command}", description=summary, allow_abbrev=False)
    if config:
        parser.add_argument("--config", metavar="FILE.py[:ARG]",
                            help="config file, ARG is passed to its get_config; --config.a.b=VALUE overrides a field")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; `.config` becomes a locked ConfigDict, or None if `--config` is absent.

    Raises:
        ConfigError: for an unknown flag, and for all that `load_config` refuses.
    """
    config_args, own_args = split_config(argv)
    args, unknown = parser.parse_known_args(own_args)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
        name = unknown[0].partition("=")[0]
        raise ConfigError(f"{parser.prog} has no flag {name!r}; {choices(name, known)}")
    args.config = load_config(config_args) if config_args else None
    return args


def split_config(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the `--config...` flags, all else). One without '=' takes the argument after it, unless that is a flag."""
    config, others, is_open = [], [], False
    for arg in argv:
        if is_open and not arg.startswith("--"):
            config[-1] += f"={arg}"
            is_open = False
        elif _CONFIG_FLAG.match(arg):
            config.append(arg)
            is_open = "=" not in arg
        else:
            others.append(arg)
            is_open = False
    return config, others


def load_config(args: Sequence[str]) -> ml_collections.ConfigDict:
    """Reads `--config=file.py[:arg]` and applies the overrides `--config.a.b=value`.

    Fields that the file leaves to their defaults can be overridden, too. Whether a field exists is therefore seen
    when the config is resolved.

    Raises:
        ConfigError: if the file does not exist or fails, or the value of an override does not fit.
    """
    name, _, value = args[0].partition("=")
    if name.lstrip("-") != "config" or not value:
        raise ConfigError(f"{args[0]} stands where --config=FILE.py should; name the file before its overrides")
    path = Path(value.split(":", 1)[0])
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}; {choices(path, map(str, path.parent.glob('*.py')))}")
    config = _read(path, value.split(":", 1)[1:])
    _add_parents(config, args[1:])
    values, argv = flags.FlagValues(), ["mmjax", *args[1:]]
    try:
        config_flags.DEFINE_config_dict("config", config, lock_config=False, accept_new_attributes=True,
                                        flag_values=values, sys_argv=argv)
        values(argv)
    except flags.Error as error:
        raise ConfigError(f"the override does not fit: {error}") from error
    except (AttributeError, KeyError) as error:
        raise ConfigError(f"{' '.join(args[1:])}: cannot override {_one_line(error)} (in an item of a tuple only what "
                          "the file mentions can be)") from error
    return values.config.lock()


def _read(path: Path, arg: Sequence[str]) -> ml_collections.ConfigDict:
    """What `get_config(*arg)` of the file returns."""
    try:
        config = runpy.run_path(str(path))["get_config"](*arg)
    except Exception as error:          # whatever the code of the file does
        raise ConfigError(_place_in(path, error)) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{path}: get_config must return a ConfigDict, not a {type(config).__name__}")
    return config


def _place_in(path: Path, error: BaseException) -> str:
    """'file:line: error', with the last line of the config file that took part."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f":{frame.lineno}" for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f"{path}{lines[-1] if lines else ''}: {type(error).__name__}: {error}"


def _add_parents(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Adds an empty ConfigDict for every `a` of an override `--config.a.b=...` that the file does not mention."""
    for override in overrides:
        node = config
        for name in override.partition("=")[0].split(".")[1:-1]:
            if not isinstance(node, ml_collections.ConfigDict) or not name.isidentifier():
                break                   # an item of a tuple, say; config_flags finds it, or says what is wrong
            if name not in node:
                node[name] = ml_collections.ConfigDict()
            node = node[name]


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


class _LiteralParser(flags.ArgumentParser):
    """For a field that is None until overridden: a Python literal, else the text itself."""

    def parse(self, argument):
        try:
            return ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            return argument


config_flags.register_flag_parser_for_type(NoneType, _LiteralParser())
