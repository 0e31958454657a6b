"""Native and translated rows in one collection."""

from embridge.merging.merge import merge as merge
