"""A sample crawl through the whole pipeline, against the truth about it; crashes, workers, damage, other settings."""

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path

import pytest

beam = pytest.importorskip("apache_beam", reason="needs the extra [pipelines]")
pytest.importorskip("fastwarc", reason="needs the extra [pipelines]")
pytest.importorskip("sklearn", reason="needs the extra [data]")

from data_pipelines import launch, shards  # noqa: E402
from data_pipelines.web_pages import assemble, extract, pipeline, selection  # noqa: E402
from data_pipelines.web_pages.rules import PRESETS  # noqa: E402
from data_pipelines.web_pages.sample import check, make_warc  # noqa: E402
from mmjax.data.documents import Image  # noqa: E402
from mmjax.data.sources import open_source  # noqa: E402

# A shared image is on too many pages only from some number of pages on.
RULES = dataclasses.replace(PRESETS["kosmos1"], max_image_uses=3)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("crawl")
    make_warc.write_archives(folder, pages=40, archives=3)
    return folder


@pytest.fixture(scope="module")
def whole(crawl, tmp_path_factory) -> Path:
    """The output of one undisturbed run."""
    output = tmp_path_factory.mktemp("whole")
    run(crawl, output)
    return output


def run(crawl: Path, output: Path, workers: int = 1, archives: str = "*.warc.gz", **options):
    options = dict(dict(rules=RULES, num_shards=2, lists=(("hosts", str(crawl / "blocked_hosts.txt")),)), **options)
    return pipeline.run([str(crawl / archives)], str(output), options=launch.beam_options(workers), **options)


def digests(output: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(output.glob("*.array_record"))}


def test_every_page_becomes_what_it_should(crawl, whole):
    assert check.compare(crawl, str(whole)) == []
    manifest = shards.read_manifest(str(whole))
    assert {n: f["sha256"] for n, f in manifest.files.items()} == digests(whole)
    assert sum(manifest.records.values()) == len(open_source("array_record", whole)) == manifest.counts["pages"]["kept"]
    assert "| near duplicate | 2 |" in pipeline.report(manifest.counts)


def test_the_check_sees_a_document_that_is_not_the_page(crawl, whole, tmp_path):
    documents = list(open_source("array_record", whole))
    changed = next(d for d in documents if sum(isinstance(s, Image) for s in d.segments) > 1)
    documents[documents.index(changed)] = dataclasses.replace(changed, segments=changed.segments[::-1])
    shards.write_shard(tmp_path, "documents.array_record", documents)
    manifest = dataclasses.replace(shards.read_manifest(str(whole)), records={})
    (tmp_path / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)))
    (wrong,) = check.compare(crawl, str(tmp_path))
    assert wrong.startswith(f"{changed.key}: should be ")


