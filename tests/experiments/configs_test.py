"""Every config resolves and says how it runs; those that need no file of others fit their data and one device."""

from pathlib import Path

import pytest

from mmjax import models
from mmjax.cli import arguments, stages
from mmjax.cli.fit import check_fit, check_rows
from mmjax.cli.params import abstract_mesh
from mmjax.training.step import make_plan

ROOT = Path(__file__).parents[2]
SCRIPTS = ("benchmarks", "data", "plans")        # folders of programs; the others hold one system's configs each
FILES = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("experiments/*/*.py")
               if file.parent.name not in SCRIPTS)


@pytest.mark.parametrize("file", FILES)
def test_it_resolves_and_its_head_says_how_to_run_it_and_what_to_expect(file):
    assert stages.resolve(arguments.load_config([f"--config={ROOT / file}"]))
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"\nRun:     mmjax train --config={file}" in text and "\nExpect:  " in text


@pytest.mark.parametrize("file", [file for file in FILES if "paper" not in file])
def test_it_fits_its_data_and_one_device(file):
    for name, config in stages.resolve(arguments.load_config([f"--config={ROOT / file}"])):
        check_fit(name, config)
        mesh = abstract_mesh(config, devices=1)
        check_rows(name, config, mesh)
        make_plan(models.build(config.system, config.model, config.low_rank), config, mesh)
