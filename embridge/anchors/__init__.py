"""Rows of two collections that share an id."""

from embridge.anchors.matching import Anchors as Anchors
from embridge.anchors.matching import match as match
from embridge.anchors.sample import sample_rows as sample_rows
from embridge.stores.fetching import ids_at as ids_at
