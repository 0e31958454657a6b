"""Ray for tests: a cluster of two nodes on this machine, and its worker processes."""

import contextlib
import os
import signal
import time
from pathlib import Path

from embridge.ray import RayBackend, connected

WAIT = 120  # seconds for something that takes one on a machine with nothing else to do


@contextlib.contextmanager
def two_nodes():
    """A cluster of two nodes with one core each, and a connection to it, which backends of embridge use."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"include_dashboard": False, "num_cpus": 1, "object_store_memory": 128 << 20}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=quiet)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=128 << 20)
        with connected(RayBackend(cluster.address)):
            yield cluster
    finally:
        cluster.shutdown()


def stop_one(writes, nodes):
    """Stop (SIGSTOP) a worker of some nodes while it has a file open whose path ends in `writes`; its process id."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        for process in children(nodes):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGSTOP)
                if any(os.readlink(f"/proc/{process}/fd/{fd}").endswith(writes) for fd in os.listdir(f"/proc/{process}/fd")):
                    return process
                os.kill(process, signal.SIGCONT)
        time.sleep(0.002)
    raise AssertionError(f"no worker wrote {writes}")


def children(nodes):
    """Process ids of the workers of some nodes."""
    found = []
    for node in nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        for thread in Path(f"/proc/{raylet}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return [process for process in found if is_task(process)]


def is_task(process):
    """True for a worker that runs a task of embridge; others must not be stopped."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::embridge")
    except OSError:
        return False
