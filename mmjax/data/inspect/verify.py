"""Verifying a source: every file opened by itself, every record read, every image's header or pixels checked."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator

from mmjax.data import images
from mmjax.data.config import Source
from mmjax.data.documents import DocumentError, Text
from mmjax.data.image_spec import ImageError, ImageSpec
from mmjax.data.sources import FORMATS, DocumentSource, open_source

_NAMED = 3                              # damaged records of a file that are named


@dataclasses.dataclass
class FileReport:
    """What one file holds.

    Attributes:
        file: its path.
        fault: why it cannot be used at all, or is not what its manifest says; "" if it can.
        documents, texts, visuals: what was read of it.
        animated: images of which only the first frame will be used.
        size: its bytes.
        digest: outcome of the comparison with manifest.json: `same`, `differs`, or "" if that says nothing.
        dropped: reason -> documents that the format leaves out when it opens the file.
        damaged: reason -> records that cannot be used.
        named: the first of these.
    """

    file: str
    fault: str = ""
    documents: int = 0
    texts: int = 0
    visuals: int = 0
    animated: int = 0
    size: int = 0
    digest: str = ""
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    damaged: Counter[str] = dataclasses.field(default_factory=Counter)
    named: list[str] = dataclasses.field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.fault and not self.damaged and self.digest != "differs"

    def line(self) -> str:
        """One line for the file, and one for each damaged record that is named."""
        state = "ok" if self.good else "BAD"
        text = (f"{state:3}  {self.file}: {self.documents} documents, {self.texts} texts, {self.visuals} images or "
                f"videos, {self.size} bytes")
        if self.digest:
            text += f", digest {'as written' if self.digest == 'same' else 'DIFFERS from the manifest'}"
        if self.animated:
            text += f", {self.animated} animated (their first frame is used)"
        for word, counts in (("left out", self.dropped), ("damaged", self.damaged)):
            text += "".join(f"; {word}: {n} x {reason}" for reason, n in counts.items())
        return "\n".join([text, *(f"     {name}" for name in [self.fault, *self.named] if name)])


def verify(source: Source, spec: ImageSpec | None = None, decode: bool = False) -> Iterator[FileReport]:
    """Reads every document of every file of a source. A bad file does not hide the others.

    Args:
        source: path, format and options.
        spec: limits that images are held to; those of ImageSpec by default.
        decode: decode the images, too, instead of reading their headers alone. Only that sees one that was cut.

    Yields:
        A report for each file, in order.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if the format or an option is unknown.
    """
    spec = spec or ImageSpec()
    for file in FORMATS[source.format].find(source.path, **source.options):
        report = FileReport(file, size=os.path.getsize(file))
        report.digest = check_digest(file)
        try:
            opened = open_source(source.format, file, **{**source.options, "on_bad_shard": "raise"})
        except (DocumentError, OSError) as e:
            report.fault = str(e)
            yield report
            continue
        report.dropped = Counter(opened.dropped)
        for i in range(len(opened)):
            _check_record(opened, i, report, spec, decode)
        yield report


def _check_record(source: DocumentSource, i: int, report: FileReport, spec: ImageSpec, decode: bool):
    try:
        document = source[i]
        visuals = [s for s in document.segments if not isinstance(s, Text)]
        headers = images.check_visuals(visuals, spec)
        if decode:
            images.decode_visuals(visuals, spec)
    except (DocumentError, ImageError) as e:
        reason = e.reason if isinstance(e, ImageError) else "document damaged"
        report.damaged[reason] += 1
        if len(report.named) < _NAMED:
            report.named.append(str(e) if source.name(i) in str(e) else f"{source.name(i)}: {e}")
        return
    report.documents += 1
    report.visuals += len(visuals)
    report.animated += sum(header.animated for header in headers)
    report.texts += len(document.segments) - len(visuals)


def check_digest(file: str) -> str:
    """`same` or `differs`, by the SHA-256 that a manifest.json beside the file has for it; "" if it has none."""
    folder, name = os.path.split(file)
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as f:
            wanted = json.load(f)["files"][name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    with open(file, "rb") as f:
        return "same" if hashlib.file_digest(f, "sha256").hexdigest() == wanted else "differs"
