"""Merging native and translated rows into one collection."""

from embridge.merging.merge import merge as merge
