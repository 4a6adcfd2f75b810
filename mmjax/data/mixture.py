"""Mixtures: an endless, shuffled, weighted stream of encoded documents from several sources.

The stream depends only on the seed, the sources and the number of processes that share them. A document that
cannot be used stays in the stream as an empty one that carries the reason, so that skipping is as reproducible
as everything else and can be counted by whoever consumes the stream.
"""

import zlib

import grain
import numpy as np

from mmjax.data import images, packing, templates
from mmjax.data.config import DataSetConfig
from mmjax.data.documents import DocumentError
from mmjax.data.sources import DocumentSource, open_source
from mmjax.data.tokenizer import Tokenizer

KEPT, TRUNCATED, DAMAGED, TOO_LONG, LEFT_OUT = "kept", "truncated", "document damaged", "too long", "left out"
OUTCOMES = (KEPT, TRUNCATED, DAMAGED, TOO_LONG, LEFT_OUT, *images.ImageError.REASONS)
FAULTS = (DAMAGED, *images.ImageError.REASONS)            # somebody should mend these; the rest is policy


class EncodeRecord:
    """Turns a record number of one source into packable features with their `info`: source, record, outcome."""

    def __init__(self, source: DocumentSource, source_index: int, config: DataSetConfig, tokenizer: Tokenizer):
        self._source, self._source_index, self._config, self._tokenizer = source, source_index, config, tokenizer
        self._template = config.make_template()
        templates.check_specials(self._template, tokenizer)

    def __call__(self, record: int, rng: np.random.Generator) -> packing.Features:
        try:
            features, cut = self._encode(record, rng)
            outcome = TRUNCATED if cut else KEPT
        except images.ImageError as e:
            features, outcome = self._empty(), e.reason
        except DocumentError:
            features, outcome = self._empty(), DAMAGED
        except packing.TooLong:
            features, outcome = self._empty(), TOO_LONG
        except templates.TemplateSkip:
            features, outcome = self._empty(), LEFT_OUT
        info = np.array([[self._source_index, record, OUTCOMES.index(outcome)]], np.int32)
        return features | dict(info=info)

    def _encode(self, record: int, rng: np.random.Generator) -> tuple[packing.Features, bool]:
        c = self._config
        encoded = self._template.encode(self._source[record], self._tokenizer, rng)
        encoded, cut = packing.fit(encoded, c.max_tokens or c.seq_len, c.max_images or c.images_per_row,
                                   c.too_long, rng)
        pixels = images.decode_visuals(encoded.visuals, c.image, c.frames)
        return packing.to_features(encoded, pixels), cut

    def _empty(self) -> packing.Features:
        ints, side = np.zeros(0, np.int32), self._config.image.size
        return dict(tokens=ints, targets=ints, loss_weights=np.zeros(0, np.float32), image_index=ints,
                    slot_index=ints, images=np.zeros((0, self._config.frames, side, side, 3), np.uint8))


def document_stream(config: DataSetConfig, tokenizer: Tokenizer, seed: int, threads: int = 0,
                    process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
    """The endless stream of a data set's documents for one of the processes that share it.

    Every source is shuffled anew each epoch and dealt out to the processes; then the sources are interleaved
    by weight. (Mixing first would hand process 0 of 2 nothing but the first of two equal sources.)

    Args:
        config: sources and encoding.
        tokenizer: of all sources.
        seed: of shuffling and augmentation.
        threads: that decode, per source.
        process_index, process_count: which share.

    Returns:
        An IterDataset of features for `packing.pack_dataset`.

    Raises:
        FileNotFoundError, DocumentError: if a source is missing, unreadable or empty.
        ValueError: if the tokenizer lacks a special token of the template.
    """
    streams = []
    for k, source in enumerate(config.sources):
        documents = open_source("array_record", source.path)
        stream = grain.MapDataset.range(len(documents)).seed(derive_seed(seed, f"source {k}")).shuffle().repeat()
        stream = stream.random_map(EncodeRecord(documents, k, config, tokenizer))[process_index::process_count]
        streams.append(stream.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads)))
    return grain.IterDataset.mix(streams, [s.weight for s in config.sources])


def derive_seed(seed: int, purpose: str) -> int:
    """A 32-bit seed of its own for every purpose."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])
