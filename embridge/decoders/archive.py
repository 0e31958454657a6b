"""Zip archives read strictly: every byte belongs to exactly one part, so all readers agree on the content.

Zip readers differ in which end record, which directory and which of two equal names they take. Here an archive is a sequence of
members without gaps, then one directory, then one end record. Other forms are refused, and the file opened later is a new
archive of the checked members.
"""

from __future__ import annotations

import io
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass

from embridge.decoders.bounds import EXPANDED_BYTES, MEMBERS, RATIO, SMALL_BYTES

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIBED, _UTF8, _DEFLATE_LEVEL = 0x8, 0x800, 0x6
_PADDING = 0x4246  # "FB": with it torch aligns tensors
_TIMES = 0x5455  # "UT": written by Info-ZIP


class ArchiveError(ValueError):
    """An archive that is not of the strict form."""


@dataclass(frozen=True)
class _Entry:
    """A member as the directory describes it."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def read_archive(data: bytes, *, compressed: bool) -> dict[str, bytes]:
    """The members of an archive, by name.

    Parameters
    ----------
    data : bytes
    compressed : bool
        Allow deflated members beside stored ones.

    Raises
    ------
    ArchiveError
        Not a zip archive of the strict form, or beyond a bound. Nothing is decompressed before the bounds are checked.
    """
    entries, directory = _entries(data)
    _check_names([entry.name for entry in entries])
    total = sum(entry.size for entry in entries)
    if total > min(EXPANDED_BYTES, max(SMALL_BYTES, RATIO * len(data))):
        raise ArchiveError(f"its members take {total:,} bytes when decompressed, {total / len(data):,.0f} times its size")
    members, position = {}, 0
    for entry in sorted(entries, key=lambda e: e.offset):
        if entry.offset != position:
            raise ArchiveError(f"there are bytes outside of all members, or in two members, at {min(position, entry.offset):,}")
        if entry.method not in ((0, 8) if compressed else (0,)):
            raise ArchiveError(f"the member {entry.name!r} is compressed by method {entry.method}")
        packed, position = _packed(data, entry, directory)
        members[entry.name] = _unpacked(entry, packed)
    if position != directory:
        raise ArchiveError("there are bytes outside of all members before its directory")
    return members


def write_archive(members: dict[str, bytes]) -> bytes:
    """A new archive of these members, stored."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _entries(data: bytes) -> tuple[list[_Entry], int]:
    """The directory's entries, and where it starts."""
    at = len(data) - _END.size
    if at < 0 or data[at : at + 4] != b"PK\x05\x06":
        raise ArchiveError("it does not end with the end record of a zip archive")
    _, disk, first, here, count, size, start, comment = _END.unpack_from(data, at)
    if disk or first or here != count or comment:
        raise ArchiveError("its end record spans several disks, or has a comment")
    end = at
    if data[at - _LOCATOR.size : at - _LOCATOR.size + 4] == b"PK\x06\x07" and at >= _LOCATOR.size + _END64.size:
        end = at - _LOCATOR.size - _END64.size
        _, disk, where, disks = _LOCATOR.unpack_from(data, at - _LOCATOR.size)
        mark, length, _, _, disk64, first64, here64, count64, size64, start64 = _END64.unpack_from(data, end)
        same = (here64, count64, size64, start64) == (count, count, size, start)
        if (
            mark != b"PK\x06\x06"
            or where != end
            or length != _END64.size - 12
            or disk
            or disk64
            or first64
            or disks > 1
            or not same
        ):
            raise ArchiveError("its two end records contradict each other")
    if start + size != end or count > MEMBERS:
        raise ArchiveError(f"its directory of {count:,} members does not end where its end record starts, or is too long")
    entries, at = [], start
    for _ in range(count):
        if at + _ENTRY.size > end:
            raise ArchiveError("its directory is cut off")
        mark, by, _, flags, method, _, _, crc, packed, full, name, extra, note, disk, _, mode, offset = _ENTRY.unpack_from(data, at)
        raw = data[at + _ENTRY.size : at + _ENTRY.size + name]
        _check_extra(data[at + _ENTRY.size + name : at + _ENTRY.size + name + extra])
        at += _ENTRY.size + name + extra + note
        if mark != b"PK\x01\x02" or note or disk or 0xFFFFFFFF in (packed, full, offset) or len(raw) != name:
            raise ArchiveError("its directory is damaged, or its members have comments or 64-bit sizes")
        if flags & ~(_DESCRIBED | _UTF8 | _DEFLATE_LEVEL) or (method == 0 and packed != full):
            raise ArchiveError("a member is encrypted, or of an unknown kind")
        kind = stat.S_IFMT(mode >> 16) if by >> 8 == 3 else 0
        if kind not in (0, stat.S_IFREG) or mode & 0x10:
            raise ArchiveError("a member is a link, a folder or a device")
        entries.append(_Entry(_decoded(raw), raw, flags, method, crc, packed, full, offset))
    if at != end:
        raise ArchiveError("its directory holds more than its members")
    return entries, start


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ArchiveError("a member's name is not UTF-8") from None


