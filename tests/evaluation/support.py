"""Data and functions for the tests of evaluations."""

import embridge as eb
from embridge.types import Space

OLD, NEW = Space("old", 6), Space("new", 9)


def anchors_of(ids, x, y, source=OLD, target=NEW):
    return eb.match(eb.MemoryCollection(ids, x, source), eb.MemoryCollection(ids, y, target))
