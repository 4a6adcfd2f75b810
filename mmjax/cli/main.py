"""Finds the sub-command, and turns what a user can correct into one message."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

COMMANDS = {
    "train": "train the stages of a config, evaluate, and show what was learned",
    "evaluate": "evaluate a finished run",
    "generate": "let a trained model continue images and text",
    "config": "print a config with every default filled in",
    "params": "print the parameters of a config: shapes, shardings, what trains",
    "plan": "say what a config will need on a machine that is not at hand: memory, time, network",
    "convert": "published weights: read, write, and compare with the reference implementation",
    "launch": "run `mmjax train` as several processes of this machine",
    "data": "look at data, count it, verify it, time it",
    "doctor": "check this machine: versions, devices, extras, disk space, a small computation",
}
ALONE = ("evaluate", "generate")            # commands that would write the same files from every process
USAGE, FAILED, INTERRUPTED = 2, 1, 130      # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `mmjax <command> ...`.

    Args:
        argv: the arguments after the program's name; those of this process by default.

    Returns:
        The exit code: 0, 1 after an error, 2 if the command line or the config is wrong, 130 if interrupted.
        An error is one message on stderr. The traceback comes with `--debug`, or if the error is a slip of our own.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else USAGE
    if argv[0] == "--version":
        from mmjax import __version__
        print(f"mmjax {__version__}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(COMMANDS)}"
        return _report(f"unknown command {command!r}; {hint}", USAGE)
    try:
        return _run(command, rest)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    except BrokenPipeError:                 # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = _exit_code(error)
        if debug or code is None:
            traceback.print_exc()
        if command == "train":
            from mmjax.parallel import processes
            processes.fail(error, _text(error), code or FAILED)     # does not return where there are others
        return _report(_text(error), code or FAILED)


def _run(command: str, argv: Sequence[str]) -> int:
    """Runs a command; as one of several processes, if it is one that can."""
    if command == "train":
        from mmjax.parallel import processes
        processes.join()
        try:
            code = importlib.import_module("mmjax.cli.train").run(argv)
        except SystemExit:                  # after a signal, which all processes obey at the same step
            processes.leave()
            raise
        processes.leave()
        return code
    if command in ALONE:
        from mmjax.parallel import launchers
        if place := launchers.find(os.environ):
            raise ValueError(f"mmjax {command} runs in one process, but {place.launcher} started several; "
                             "start it once")
    return importlib.import_module(f"mmjax.cli.{command}").run(argv)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join([
        "usage: mmjax <command> [flags]     mmjax <command> --help lists the flags", "", *lines, "",
        "Every command takes --debug: show the traceback of an error."])


def _report(message: str, code: int) -> int:
    print(f"mmjax: error: {message}", file=sys.stderr)
    return code


def _text(error: Exception) -> str:
    """The message alone; the file that an OSError of the system is about belongs to it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _exit_code(error: Exception) -> int | None:
    """That of an error with a message for the user; None for a slip of our own."""
    from mmjax.training.loop import TrainingError
    from mmjax.training.structure import ConfigError
    if isinstance(error, ConfigError):
        return USAGE
    return FAILED if isinstance(error, ValueError | OSError | ImportError | TrainingError) else None


if __name__ == "__main__":
    sys.exit(main())
