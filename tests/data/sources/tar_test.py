import io
import os
import tarfile
import time

import numpy as np
import pytest

from mmjax.data.sources.interface import BadShard
from mmjax.data.sources.tar import read_members


def add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def write(path, entries, format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in entries:
            add(tar, name, data)
    return str(path)


@pytest.mark.quick
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path, format):
    rng = np.random.default_rng(0)
    names = ["a.jpg", "./d/b.txt", "d" * 70 + "/" + "n" * 90 + ".txt", *(f"{i:09}.jpg" for i in range(20))]
    if format != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".txt", "\u2603 snow.txt", "y/" * 200 + "z"]
    file = write(tmp_path / "a.tar", [(n, rng.bytes(rng.integers(0, 1500))) for n in names], format)
    with tarfile.open(file) as tar:
        want = [(m.name, m.offset_data, m.size, "") for m in tar]
    assert [(m.name, m.start, m.size, m.problem) for m in read_members(file)] == want


def test_special_members_and_unsafe_names_have_a_problem(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "good.txt", b"good")
        add(tar, "hard.txt", type=tarfile.LNKTYPE, linkname="/etc/passwd", size=0)
        add(tar, "soft.txt", type=tarfile.SYMTYPE, linkname="../../etc/passwd")
        add(tar, "tty.txt", type=tarfile.CHRTYPE, devmajor=5)
        add(tar, "disk.txt", type=tarfile.BLKTYPE)
        add(tar, "pipe.txt", type=tarfile.FIFOTYPE)
        add(tar, "/etc/evil.txt", b"e")
        add(tar, "../evil.txt", b"e")
        add(tar, "a/../../evil.txt", b"e")
        add(tar, "c:\\evil.txt", b"e")
        add(tar, "last.txt", b"last")
    found = list(read_members(str(tmp_path / "a.tar")))
    assert {m.name: m.problem for m in found} == {
        "good.txt": "", "hard.txt": "hard link", "soft.txt": "symbolic link", "tty.txt": "character device",
        "disk.txt": "block device", "pipe.txt": "pipe", "/etc/evil.txt": "absolute name",
        "../evil.txt": "name with ..", "a/../../evil.txt": "name with ..", "c:\\evil.txt": "absolute name",
        "last.txt": ""}


@pytest.mark.parametrize("cut, found", [(1, 3), (10 * 1024 - 4 * 1024, 3), (None, 1), (0, 0)])
def test_a_cut_archive_says_how_much_is_whole(tmp_path, cut, found):
    file = write(tmp_path / "a.tar", [(f"{i}.txt", bytes([65 + i]) * 512) for i in range(3)])
    size = os.path.getsize(file)
    assert size == 10 * 1024
    os.truncate(file, {1: size - 1, None: 1500, 0: 0}.get(cut, 3072))
    with pytest.raises(BadShard, match="a.tar was cut") as caught:
        list(read_members(file))
    assert caught.value.found == found


def test_a_second_archive_after_the_first_is_not_passed_over(tmp_path):
    file = write(tmp_path / "a.tar", [("a.txt", b"a")])
    with open(file, "ab") as f:
        f.write((tmp_path / "a.tar").read_bytes())
    with pytest.raises(BadShard, match="goes on after its end"):
        list(read_members(file))


def test_a_flipped_bit_in_a_header_costs_that_member_alone(tmp_path):
    file = write(tmp_path / "a.tar", [(f"{i}.txt", b"x" * 700) for i in range(5)])
    with tarfile.open(file) as tar:
        header = tar.getmembers()[2].offset
    data = bytearray((tmp_path / "a.tar").read_bytes())
    for at in (header + 1, header + 125, header + 150):
        bad = bytearray(data)
        bad[at] ^= 0x04
        (tmp_path / "a.tar").write_bytes(bad)
        found = list(read_members(file))
        assert [m.name for m in found if not m.problem] == ["0.txt", "1.txt", "3.txt", "4.txt"]
        assert [(m.name, m.problem) for m in found if m.problem] == [(f"header at byte {header}", "damaged header")]


def test_claims_of_a_terabyte_cost_neither_memory_nor_time(tmp_path):
    claim = write(tmp_path / "a.tar", [("a.txt", b"a")])
    with open(claim, "r+b") as f:                   # a member of 1 TB that is not there
        info = tarfile.TarInfo("b.jpg")
        info.size = 1 << 40
        f.seek(1024)
        f.write(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(BadShard, match="'b.jpg' has 1099511627776 bytes .* file ends at 10240"):
        list(read_members(claim))
    with open(claim, "r+b") as f:                   # and in a file that has that size, as a hole
        f.truncate(1 << 40)
        f.truncate((1 << 40) + 1024 + 512 + 1024)
    start = time.perf_counter()
    assert [(m.name, m.size) for m in read_members(claim)] == [("a.txt", 1), ("b.jpg", 1 << 40)]
    assert time.perf_counter() - start < 1
    for kind in (b"x", b"L"):                       # a header that would extend the next by 1 TB
        info.type = kind
        with open(claim, "r+b") as f:
            f.seek(1024)
            f.write(info.tobuf(tarfile.GNU_FORMAT))
        assert [m.name for m in read_members(claim)] == ["a.txt"]


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x90" + b"\xff" * 11, b"-0000000001\0", b"hello world\0"])
def test_impossible_sizes_are_damage(tmp_path, size):
    file = write(tmp_path / "a.tar", [("a.txt", b"a"), ("b.txt", b"b")])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[124:136] = size
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 256 + sum(data[156:512]))
    (tmp_path / "a.tar").write_bytes(data)
    assert [(m.name, m.problem) for m in read_members(file)] == [("header at byte 0", "damaged header"), ("b.txt", "")]


def test_random_damage_raises_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    file = write(tmp_path / "a.tar", [("n" * 200 + f"{i}.txt", b"x" * 100) for i in range(3)], tarfile.PAX_FORMAT)
    good = (tmp_path / "a.tar").read_bytes()
    for _ in range(60):
        bad = bytearray(good)
        for at in rng.integers(0, len(good), 8):
            bad[at] = rng.integers(256)
        (tmp_path / "a.tar").write_bytes(bad[: rng.integers(len(bad))])
        try:
            assert all(m.start + m.size <= len(bad) for m in read_members(file))
        except BadShard:
            continue
