"""Commands in processes that are forked from one that has imported everything: they start within milliseconds instead of seconds.

`commands` gives a folder to put on PATH. Its ``embridge`` is the installed command, its ``python-c`` stands for ``python -c``.
Arguments, folder, environment, streams and the way they end are those of any command; signals are not passed on.
"""

import contextlib
import socket
import subprocess
import sys
import tempfile

# A client passes its own streams on and ends as the process that works for it. It imports next to nothing.
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"0"], [0, 1, 2])
    server.sendall(json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    status = int(server.recv(16))
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
SERVER = """
import atexit, gc, json, os, signal, socket, sys, traceback
import duckdb, faiss, pyarrow.compute, pyarrow.dataset, pyarrow.parquet, rich.progress, scipy.linalg, torch
import embridge
from embridge.cli.main import main
for name in embridge.__all__:
    getattr(embridge, name)
for verb in main.list_commands(None):
    main.get_command(None, verb)
gc.freeze()
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    connection, _ = listener.accept()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if os.fork():
        connection.close()
    elif worker := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        connection.sendall(b"%d" % status)
        os._exit(0)
    else:
        break
listener.close()
_, streams, *_ = socket.recv_fds(connection, 1, 3)
with connection, connection.makefile() as lines:
    name, arguments, folder, environment = json.loads(lines.readline())
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
sys.stdin, sys.stdout, sys.stderr = (open(number, mode, 1 + (number < 2), closefd=False) for number, mode in enumerate("rww"))
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
sys.argv = [name, *arguments]
status = 0
try:
    if name == "embridge":
        main()
    else:
        sys.argv[:2] = ["-c"]
        sys.path.insert(0, "")
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
except SystemExit as e:
    status = e.code or 0
except BaseException:
    traceback.print_exc()
    status = 1
atexit._run_exitfuncs()
sys.stdout.flush()
os._exit(status)  # taking all modules down would take longer than most commands
"""


@contextlib.contextmanager
def commands(folder):
    """The folder with both commands, which work until the end of the ``with``."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # the path of a socket has at most 100 characters or so
        yield from _served(folder, f"{place}/socket")


def _served(folder, address):
    for name in ("embridge", "python-c"):
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=address, name=name))
        (folder / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        number = listener.fileno()
        streams = dict.fromkeys(("stdin", "stdout"), subprocess.DEVNULL)
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(number)], pass_fds=[number], **streams)
    try:
        yield folder
    finally:
        server.kill()
        server.wait()