def _check_extra(extra: bytes) -> None:
    """Refuse extra fields that change what a member is, such as 64-bit sizes, other names, or encryption."""
    at = 0
    while at < len(extra):
        if at + 4 > len(extra):
            raise ArchiveError("a member has a damaged extra field")
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4 + length
        if kind not in (_PADDING, _TIMES) or at > len(extra):
            raise ArchiveError(f"a member has an extra field of the unknown kind {kind:#06x}")


def _check_names(names: list[str]) -> None:
    """Refuse names that readers or file systems could treat as equal, or as a path outside of the archive."""
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        odd = "\\" in name or ":" in name or not name.isprintable()
        if odd or any(part in ("", ".", "..") or part != part.strip(" ") or part.endswith(".") for part in parts):
            raise ArchiveError(f"it has a member with the unsafe name {name[:80]!r}")
        key = unicodedata.normalize("NFKC", name).casefold()
        if key in seen:
            raise ArchiveError(f"two members have the same name: {seen[key][:80]!r} and {name[:80]!r}")
        seen[key] = name
    for key, name in seen.items():
        parts = key.split("/")
        if any("/".join(parts[:i]) in seen for i in range(1, len(parts))):
            raise ArchiveError(f"the member {name[:80]!r} lies in another member")


def _packed(data: bytes, entry: _Entry, end: int) -> tuple[bytes, int]:
    """A member's bytes as they are stored, and where the next one starts; its own header must agree with the directory."""
    start = entry.offset + _LOCAL.size
    if start > end:
        raise ArchiveError(f"the member {entry.name!r} is cut off")
    mark, _, flags, method, _, _, crc, packed, size, name, extra = _LOCAL.unpack_from(data, entry.offset)
    stated, given = (entry.crc, entry.packed, entry.size), (crc, packed, size)
    if flags & _DESCRIBED and given == (0, 0, 0):
        given = stated
    own = data[start : start + name]
    if mark != b"PK\x03\x04" or own != entry.raw_name or (flags, method) != (entry.flags, entry.method) or given != stated:
        raise ArchiveError(f"the header of the member {entry.name!r} contradicts the directory")
    _check_extra(data[start + name : start + name + extra])
    start += name + extra
    position = start + entry.packed
    if flags & _DESCRIBED:
        described = struct.pack("<4s3L", b"PK\x07\x08", *stated)
        if data[position : position + 16] != described:
            raise ArchiveError(f"the data of the member {entry.name!r} are not followed by their descriptor")
        position += 16
    if position > end:
        raise ArchiveError(f"the member {entry.name!r} is cut off")
    return data[start : start + entry.packed], position


def _unpacked(entry: _Entry, packed: bytes) -> bytes:
    if entry.method == 8:
        stream = zlib.decompressobj(-15)
        try:
            packed = stream.decompress(packed, entry.size + 1)
        except zlib.error as e:
            raise ArchiveError(f"the member {entry.name!r} cannot be decompressed: {e}") from e
        if not stream.eof or stream.unused_data or stream.unconsumed_tail:
            raise ArchiveError(f"the member {entry.name!r} has another size than its header states")
    if len(packed) != entry.size or zlib.crc32(packed) != entry.crc:
        raise ArchiveError(f"the member {entry.name!r} does not match its checksum")
    return packed
