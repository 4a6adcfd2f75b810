"""Throughput of the loader against torch's DataLoader, WebDataset and Grain alone, on the same pages and cores.

Run:     python experiments/benchmarks/data_loader.py [--images 2000] [--rounds 5] [--realtime] [--out FILE]
         in an environment with torch and webdataset too; peers that are not installed are left out.
Expect:  see results/data_loader.json: 0.96 of torch's DataLoader with the same decoder (0.90 by best rounds), 1.12 of
         Grain when both pack, 1.62 with scaled decoding. Outside of the decoder ours spends 17 % (threads, full).

A page is a 640 x 480 JPEG and a text with a log-normal number of bytes (median 245); 1,000 different ones, read again
and again, shuffled. Everybody reads them from local files that are in memory, tokenises with the same tokenizer,
decodes to 224 x 224 with the same function, and gives batches of about 32 pages. Peers pad a page a row; ours lays out
pages by a template with loss weights, packs them into rows of 2,048 tokens and 16 images, counts, and can be resumed at
every batch. "grain packed" does what Grain can of that. Then ours goes once more with scaled decoding, which the peers'
own examples do not use; `difference` is how far its pixels are from the others.

Every contestant is a program of its own, in turn, several rounds; figures are the median of the rounds, `best` that of
images per second. `cpu_ms` is the CPU time of an image in all its processes, `not_decoding` the share of it outside of
the decoder. A ratio is ours against the best peer.
"""

import argparse
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as pil

from mmjax.data import images
from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.documents import Document, Image, Text, from_bytes, write_documents
from mmjax.data.images import ImageSpec, decode_image
from mmjax.data.tokenizer import byte_tokenizer

UNIQUE, SHARDS, BATCH = 1000, 8, 32
FULL, SCALED = ImageSpec(draft=0), ImageSpec()
CONTESTANTS = {                         # name: (package it needs, processes or threads, spec)
    "mmjax, 2 threads": ("mmjax", 2, FULL), "mmjax, 2 workers": ("mmjax", 2, FULL),
    "torch, 2 workers": ("torch", 2, FULL), "webdataset, 2 workers": ("webdataset", 2, FULL),
    "grain, 2 threads": ("grain", 2, FULL), "grain, 16 threads": ("grain", 16, FULL),
    "grain packed, 2 threads": ("grain", 2, FULL),
    "mmjax scaled, 2 threads": ("mmjax", 2, SCALED), "mmjax scaled, 2 workers": ("mmjax", 2, SCALED),
}


