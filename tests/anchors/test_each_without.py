"""Moments of all parts but one, kept for several choices on the same folds."""

import numpy as np

from embridge.anchors import Anchors
from embridge.anchors.moments import ARRAYS
from embridge.records import AnchorRecord
from embridge.translators import Auto
from embridge.translators.scoring import QueryPairs
from embridge.types import Space
from tests.support import planted


def made(n):
    ids, x, y, _ = planted(n, noise=0.3)
    return Anchors(ids, x, y, Space("old", x.shape[1]), Space("new", y.shape[1]), AnchorRecord("", "", n, n, 0, 0.0, 0))


def test_they_are_those_of_without_and_computed_once():
    folds = made(200).folds(full=True)
    kept = folds.each_without()
    assert all(one is again for one, again in zip(kept, folds.each_without(), strict=True))
    assert folds.total() is folds.total()
    for number, moments in enumerate(kept):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(moments, name), getattr(folds.without(number), name))


def test_two_choices_on_the_same_folds_are_those_on_folds_of_their_own():
    anchors = made(900)
    folds = anchors.folds(full=True)
    for half in (slice(0, 60), slice(60, 120)):
        queries = QueryPairs(anchors.x[half] + np.float32(0.1), anchors.y[half])
        shared = Auto("documents", True, queries).fit(anchors, moments=folds)
        assert shared.fingerprint == Auto("documents", True, queries).fit(anchors).fingerprint
        assert [c.score for c in shared.record.candidates] == [
            c.score for c in Auto("documents", True, queries).fit(anchors).record.candidates
        ]
