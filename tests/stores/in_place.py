"""What tests of migrations in place share: planted rows, and verbs that are interrupted or killed at one of their requests."""

import subprocess
from contextlib import closing, contextmanager

import numpy as np
import pytest

import embridge as eb
from embridge.arrays import unit
from embridge.conversion.in_place import migrate as engine
from embridge.maps import LinearMap
from embridge.stores.registry import store_of
from embridge.stores.uri import Location
from embridge.testing.writers import write
from embridge.types import Metric, Space

IDS = [f"row {i:03}" for i in range(150)]
ROWS = unit(np.random.default_rng(7).normal(size=(150, 6)).astype(np.float32))
OLD = Space("old", 6, Metric.COSINE, normalized=True)
MAP = LinearMap(np.random.default_rng(8).normal(size=(4, 6)), np.zeros(4), OLD, Space("new", 4, Metric.COSINE, normalized=True))
NEW_ROWS = unit(MAP.apply(ROWS))
_CHILD = """
import os, pydoc, signal, sys
import embridge as eb
from embridge.conversion.in_place import migrate

verb, uri, path, mode, resume, at, *targets = sys.argv[1:]
migrate.rows_of_group = lambda *_: 40
calls = []

def counted(plain):
    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **options)
    return call

for target in targets:
    owner, name = target.rsplit(".", 1)
    kind = pydoc.locate(owner)
    setattr(kind, name, counted(getattr(kind, name)))
if verb == "migrate":
    eb.migrate_in_place(uri, eb.load_map(path), mode=mode, resume=resume == "True")
else:
    getattr(eb, verb)(uri)
"""


def note_of(uri):
    """The note of a migration."""
    with closing(store_of(uri).in_place(Location.parse(uri))) as change:
        return change.note()


def migrate(uri, **options):
    """Start a migration, or continue it."""
    return eb.migrate_in_place(uri, MAP, resume=note_of(uri) is not None, **options)


def check(uri, name, ids=None, **options):
    """The vectors in use are those of a space, and right."""
    found = eb.open(uri, **options)
    expected = {"old": ROWS, "new": NEW_ROWS}[name]
    chosen = {i: n for n, i in enumerate(IDS) if ids is None or i in ids}
    read, values = found.read()
    assert found.space.name == name
    assert sorted(read.tolist()) == sorted(chosen)
    np.testing.assert_allclose(values, expected[[chosen[i] for i in read.tolist()]], atol=1e-5)
    rows = np.array(sorted(chosen.values()))[:5]
    assert found.search(expected[rows], 1).ids[:, 0].tolist() == [IDS[row] for row in rows]


def plant(uri, **options):
    """Write the rows into a new collection."""
    write(uri, IDS, ROWS, OLD, **options)


@contextmanager
def many_writes():
    """Migrations write 80 rows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "rows_of_group", lambda *_: 80)
        yield


@contextmanager
def interrupted(targets, at):
    """A KeyboardInterrupt in place of the request `at` of all that `targets` (class, method) send; yields their list."""
    calls = []

    def counted(plain):
        def call(*arguments, **options):
            calls.append(plain.__name__)
            if len(calls) == at:
                raise KeyboardInterrupt
            return plain(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for kind, name in targets:
            patch.setattr(kind, name, counted(getattr(kind, name)))
        yield calls


LIFE = (
    (migrate, "old"),
    (eb.cutover, "new"),
    (eb.rollback, "old"),
    (eb.cutover, "new"),
    (lambda uri: eb.drop_vector(uri, "old"), "new"),
)


def survives_interrupts(make, targets, check_interrupted, **options):
    """A whole migration is right at the end, whichever of its requests was the last before it was interrupted and repeated.

    Parameters
    ----------
    make : callable
        Makes a new collection with the planted rows; its URI.
    targets : list of (class, method)
    check_interrupted : callable
        Called with the URI and the number of the step that was interrupted, before it is repeated.

    Returns
    -------
    int
        Requests of the whole migration.
    """
    at, sent = 0, 1
    while at < sent:
        at += 1
        uri = make()
        with many_writes(), interrupted(targets, at) as calls:
            for number, (step, name) in enumerate(LIFE):
                kept = {} if number else options
                try:
                    step(uri, **kept)
                except KeyboardInterrupt:
                    check_interrupted(uri, number)
                    if not is_done(uri, step):
                        step(uri, **kept)
                    check(uri, name)
        check(uri, LIFE[-1][1])
        sent = len(calls)
    return sent


def is_done(uri, step):
    """The old vectors were removed before the interrupt came."""
    note = note_of(uri)
    return step is LIFE[-1][0] and note is not None and note.stage == "finished"


def is_killed(commands, verb, uri, map_path, mode, targets, at):
    """Whether a process that runs a verb was killed, by SIGKILL at its request `at`; `commands` as the fixture."""
    resume = str(note_of(uri) is not None)
    names = [f"{kind.__module__}.{kind.__qualname__}.{name}" for kind, name in targets]
    done = subprocess.run(
        [commands / "python-c", _CHILD, verb, uri, str(map_path), mode, resume, str(at), *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9