def write_data(folder: Path) -> None:
    """Pages as ArrayRecord, and as tar shards."""
    from sklearn.datasets import load_sample_images
    photos, rng, pages = load_sample_images().images, np.random.default_rng(0), []
    for _ in range(UNIQUE):
        photo = pil.fromarray(photos[rng.integers(len(photos))])
        scale = rng.uniform(0.5, 0.95)
        w, h = int(photo.width * scale), int(photo.height * scale)
        x, y = rng.integers(photo.width - w), rng.integers(photo.height - h)
        out = io.BytesIO()
        photo.crop((x, y, x + w, y + h)).resize((640, 480), pil.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        length = int(np.clip(np.exp(rng.normal(np.log(245), 1)), 1, 2000))
        pages.append((out.getvalue(), "".join(rng.choice(list("etaoin shrdlu"), length))))
    write_documents(folder / "pages.array_record", [Document((Image(i), Text(t))) for i, t in pages])
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for n, (image, text) in enumerate(pages[shard::SHARDS]):
                for suffix, data in (("jpg", image), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{n:05d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


class Page:
    """A record to (pixels, tokens); for peers."""

    def __init__(self, spec: ImageSpec):
        self.spec, self.tokenizer = spec, None

    def __call__(self, image: bytes, text: str) -> tuple[np.ndarray, np.ndarray]:
        self.tokenizer = self.tokenizer or byte_tokenizer()
        return decode_image(image, self.spec), np.array(self.tokenizer.encode(text), np.int32)

    def record(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        image, text = from_bytes(data).segments
        return self(image.data, text.text)


def collate(pages: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Pixels, tokens padded to the longest, and how many tokens there are."""
    tokens = np.zeros((len(pages), max(len(t) for _, t in pages)), np.int32)
    for row, (_, t) in zip(tokens, pages, strict=True):
        row[:len(t)] = t
    return np.stack([p for p, _ in pages]), tokens, sum(len(t) for _, t in pages)


def mmjax_batches(folder: Path, name: str, count: int, spec: ImageSpec) -> Iterator[tuple[int, int]]:
    from mmjax.data.loader import Loader
    pages = DataSetConfig((Source(str(folder / "pages.array_record")),), 6, 2048, images_per_row=16, image=spec,
                          template="flamingo")
    with Loader(LoaderConfig(dict(pages=pages), **{"workers" if "workers" in name else "threads": count})) as loader:
        for batches in loader:
            yield int((batches["pages"].image_segment_ids > 0).sum()), int((batches["pages"].segment_ids > 0).sum())


def grain_batches(folder: Path, name: str, count: int, spec: ImageSpec) -> Iterator[tuple[int, int]]:
    import grain
    data = grain.MapDataset.source(grain.sources.ArrayRecordDataSource([str(folder / "pages.array_record")]))
    pages = data.seed(0).shuffle().repeat().map(Page(spec).record).to_iter_dataset(
        grain.ReadOptions(num_threads=count, prefetch_buffer_size=4 * BATCH))
    if "packed" in name:
        pages = pages.map(lambda page: dict(tokens=page[1], images=page[0][None]))
        packed = grain.experimental.BestFitPackIterDataset(pages, length_struct=dict(tokens=2048, images=16),
                                                           num_packing_bins=16)
        for rows in packed.batch(6):
            yield int((rows["images_segment_ids"] > 0).sum()), int((rows["tokens_segment_ids"] > 0).sum())
    for pixels, _, tokens in pages.batch(BATCH, batch_fn=collate):
        yield len(pixels), tokens


class Records:
    """The ArrayRecord file as torch wants it."""

    def __init__(self, path: Path, spec: ImageSpec):
        self.path, self.page, self.file = str(path), Page(spec), None

    def __len__(self) -> int:
        return UNIQUE

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        import grain
        self.file = self.file or grain.sources.ArrayRecordDataSource([self.path])
        return self.page.record(self.file[i])


def torch_collate(pages):
    import torch
    pixels, tokens, count = collate(pages)
    return torch.from_numpy(pixels), torch.from_numpy(tokens), count


def torch_batches(folder: Path, name: str, count: int, spec: ImageSpec) -> Iterator[tuple[int, int]]:
    from torch.utils.data import DataLoader
    loader = DataLoader(Records(folder / "pages.array_record", spec), BATCH, shuffle=True, num_workers=count,
                        collate_fn=torch_collate, persistent_workers=True, prefetch_factor=4)
    while True:
        for pixels, _, tokens in loader:
            yield len(pixels), tokens


def webdataset_batches(folder: Path, name: str, count: int, spec: ImageSpec) -> Iterator[tuple[int, int]]:
    import webdataset as wds
    page = Page(spec)
    urls = [str(folder / f"{shard}.tar") for shard in range(SHARDS)]
    data = wds.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(500).to_tuple("jpg", "txt").map(
        lambda pair: page(pair[0], pair[1].decode())).batched(BATCH, collation_fn=torch_collate)
    for pixels, _, tokens in wds.WebLoader(data, batch_size=None, num_workers=count, prefetch_factor=4):
        yield len(pixels), tokens


def measure(name: str, folder: Path, count: int) -> dict[str, float]:
    """One contestant, in this process: after eight batches, about `count` images."""
    package, parallel, spec = CONTESTANTS[name]
    decoding = watch_decoder() if package == "mmjax" else None
    batches = globals()[f"{package}_batches"](folder, name, parallel, spec)
    for _ in range(8):
        next(batches)
    done = tokens = 0
    begin, cpu, decoded = time.perf_counter(), cpu_seconds(), sum(decoding or [])
    while done < count:
        more, t = next(batches)
        done, tokens = done + more, tokens + t
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    found = dict(images_per_second=done / seconds, tokens_per_second=tokens / seconds, cpu_ms=1000 * cpu / done)
    if decoding and "threads" in name:
        found["not_decoding"] = 1 - (sum(decoding) - decoded) / cpu
    return found


def watch_decoder() -> list[float]:
    """CPU seconds of every call of the decoder in this process, a list that grows."""
    seconds, decode = [], images.decode_image

    def timed(*args):
        begin = time.thread_time()
        try:
            return decode(*args)
        finally:
            seconds.append(time.thread_time() - begin)

    images.decode_image = timed
    return seconds


def cpu_seconds() -> float:
    """Of this process and all that came from it."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    total = 0
    for pid in ticks:
        p = pid
        while p not in (0, os.getpid()):
            p = parents.get(p, 0)
        total += ticks[pid] if p else 0
    return total / os.sysconf("SC_CLK_TCK")


def difference(folder: Path) -> dict[str, float]:
    """Scaled against full decoding, in grey levels of 255."""
    import grain
    file = grain.sources.ArrayRecordDataSource([str(folder / "pages.array_record")])
    data = [from_bytes(file[i]).segments[0].data for i in range(100)]
    errors = np.array([decode_image(d, SCALED).astype(float) - decode_image(d, FULL) for d in data])
    return dict(mean=np.abs(errors).mean(), root_mean_square=np.sqrt((errors**2).mean()),
                psnr_db=10 * np.log10(255**2 / (errors**2).mean()))


def contest(folder: Path, names: list[str], count: int, rounds: int, realtime: bool) -> dict[str, dict[str, float]]:
    """All contestants in turn; the median of each figure, and the best rate."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    before = ["chrt", "-r", "5"] if realtime else []
    for r in range(rounds):
        for name in names:
            done = subprocess.run([*before, sys.executable, __file__, "--only", name, "--folder", str(folder),
                                   "--images", str(count)], stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            found[name].append(row)
            print(f"round {r}  {name:24s}" + "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    return {name: summary(rows) for name, rows in found.items()}


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """The rounds of one contestant."""
    middle = {key: float(f"{np.median([row[key] for row in rows]):.4g}") for key in rows[0]}
    return middle | dict(best=float(f"{max(row['images_per_second'] for row in rows):.4g}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="of each contestant in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", default="", help="contestants whose name has one of these words")
    parser.add_argument("--realtime", action="store_true", help="go first on a machine that others use too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="measure one contestant in this process")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.folder, args.images)), flush=True)
        os._exit(0)                     # some peers wait for their workers
    names = [n for n, (package, *_) in CONTESTANTS.items() if importlib.util.find_spec(package)
             and (not args.names or any(word in n for word in args.names.split(",")))]
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        quality = difference(Path(folder))
        table = contest(Path(folder), names, args.images, args.rounds, args.realtime)
    report(table, quality, args)


def report(table: dict[str, dict[str, float]], quality: dict[str, float], args: argparse.Namespace) -> None:
    """Prints the ratios, and writes all."""
    ratios = {"same decoder": ratio(table, "images_per_second", "mmjax"),
              "same decoder, best rounds": ratio(table, "best", "mmjax"),
              "same decoder, both pack": ratio(table, "images_per_second", "mmjax", "grain packed"),
              "scaled decoding": ratio(table, "images_per_second", "mmjax scaled")}
    print(json.dumps(dict(ratios=ratios, difference=quality), indent=1))
    if args.out:
        text = json.dumps(dict(images=args.images, rounds=args.rounds, realtime=args.realtime, cores=os.cpu_count(),
                               python=platform.python_version(), load=os.getloadavg(), table=table, ratios=ratios,
                               difference=quality), indent=1)
        args.out.write_text(text + "\n")


def ratio(table: dict[str, dict[str, float]], figure: str, ours: str, *peers: str) -> float:
    """The best figure of one name against that of others."""
    def best(*whose: str) -> float:
        return max((row[figure] for name, row in table.items() if name.split(",")[0] in whose), default=float("nan"))

    return round(best(ours) / best(*peers or ("torch", "webdataset", "grain")), 3)


if __name__ == "__main__":
    main()
