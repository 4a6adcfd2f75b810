"""How full rows get, what packing costs, and whether documents of a row stay apart.

Run:     python experiments/benchmarks/data_packing.py [--grain] [--out FILE]
Expect:  see results/data_packing.json. 20,000 documents as web pages have them: log-normal lengths with median 245
         tokens, Poisson(2) images; rows of 2,048 tokens and 16 images. `fill` counts all rows, the last ones too.
         A leak is a position whose document, target or image is not that of its segment.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from mmjax.data.filling import Filler
from mmjax.data.packing import pack_rows

SEQ_LEN, IMAGES, COUNT = 2048, 16, 20_000
_STEP = 1 << 12                         # token ids of document n begin at n * _STEP


def documents() -> list[tuple[int, int]]:
    """(tokens, images) of every document."""
    rng = np.random.default_rng(0)
    tokens = np.clip(np.exp(rng.normal(np.log(245), 1, COUNT)), 1, SEQ_LEN).astype(int)
    return list(zip(tokens.tolist(), np.minimum(rng.poisson(2, COUNT), IMAGES).tolist(), strict=True))


def fill(sizes: list[tuple[int, int]], buffer: int) -> tuple[list[list[int]], float]:
    """Rows of document numbers, and the CPU seconds that took."""
    filler, rows, come, begin = Filler(SEQ_LEN, IMAGES), [], 0, time.process_time()
    while come < len(sizes) or len(filler):
        while len(filler) < buffer and come < len(sizes):
            filler.add(come, *sizes[come])
            come += 1
        rows.append(filler.take_row())
    return rows, time.process_time() - begin


def features(n: int, tokens: int, images: int) -> dict[str, np.ndarray]:
    """A document whose every token and pixel says whose it is."""
    ids = n * _STEP + np.arange(tokens, dtype=np.int32)
    place = np.arange(tokens, dtype=np.int32)
    weights = (place < tokens - 1).astype(np.float32)
    return dict(tokens=ids, targets=np.append(ids[1:], np.int32(0)), loss_weights=weights,
                image_index=place % (images + 1) - 1, slot_index=np.full(tokens, -1, np.int32),
                images=np.full((images, 1, 1, 1, 3), n % 251, np.uint8))


def leaks(rows: list[list[int]], sizes: list[tuple[int, int]]) -> int:
    """Positions that show anything of another document than their own."""
    found = 0
    for row in rows:
        b = pack_rows([[features(n, *sizes[n]) for n in row]], SEQ_LEN, IMAGES)
        segment = b.segment_ids[0]
        owner = np.array([-1, *row])[segment]
        found += np.count_nonzero((b.tokens[0] // _STEP != owner) & (segment > 0))
        found += np.count_nonzero((b.targets[0] // _STEP != owner) & (b.loss_weights[0] > 0))
        seen = np.flatnonzero(b.image_index[0] >= 0)
        image = b.image_index[0, seen]
        found += np.count_nonzero(b.image_segment_ids[0, image] != segment[seen])
        found += np.count_nonzero(b.images[0, image, 0, 0, 0, 0] != owner[seen] % 251)
        found += sum(np.count_nonzero(segment == s) != sizes[n][0] for s, n in enumerate(row, 1))
    return int(found)


def grain_rows(sizes: list[tuple[int, int]], bins: int) -> tuple[int, float]:
    """Rows and CPU seconds of Grain's best fit."""
    import grain
    source = [dict(tokens=np.ones(t, np.int32), images=np.zeros((i, 1), np.uint8)) for t, i in sizes]
    stream = grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=0))
    packed = grain.experimental.BestFitPackIterDataset(stream, length_struct=dict(tokens=SEQ_LEN, images=IMAGES),
                                                       num_packing_bins=bins)
    begin = time.process_time()
    return sum(1 for _ in packed), time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grain", action="store_true", help="also run Grain's best fit, which takes half a minute")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sizes, table = documents(), []
    tokens, images = np.sum(sizes, axis=0)
    for buffer in (64, 256, 1024):
        rows, seconds = fill(sizes, buffer)
        assert sorted(n for row in rows for n in row) == list(range(COUNT))
        over = sum(sum(sizes[n][1] for n in row) > IMAGES for row in rows)
        table.append(dict(packer=f"mmjax, buffer {buffer}", rows=len(rows), over_image_cap=over,
                          leaks=leaks(rows, sizes), seconds=seconds))
    for bins in (64,) if args.grain else ():
        count, seconds = grain_rows(sizes, bins)
        table.append(dict(packer=f"grain best fit, {bins} bins", rows=count, seconds=seconds))
    for line in table:
        line |= dict(fill=round(float(100 * tokens / line["rows"] / SEQ_LEN), 3),
                     image_fill=round(float(100 * images / line["rows"] / IMAGES), 1),
                     us_per_document=round(line.pop("seconds") / COUNT * 1e6, 2))
        print("  ".join(f"{name} {value}" for name, value in line.items()))
    if args.out:
        args.out.write_text(json.dumps(dict(documents=COUNT, python=platform.python_version(), table=table), indent=1))


if __name__ == "__main__":
    main()
