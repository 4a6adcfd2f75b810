"""Near-duplicate texts by MinHash and banding (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4).

Of each of 128 hashes of a text's shingles only the lowest byte is kept, from which similarity is estimated as by
Li & König (arXiv:0910.3349): a page costs 128 bytes for its signature and 128 for its 16 bands.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

HASHES, BANDS, SHINGLE = 128, 16, 5
_A, _B = np.random.default_rng(1997).integers(0, 1 << 63, (2, HASHES, 1), np.uint64) * np.uint64(2) + np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def signature(text_words: list[str]) -> tuple[bytes, bytes]:
    """The signature and the bands of a text.

    Args:
        text_words: at least one word.

    Returns:
        bytes[128], one byte a hash; and bytes[16 * 8], the keys under which similar texts meet.
    """
    h = np.unique(_shingles(text_words))
    # Multiply and shift: the upper half of a * h + b mod 2^64.
    smallest = ((_A * h[None] + _B) >> np.uint64(32)).min(1).astype("<u4")
    bands = b"".join(hashlib.blake2b(band.tobytes(), digest_size=8).digest() for band in smallest.reshape(BANDS, -1))
    return smallest.astype(np.uint8).tobytes(), bands


def split_bands(bands: bytes) -> Iterator[bytes]:
    """The keys under which texts meet, each with the number of its band, so that no two bands share one."""
    return (bytes([i]) + bands[8 * i:8 * i + 8] for i in range(BANDS))


def similarity(a: bytes, b: bytes) -> float:
    """Estimated Jaccard similarity of two texts' shingles from their signatures; standard error up to 0.045."""
    same = (np.frombuffer(a, np.uint8) == np.frombuffer(b, np.uint8)).mean()
    return max(0.0, (same - 1 / 256) / (1 - 1 / 256))


def losers(candidates: Iterable[tuple[str, bytes]], threshold: float) -> Iterator[str]:
    """Of texts that met under one key, those too similar to one that comes earlier in the order of the keys.

    Args:
        candidates: (key, signature), in any order.
        threshold: similarity from which the later one goes.

    Yields:
        The keys of texts to drop.
    """
    kept: list[bytes] = []
    for key, sig in sorted(candidates):
        if any(similarity(sig, other) >= threshold for other in kept):
            yield key
        else:
            kept.append(sig)


def _shingles(text_words: list[str]) -> np.ndarray:
    """uint64[n] hashes of all runs of five words; of a shorter text, of the whole."""
    w = np.array([zlib.crc32(word.encode()) for word in text_words], np.uint64)
    w = (w + np.uint64(1)) * _MIX
    n = min(SHINGLE, len(w))
    h = np.zeros(len(w) - n + 1, np.uint64)
    for k in range(n):
        h = (h ^ (h >> np.uint64(29))) * _MIX + w[k:len(w) - n + 1 + k]
    return h ^ (h >> np.uint64(32))
