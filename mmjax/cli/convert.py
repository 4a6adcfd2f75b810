"""`mmjax convert`: published weights in and out of runs, and proof that they compute the same."""

import collections
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from mmjax import models
from mmjax.checkpoint import manager
from mmjax.checkpoint.convert.adapter import save_adapter
from mmjax.checkpoint.convert.formats import FORMATS
from mmjax.checkpoint.convert.pretrained import Pretrained, from_pretrained, save_pretrained
from mmjax.checkpoint.paths import flatten, nest
from mmjax.cli import arguments, stages
from mmjax.training.config import FROZEN
from mmjax.training.loop import part_config
from mmjax.training.optimizer import resolve_rules
from mmjax.training.structure import ConfigError, require

ABOUT = ("Say what a folder of published weights holds; write it in another dtype or in other shards; write a part of "
         f"a run as published weights; compare with the reference implementation. Architectures: {', '.join(FORMATS)}.")


def run(argv: Sequence[str]) -> int:
    """Prints what the weights are, then writes or compares; 1 if a comparison is worse than asked for."""
    parser = arguments.make_parser("convert", ABOUT)
    parser.add_argument("--folder", type=Path, help="published weights to read: config.json and safetensors")
    parser.add_argument("--workdir", type=Path, help="or a run directory to read")
    parser.add_argument("--stage", help="stage of the run; the last by default")
    parser.add_argument("--step", type=int, help="checkpoint of the run; the latest by default")
    parser.add_argument("--part", default="lm", help="part of the run's system to write; lm by default, '' for all")
    parser.add_argument("--format", choices=FORMATS, help="how to write a part of a run")
    parser.add_argument("--adapter", action="store_true", help="write all that the run trained, adapters and "
                        "connectors, as one folder; with --format, adapters under the names of PEFT")
    parser.add_argument("--to", type=Path, help="folder to write; it must not exist, or be empty")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="to compute in and to write; that "
                        "of the folder or run by default")
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files are copied; --folder by default")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, help="largest file to write")
    parser.add_argument("--compare", action="store_true", help="compare outputs with transformers (extra 'parity')")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference, as a share of the largest "
                        "output, that --compare accepts")
    args = arguments.parse(parser, argv)
    require((args.folder is None) != (args.workdir is None), "give either --folder, published weights, or --workdir, "
            "a run")
    if args.adapter:
        require(args.workdir and args.to, "--adapter needs --workdir and --to")
        write_adapter(args)
        return 0
    require(args.folder or args.format, f"--workdir needs --format, one of {', '.join(FORMATS)}")
    dtype = args.dtype or ("float32" if args.compare else None)         # transformers compares in float32
    model = from_pretrained(args.folder, dtype) if args.folder else from_run(args)
    print(summary(model))
    if args.to:
        save_pretrained(args.to, model, args.tokenizer or args.folder, int(args.max_shard_gb * 1e9))
        print(f"wrote {args.to}: {', '.join(sorted(path.name for path in args.to.iterdir()))}")
    if args.compare:
        from mmjax.cli.compare import compare
        require(args.to or args.folder, "--compare needs --folder, or --to to write what is compared")
        return int(compare(model, args.to or args.folder) > args.tolerance)
    return 0


def write_adapter(args) -> None:
    """What a run trained, as one folder."""
    args.config = None
    name, config = stages.select(stages.from_args(args), args.stage)[-1]
    model = models.build(config.system, config.model, config.low_rank)
    labels = resolve_rules(jax.eval_shape(model.init, jax.random.key(0)), config.rules, config.groups)
    params = flatten(manager.restore_params(args.workdir / name, step=args.step))
    trained = {path: x for path, x in params.items() if labels[path] != FROZEN}
    lm = part_config(config.model, args.part) if args.format else None
    save_adapter(args.to, nest(trained), config.low_rank, args.format or "", lm, args.part)
    print(f"wrote {args.to}: {sum(x.size for x in trained.values()):,} parameters of {len(trained)} arrays")


def from_run(args) -> Pretrained:
    """A part of a run, in the format that `--format` names."""
    args.config = None
    name, config = stages.select(stages.from_args(args), args.stage)[-1]
    params = manager.restore_params(args.workdir / name, args.part, step=args.step)
    if any(path.endswith(("lora_a", "lora_b")) for path in flatten(params)):
        raise ConfigError(f"the part {args.part!r} has low-rank adapters, which this format does not have; write them "
                          "with --adapter")
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(args.dtype or x.dtype)), params)
    return Pretrained(args.format, part_config(config.model, args.part), params, {})


def summary(model: Pretrained) -> str:
    """Architecture, parameters and dtypes in a line, and the config below it."""
    leaves = jax.tree.leaves(model.params)
    dtypes = collections.Counter(str(x.dtype) for x in leaves)
    return (f"{model.kind}: {sum(x.size for x in leaves):,} parameters in {', '.join(dtypes)}, "
            f"{sum(x.nbytes for x in leaves) / 1e9:.2f} GB\n{model.config}")
