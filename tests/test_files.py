import errno
import hashlib
import io
import os
import subprocess

import pytest

from embridge import files
from embridge.errors import DiskFullError, OutputError
from embridge.files import fingerprint, hash_content, whole_or_absent

MIB = 1 << 20


def test_an_output_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "out.bin"
    path.write_text("old")
    with whole_or_absent(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("was_there", [False, True])
def test_a_failed_output_leaves_everything_as_it_was(tmp_path, exception, was_there):
    path = tmp_path / "out.bin"
    if was_there:
        path.write_text("old")

    def fail():
        with whole_or_absent(str(path)) as temporary:
            temporary.write_text("half")
            raise exception

    with pytest.raises(exception):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == (["old"] if was_there else [])


def test_an_output_that_was_never_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="wrote nothing"), whole_or_absent(tmp_path / "out.bin"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_output_do_not_share_a_temporary_name(tmp_path):
    with whole_or_absent(tmp_path / "a") as one, whole_or_absent(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"  # the last to leave


def test_it_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (events.append(("fsync", os.fstat(d).st_ino)), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("rename", os.stat(a).st_ino)), replace(a, b)))
    with whole_or_absent(tmp_path / "a") as temporary:
        temporary.write_text("x")
    file, folder = (tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino
    assert events == [("fsync", file), ("rename", file), ("fsync", folder)]


def test_a_fingerprint_is_blake2b_of_size_and_content(tmp_path):
    (tmp_path / "a").write_bytes(b"hello")
    expected = hashlib.blake2b((5).to_bytes(8, "little") + b"hello", digest_size=16).hexdigest()
    assert fingerprint(tmp_path / "a") == expected
    (tmp_path / "b").write_bytes(b"hello")
    assert fingerprint(tmp_path / "b") == expected


def test_a_fingerprint_depends_on_where_one_file_ends(tmp_path):
    contents = {"a": b"xy", "b": b"z", "c": b"x", "d": b"yz"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (tmp_path / name for name in contents)
    assert len({fingerprint(a, b), fingerprint(b, a), fingerprint(c, d), fingerprint(a), fingerprint()}) == 5


def sparse(path, size, **at):
    with open(path, "wb") as file:
        file.truncate(size)
        for position, byte in at.items():
            file.seek(int(position[1:]))
            file.write(byte)
    return path


def test_large_files_are_sampled(tmp_path):
    """Over 64 MiB: the size, the first and the last block and what lies evenly between count, the rest does not."""
    size = 300 * MIB
    plain = fingerprint(sparse(tmp_path / "a", size))
    assert fingerprint(sparse(tmp_path / "b", size)) == plain
    step = (size - (64 << 10)) / 1023
    seen = {0, size - 1, int(step) + 100, int(500 * step) + 100}
    for position in seen:
        assert fingerprint(sparse(tmp_path / "c", size, **{f"_{position}": b"x"})) != plain
    assert fingerprint(sparse(tmp_path / "c", size + 1)) != plain
    assert fingerprint(sparse(tmp_path / "c", size, **{f"_{int(500.5 * step) + 100}": b"x"})) == plain


def test_sampling_reads_the_same_amount_at_any_size():
    class Counting(io.RawIOBase):
        def __init__(self):
            self.bytes, self.reads, self.last = 0, 0, 0

        def seek(self, position, whence=0):
            self.last = max(self.last, position)
            return position

        def read(self, size=-1):
            self.bytes, self.reads = self.bytes + size, self.reads + 1
            return bytes(16)

    for size in (64 * MIB + 1, 10**12):
        file = Counting()
        hash_content(file, size, hashlib.blake2b())
        assert (file.reads, file.bytes) == (1024, 64 * MIB)
        assert file.last == size - (64 << 10)


def test_up_to_the_limit_every_byte_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_WHOLE", 3 * MIB)
    digests = {fingerprint(sparse(tmp_path / "a", 3 * MIB, **{f"_{p}": b"x"})) for p in (0, 1_500_001, 3 * MIB - 1)}
    assert len(digests | {fingerprint(sparse(tmp_path / "a", 3 * MIB))}) == 4


def test_a_planted_temporary_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "00" * n)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".out.bin.{os.getpid()}-{files._started(os.getpid())}-00000000.tmp").symlink_to(victim)
    with pytest.raises(OutputError), whole_or_absent(tmp_path / "out.bin") as temporary:
        temporary.write_text("redirected")
    assert victim.read_text() == "mine"


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(commands, tmp_path):
    code = (
        "import os, signal, sys\nfrom embridge.files import whole_or_absent\n"
        "with whole_or_absent(sys.argv[1]) as t:\n    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([commands / "python-c", code, str(tmp_path / "out.bin")], check=False).returncode == -9
    assert len(list(tmp_path.glob(".out.bin.*.tmp"))) == 1
    with whole_or_absent(tmp_path / "out.bin") as one:
        one.write_text("one")
        with whole_or_absent(tmp_path / "out.bin") as other:
            other.write_text("other")
            assert one.exists()
        assert (tmp_path / "out.bin").read_text() == "other"
    assert (tmp_path / "out.bin").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


def test_a_process_number_that_is_used_again_does_not_keep_a_dead_file(tmp_path):
    """In containers numbers are small, and the next process often has the same one."""
    (tmp_path / f".out.bin.{os.getpid()}-1-00000000.tmp").write_text("half")
    mine = tmp_path / f".out.bin.{os.getpid()}-{files._started(os.getpid())}-00000000.tmp"
    mine.write_text("of this process, by a library that replaced the locked file")
    with whole_or_absent(tmp_path / "out.bin") as temporary:
        temporary.write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == {"out.bin", mine.name}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFullError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFullError),
        (RuntimeError("Error in faiss: write error in x.faiss: 0 != 5 (No space left on device)"), DiskFullError),
        (RuntimeError('Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "..." }'), DiskFullError),
        (RuntimeError("could not open x.faiss for writing: No such file or directory"), OutputError),
        (OSError(errno.EROFS, "Read-only file system"), OutputError),
    ],
)
def test_whatever_keeps_an_output_from_being_written_names_the_output(tmp_path, raised, expected):
    with pytest.raises(expected, match=r"out\.bin"), whole_or_absent(tmp_path / "out.bin"):
        raise raised
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_of_writing_passes(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_or_absent(tmp_path / "out.bin"):
        raise ZeroDivisionError("division by zero")
