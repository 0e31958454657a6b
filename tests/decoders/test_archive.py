"""Zip archives of decoders are read in one way only: what two readers could take differently is refused, and runs nothing."""

import io
import os
import pickle
import stat
import struct
import zipfile

import pytest
import skops.io
import torch
from sklearn.linear_model import LogisticRegression

import embridge as eb
from embridge.decoders import bounds
from embridge.decoders.archive import ArchiveError, read_archive, write_archive
from embridge.errors import DecoderError, UnreadableFileError
from tests.decoders.support import SPACE, Bomb, Net, exported, labeled
from tests.support import run

SAMPLES = "archive/data/sample_inputs/model.pt"


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def program():
    """Members of a good program, by their full names."""
    buffer = io.BytesIO()
    torch.export.save(exported(Net()), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members, **options):
    """An archive of (name, content) pairs, in which names may repeat."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def end_of(data):
    """Where the directory starts and its size."""
    *_, size, start, _ = struct.unpack("<4s4H2LH", data[-22:])
    return start, size


# Two archives in one: what the audit of 0.1 saw was harmless, what torch opened was not


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "last", [SAMPLES, SAMPLES.upper(), "archive/./data/sample_inputs/model.pt", "other/data/sample_inputs/model.pt"]
)
def test_a_repeated_member_is_refused_before_torch_sees_the_file(program, tmp_path, last):
    evil = saved((Bomb(tmp_path / "boom"),))
    others = [(name, content) for name, content in program.items() if name != SAMPLES]
    (tmp_path / "d.pt2").write_bytes(zipped([(SAMPLES, evil), (SAMPLES, evil), *others, (last, program[SAMPLES])]))
    done = run("decoder register d.pt2 --space taught --no-catalog", cwd=tmp_path)
    assert done.exit_code == 1
    assert "d.pt2" in done.stderr
    assert not (tmp_path / "boom").exists()


def test_a_second_directory_is_refused_before_torch_sees_the_file(program, tmp_path):
    evil, good = (dict(program) for _ in range(2))
    evil[SAMPLES] = saved((Bomb(tmp_path / "boom"),))
    evil["archive/extra/pad"], good["archive/extra/pad"] = b"", b""
    sizes = [end_of(zipped(members.items()))[0] for members in (evil, good)]
    shorter = evil if sizes[0] < sizes[1] else good
    shorter["archive/extra/pad"] = b"x" * abs(sizes[0] - sizes[1])
    one, other = zipped(evil.items()), zipped(good.items())
    start, size = end_of(one)
    assert end_of(other) == (start, size)
    both = one[:-22] + other[:-22] + one[-22:]  # its end record points at the first directory, and lies beside the second
    with zipfile.ZipFile(io.BytesIO(both)) as seen:
        assert seen.read(SAMPLES) == program[SAMPLES]
    (tmp_path / "d.pt2").write_bytes(both)
    with pytest.raises(UnreadableFileError, match=r"d\.pt2.* its directory .* does not end where its end record starts"):
        eb.open_decoder(tmp_path / "d.pt2", space=SPACE)
    assert not (tmp_path / "boom").exists()


def test_torch_reads_an_archive_of_what_was_audited_only(program, tmp_path):
    """Nothing that is left behind reaches torch: sample inputs, stack traces, extra files."""
    from embridge.decoders.torch_audit import audited_program

    data = audited_program("d.pt2", zipped([*program.items(), ("archive/extra/note", b"hello")]))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read(SAMPLES) == b""
        assert not any("extra" in name for name in archive.namelist())
        assert b"stack_trace" not in archive.read("archive/models/model.json")
        for name in program:
            if "/weight_" in name:
                assert archive.read(name) == program[name]


@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_bytes_that_belong_to_nothing_are_refused(program, tmp_path, place):
    whole = zipped(program.items())
    start, _ = end_of(whole)
    data = {"before": b"#!" + whole, "after": whole + b"\0" * 9, "between": whole[:start] + b"junk" + whole[start:]}[place]
    (tmp_path / "d.pt2").write_bytes(data)
    with pytest.raises(UnreadableFileError, match=r"d\.pt2"):
        eb.open_decoder(tmp_path / "d.pt2", space=SPACE)


# The strict form


PAIRS = [("a", b"first"), ("b/c", b"second" * 9)]


def changed(offset, value, *, at=b"PK\x01\x02", data=None):
    """An archive in which `value` is written `offset` bytes behind the first mark `at`."""
    data = bytearray(zipped(PAIRS) if data is None else data)
    place = data.index(at) + offset
    data[place : place + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(8, b"\x01\0"), "encrypted"),  # flags
        (changed(10, b"\x0c\0"), "compressed by method 12"),  # bzip2
        (changed(38, struct.pack("<L", stat.S_IFLNK << 16)), "a link, a folder or a device"),
        (changed(38, struct.pack("<L", 0x10)), "a link, a folder or a device"),
        (changed(42, struct.pack("<L", 1)), "bytes outside of all members, or in two"),
        (changed(46, b"z"), "contradicts the directory"),
        (changed(16, b"\0\0\0\0"), "contradicts the directory"),  # checksum
        (changed(30, b"z", at=b"PK\x03\x04"), "contradicts the directory"),
        (changed(24, b"\xff\xff\xff\xff"), "64-bit sizes"),
        (changed(8, b"\x07\0", at=b"PK\x05\x06"), "several disks"),
        (changed(20, b"\x01\0", at=b"PK\x05\x06"), "several disks, or has a comment"),
        (changed(35, b"x", at=b"PK\x03\x04"), "checksum"),
        (b"", "does not end"),
        (zipped(PAIRS)[:-1], "does not end"),
    ],
)
def test_an_archive_of_another_form_is_refused(data, message):
    with pytest.raises(ArchiveError, match=message):
        read_archive(data, compressed=True)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names",
    [["a", "a"], ["a", "A"], ["é", "é"], ["a", "a/b"], ["./a"], ["a/../b"], ["/a"], ["a//b"], ["a\\b"], ["C:a"], ["a\x01"], ["a/"],
     ["a ", "b"]],
)  # fmt: skip
def test_names_that_could_be_taken_for_others_are_refused(names):
    with pytest.raises(ArchiveError, match=r"same name|unsafe name|lies in another|a folder"):
        read_archive(zipped([(name, b"") for name in names]), compressed=True)


def test_overlapping_members_are_refused():
    data = bytearray(zipped([("a", b"x" * 50), ("b", b"x" * 50)]))
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    with pytest.raises(ArchiveError, match="or in two"):
        read_archive(bytes(data), compressed=True)


def test_an_archive_comes_back_as_it_was_written():
    members = {"a": b"", "b/c": os.urandom(1000)}
    assert read_archive(write_archive(members), compressed=False) == members
    deflated = zipped(members.items(), compression=zipfile.ZIP_DEFLATED)
    assert read_archive(deflated, compressed=True) == members
    with pytest.raises(ArchiveError, match="compressed by method 8"):
        read_archive(deflated, compressed=False)


def test_an_archive_that_grows_is_refused_before_it_does(tmp_path):
    bomb = zipped([("schema.json", b"{}"), ("0.npy", b"\0" * (80 << 20))], compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "d.skops").write_bytes(bomb)
    with pytest.raises(UnreadableFileError, match=r"d\.skops.* take 83,886,082 bytes when decompressed"):
        eb.open_decoder(tmp_path / "d.skops", space=SPACE)


def test_an_archive_of_too_many_members_is_refused(monkeypatch):
    monkeypatch.setattr("embridge.decoders.archive.MEMBERS", 3)
    with pytest.raises(ArchiveError, match="too long"):
        read_archive(zipped([(str(i), b"") for i in range(4)]), compressed=True)


def test_a_skops_file_is_read_strictly_too(tmp_path):
    x, y = labeled()
    good = skops.io.dumps(LogisticRegression().fit(x, y))
    (tmp_path / "d.skops").write_bytes(good + b"more")
    with pytest.raises(UnreadableFileError, match=r"d\.skops"):
        eb.open_decoder(tmp_path / "d.skops", space=SPACE)
    (tmp_path / "d.skops").write_bytes(good)
    assert eb.open_decoder(tmp_path / "d.skops", space=SPACE).decode(x).prediction.shape == y.shape


def test_a_file_that_is_too_large_or_no_file_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(UnreadableFileError, match="11 bytes, and at most 10"):
        bounds.read_bounded(str(tmp_path / "large"), "a decoder", 10)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFileError, match="not a regular file"):
        bounds.read_bounded(str(tmp_path / "pipe"), "a decoder")


def test_sample_inputs_that_are_more_than_tensors_are_named(program, tmp_path):
    for protocol in (2, 4):
        evil = zipped([("archive/data.pkl", pickle.dumps((Bomb(tmp_path / "boom"),), protocol))])
        (tmp_path / "d.pt2").write_bytes(zipped((program | {SAMPLES: evil}).items()))
        with pytest.raises(DecoderError, match="sample inputs that are more than tensors"):
            eb.open_decoder(tmp_path / "d.pt2", space=SPACE)
    assert not (tmp_path / "boom").exists()
