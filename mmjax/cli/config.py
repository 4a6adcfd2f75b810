"""`mmjax config`: the config as a run would have it, every default filled in."""

from collections.abc import Sequence

from mmjax.cli import arguments, stages


def run(argv: Sequence[str]) -> int:
    """Prints the resolved config as JSON, which is also what a run stores as `config.json`."""
    parser = arguments.make_parser("config", "Print a config with every default filled in, as JSON.", config=True)
    args = arguments.parse(parser, argv)
    print(stages.to_json(stages.from_args(args)), end="")
    return 0
