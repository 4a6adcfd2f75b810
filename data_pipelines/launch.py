"""What every pipeline's command line shares: input, output, workers, and the options of Beam's runner."""

import argparse
import logging
import os
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with --input, --output and --workers."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                epilog="Every other option goes to Beam: --runner=DataflowRunner --project=... and so "
                                "on. Without --runner the pipeline runs on this machine.")
    p.add_argument("--input", required=True, nargs="+", help="files, or patterns of files")
    p.add_argument("--output", required=True, help="folder for the shards, the manifest and the work in between")
    p.add_argument("--workers", type=int, default=os.cpu_count(), help="processes on this machine")
    return p


def parse(p: argparse.ArgumentParser, argv: Sequence[str] | None = None
          ) -> tuple[argparse.Namespace, PipelineOptions]:
    """Our options, and Beam's.

    Raises:
        SystemExit: if an option is wrong.
    """
    args, rest = p.parse_known_args(argv)
    if args.workers < 1:
        p.error(f"--workers={args.workers} must be at least 1")
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    return args, beam_options(args.workers, rest)


def beam_options(workers: int = 1, rest: Sequence[str] = ()) -> PipelineOptions:
    """Options of Beam for `workers` processes on this machine, unless `rest` names a runner."""
    rest = list(rest)
    if not any(a == "--runner" or a.startswith("--runner=") for a in rest):
        # Named, because Beam's default may fetch a runner written in Go from the network.
        rest += ["--runner=FnApiRunner", f"--direct_num_workers={workers}",
                 f"--direct_running_mode={'multi_processing' if workers > 1 else 'in_memory'}"]
    return PipelineOptions(rest)