def test_two_processes_extract_the_same_bytes(crawl, whole, tmp_path):
    run(crawl, tmp_path, workers=2, until="extract")
    for file in (whole / "work/extract").iterdir():
        assert (tmp_path / "work/extract" / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_plan_does_not_depend_on_the_order_of_what_arrives(whole, tmp_path):
    indices = sorted(map(str, (whole / "work/extract").glob("*.index")))
    with beam.Pipeline(options=launch.beam_options()) as p:
        selection.build(p, indices[::-1], str(tmp_path), RULES, 2)
    for file in (whole / "work/plan").glob("*.msgpack"):
        assert (tmp_path / "work/plan" / file.name).read_bytes() == file.read_bytes()


def test_after_crashes_only_what_is_missing_is_done(crawl, whole, tmp_path, monkeypatch):
    log = tmp_path / "log"

    def crash(stage, function, at):
        monkeypatch.setattr(stage, function, functools.partial(crash_at, getattr(stage, function), str(log), at))
        with pytest.raises(Exception, match="the machine is gone"):
            run(crawl, tmp_path)
        monkeypatch.undo()

    crash(extract, "extract", 3)            # two of three archives are done
    crash(assemble, "assemble", 4)          # then the third, the plan, and one of two shards
    plan = tmp_path / "work/plan/done.json"
    made = plan.stat().st_mtime_ns
    assert len(list((tmp_path / "work/shards").glob("*"))) == 1
    run(crawl, tmp_path)
    assert plan.stat().st_mtime_ns == made
    assert digests(tmp_path) == digests(whole)
    done = log.read_text().split()
    assert len(done) == len(set(done)) == 3 and plan.exists()


def crash_at(real, log, at, unit, *args, **kwargs):
    """Does a unit, but the one with number `at` over all runs fails."""
    with open(log, "a+", encoding="utf-8") as f:
        f.seek(0)
        if len(f.read().split()) + 1 == at:
            raise OSError("the machine is gone")
        f.write(f"{unit.name}\n")
    return real(unit, *args, **kwargs)


def test_a_damaged_plan_or_blob_is_noticed(crawl, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    plan = tmp_path / "work/plan/00001-of-00002.msgpack"
    plan.write_bytes(plan.read_bytes()[:-1])
    run(crawl, tmp_path)
    assert digests(tmp_path) == digests(whole)
    for blob in (tmp_path / "work/extract").glob("*.blob"):
        blob.write_bytes(bytes(len(blob.read_bytes())))
    (tmp_path / "work/shards/00000-of-00002.json").unlink()
    with pytest.raises(Exception, match="is damaged at byte"):
        run(crawl, tmp_path)


def test_a_cut_archive_is_reported_and_beyond_a_share_stops_the_run(crawl, tmp_path):
    cut = tmp_path / "in"
    shutil.copytree(crawl, cut)
    data = (cut / "part-00001.warc.gz").read_bytes()
    (cut / "part-00001.warc.gz").write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match=r"1 of 3 archives are cut.*part-00001.warc.gz: cut at record \d+"):
        run(cut, tmp_path / "out")
    manifest = run(cut, tmp_path / "out", max_damaged=0.4)
    assert manifest.counts["archives"].pop("whole") == 2
    (reason,) = manifest.counts["archives"]
    assert reason.startswith("part-00001.warc.gz: cut at record ")
    assert 5 < manifest.counts["pages"]["kept"] < 20


def test_other_settings_in_the_same_folder_are_refused(crawl, whole):
    with pytest.raises(ValueError, match="num_shards: 2 there, 3 now"):
        run(crawl, whole, num_shards=3)
    with pytest.raises(ValueError, match=r"lists.hosts: .* None now; .*rules.min_side: 64 there, 150 now"):
        run(crawl, whole, rules=PRESETS["obelics"], lists=())


def test_images_come_from_a_folder_of_fetched_files(crawl, whole, tmp_path):
    """The archives of a crawler that fetches no images, and the files that were fetched for them later."""
    pages, fetched = tmp_path / "pages", tmp_path / "fetched"
    pages.mkdir()
    fetched.mkdir()
    with open(pages / "all.warc.gz", "wb") as f:
        for i in range(40):
            for k, fetch in enumerate(make_warc.site.make_page(i).fetches):
                if fetch.content_type.startswith("image/"):
                    (fetched / f"{hashlib.sha256(fetch.url.encode()).hexdigest()}.bin").write_bytes(fetch.body)
                else:
                    make_warc.write_fetch(f, fetch, i + k)
    for name in ("truth.json", "images.json", "blocked_hosts.txt"):
        shutil.copy(crawl / name, pages)
    assert run(pages, tmp_path / "out", until="extract") is None
    (addresses,) = (tmp_path / "out/work/extract").glob("*.image_addresses.txt")
    wanted = {hashlib.sha256(a.encode()).hexdigest() for a in addresses.read_text().split()}
    assert wanted & {f.stem for f in fetched.iterdir()}
    run(pages, tmp_path / "out", image_folder=str(fetched / "*"))
    assert check.compare(pages, str(tmp_path / "out")) == []


def test_the_command_line_finds_everything_done(crawl, whole, capsys):
    argv = ["--input", f"{crawl}/*.warc.gz", "--output", str(whole), "--workers", "1", "--num_shards", "2",
            "--blocked_hosts", str(crawl / "blocked_hosts.txt"), "--set"]
    before = (whole / "work/plan/done.json").stat().st_mtime_ns
    pipeline.main([*argv, "max_image_uses=3"])
    printed = capsys.readouterr()
    assert "documents in 2 shards" in printed.out and "| near duplicate | 2 |" in printed.out
    assert (whole / "work/plan/done.json").stat().st_mtime_ns == before
    for wrong in ("max_image_use=3", "max_image_uses=three", "too_many=\"both\""):
        with pytest.raises(SystemExit, match="--set: .*max_image_uses"):
            pipeline.main([*argv, wrong])
