"""Every file-system call of a process, held before the kernel runs it: then let through, failed, or the process killed.

The process installs a seccomp filter that reports calls which change files (`seccomp_unotify(2)`, Linux 5.5) to whoever holds its
listener. The kernel sees every call, of every thread and of native code (FAISS, Arrow, DuckDB, safetensors), in one order. So
"before the n-th call" is exact, and two processes can be interleaved without any clock.
"""

from __future__ import annotations

import ctypes
import dataclasses
import fcntl
import functools
import os
import platform
import select
import struct
from collections.abc import Iterator

# Numbers of system calls by machine; a call that a machine does not have is left out.
_NUMBERS = {
    "x86_64": (0xC000003E, 317, {
        "write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "pwritev2": 328, "sendfile": 40, "copy_file_range": 326,
        "fsync": 74, "fdatasync": 75, "ftruncate": 77, "fallocate": 285, "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86,
        "unlink": 87, "symlink": 88, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
        "renameat2": 316, "truncate": 76, "open": 2, "openat": 257,
    }),
    "aarch64": (0xC00000B7, 277, {
        "write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "pwritev2": 287, "sendfile": 71, "copy_file_range": 285,
        "fsync": 82, "fdatasync": 83, "ftruncate": 46, "fallocate": 47, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36,
        "linkat": 37, "renameat": 38, "renameat2": 276, "truncate": 45, "openat": 56,
    }),
}  # fmt: skip
# Which arguments of a call name files: (a descriptor), (a path), or (a folder's descriptor, a path in it).
_BY_DESCRIPTOR = {"write": 0, "pwrite64": 0, "writev": 0, "pwritev": 0, "pwritev2": 0, "sendfile": 0, "copy_file_range": 2,
                  "fsync": 0, "fdatasync": 0, "ftruncate": 0, "fallocate": 0}  # fmt: skip
_BY_PATH = {"rename": (0, 1), "mkdir": (0,), "rmdir": (0,), "link": (0, 1), "unlink": (0,), "symlink": (1,), "truncate": (0,),
            "open": (0,)}  # fmt: skip
_BY_FOLDER = {"mkdirat": ((0, 1),), "unlinkat": ((0, 1),), "renameat": ((0, 1), (2, 3)), "linkat": ((0, 1), (2, 3)),
              "symlinkat": ((1, 2),), "renameat2": ((0, 1), (2, 3)), "openat": ((0, 1),)}  # fmt: skip
_FLAGS_OF_OPEN = {"open": 1, "openat": 2}  # argument that holds them: only an opening that makes or empties a file is reported
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE = struct.Struct("=QIIiIQ6Q")
_ALLOW, _NOTIFY, _CONTINUE = 0x7FFF0000, 0x7FC00000, 1
_AT_FDCWD = -100


def why_not() -> str | None:
    """Why processes cannot be held at a gate on this machine, or None."""
    if platform.system() != "Linux" or platform.machine() not in _NUMBERS:
        return f"seccomp listeners are used on Linux, x86_64 or aarch64; this is {platform.system()} on {platform.machine()}"
    child = os.fork()
    if child == 0:
        try:
            install()
        except OSError as e:
            os._exit(e.errno or 1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"the kernel or a container refuses seccomp listeners: {os.strerror(status)}" if status else None


def install(*, reads: bool = False) -> int:
    """Report calls of this process, and of all it starts, from now on; the descriptor of the listener.

    With `reads`, openings for reading are reported too.
    """
    arch, seccomp, numbers = _NUMBERS[platform.machine()]
    program = _program(arch, numbers, reads=reads)
    code = ctypes.create_string_buffer(b"".join(program), 8 * len(program))
    head = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, filter_mode, new_listener = 38, 1, 8
    if libc.prctl(no_new_privileges, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener = libc.syscall(seccomp, filter_mode, new_listener, ctypes.c_char_p(head))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _program(arch: int, numbers: dict[str, int], *, reads: bool) -> list[bytes]:
    """A BPF program: notify of the calls named, let all others pass."""

    def line(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    body: list[bytes] = []
    for name, number in numbers.items():
        if name in _FLAGS_OF_OPEN and not reads:
            flags = 16 + 8 * _FLAGS_OF_OPEN[name]
            body += [line(equal, number, 0, 4), line(load, flags), line(any_bit, os.O_CREAT | os.O_TRUNC, 0, 1)]
            body += [line(give, _NOTIFY), line(give, _ALLOW)]
        else:
            body += [line(equal, number, 0, 1), line(give, _NOTIFY)]
    start = [line(load, 4), line(equal, arch, 1, 0), line(give, _ALLOW), line(load, 0)]
    return [*start, *body, line(give, _ALLOW)]


@dataclasses.dataclass(frozen=True)
class Call:
    """A system call that waits at the gate."""

    listener: int
    number: int
    name: str
    paths: tuple[str, ...]

    def allow(self) -> None:
        """Let the kernel run it."""
        self._answer(0, _CONTINUE)

    def fail(self, error: int) -> None:
        """Let it return an error, such as ENOSPC, without being run."""
        self._answer(-error, 0)

    def _answer(self, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self.listener, _SEND, struct.pack("=QqiI", self.number, 0, error, flags))
        except (FileNotFoundError, ConnectionRefusedError):  # the process was killed while it waited
            return

    def __str__(self) -> str:
        return f"{self.name}({' -> '.join(os.path.basename(path) for path in self.paths)})"


def waiting(listener: int, timeout: float) -> bool | None:
    """True where a call waits, None where none ever will again, False where neither is known after so many seconds."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    found = poll.poll(timeout * 1000)
    if not found:
        return False
    return True if found[0][1] & select.POLLIN else None


def receive(listener: int) -> Call | None:
    """The next call that waits; None where its process was killed meanwhile."""
    buffer = bytearray(_NOTICE.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except FileNotFoundError:
        return None
    number, thread, _, call, _, _, *arguments = _NOTICE.unpack(buffer)
    name = _names()[call]
    return Call(listener, number, name, tuple(_paths(thread, name, arguments)))


@functools.cache
def _names() -> dict[int, str]:
    return {number: name for name, number in _NUMBERS[platform.machine()][2].items()}


def _paths(thread: int, name: str, arguments: list[int]) -> Iterator[str]:
    try:
        if name in _BY_DESCRIPTOR:
            yield os.readlink(f"/proc/{thread}/fd/{_signed(arguments[_BY_DESCRIPTOR[name]])}")
        for place in _BY_PATH.get(name, ()):
            yield _within(thread, _AT_FDCWD, _text(thread, arguments[place]))
        for folder, place in _BY_FOLDER.get(name, ()):
            yield _within(thread, _signed(arguments[folder]), _text(thread, arguments[place]))
    except OSError:  # a closed descriptor, a bad address: the call itself will fail
        return


def _signed(value: int) -> int:
    return ctypes.c_int32(value & 0xFFFFFFFF).value


def _text(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        data = memory.read(min(4096, 0x1000 - address % 0x1000))  # up to the end of its page, which must be there
        if b"\0" not in data:
            data += memory.read(4096)
    return os.fsdecode(data.partition(b"\0")[0])


def _within(thread: int, folder: int, path: str) -> str:
    if os.path.isabs(path):
        return os.path.normpath(path)
    base = os.readlink(f"/proc/{thread}/cwd" if folder == _AT_FDCWD else f"/proc/{thread}/fd/{folder}")
    return os.path.normpath(os.path.join(base, path))
