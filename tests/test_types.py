import dataclasses
import json

import numpy as np
import pytest

from embridge.errors import ParameterError, SpaceMismatchError
from embridge.types import DeclaredSpace, Hits, Metric, Space, resolve_space


def test_a_metric_is_its_name():
    assert [str(m) for m in Metric] == ["cosine", "dot", "l2"]
    assert Metric("l2") == "l2"


@pytest.mark.parametrize("metric", ["dot", Metric.DOT])
def test_a_space_goes_through_json(metric):
    space = Space("mpnet", np.int64(768), metric, np.bool_(True))
    text = json.dumps(space.to_dict())
    assert json.loads(text) == {"name": "mpnet", "dim": 768, "metric": "dot", "normalized": True}
    assert Space.from_dict(json.loads(text)) == space == Space("mpnet", 768, Metric.DOT, True)
    assert isinstance(space.metric, Metric)
    assert hash(space) == hash(Space("mpnet", 768, Metric.DOT, True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 3), "Space.name must be a non-empty string. Got '' instead"),
        (("m", 0), "Space.dim must be at least 1. Got 0 instead"),
        (("m", 3.5), "Space.dim must be an integer. Got 3.5 instead"),
        (("m", "3"), "Space.dim must be an integer. Got '3' instead"),
        (("m", 3, "manhattan"), "Space.metric must be one of cosine, dot, l2. Got 'manhattan' instead"),
    ],
)
def test_a_space_refuses(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Space(*arguments)


def test_a_space_does_not_change(make_space):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_space().dim = 3


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (Space("m", 3, Metric.DOT, True), True),
        (Space("m", 4), False),
        (Space("n", 3), False),  # same width is not same space
    ],
)
def test_spaces_are_the_same_by_name_and_width(other, same):
    assert Space("m", 3).same_as(other) is same
    assert other.same_as(Space("m", 3)) is same


@pytest.mark.parametrize(
    ("text", "name", "metric"),
    [
        ("mpnet", "mpnet", None),
        ("mpnet:dot", "mpnet", Metric.DOT),
        ("org/model:v2", "org/model:v2", None),
        ("org/model:v2:l2", "org/model:v2", Metric.L2),
        (":dot", ":dot", None),
        ("mpnet:", "mpnet:", None),
        ("mpnet:DOT", "mpnet:DOT", None),
    ],
)
def test_a_declaration_is_a_name_perhaps_with_a_metric(text, name, metric):
    assert DeclaredSpace.parse(text) == DeclaredSpace(name, metric)


FOUND = Space("?", 4, Metric.COSINE, normalized=True)
KNOWN = Space("minilm", 4, Metric.DOT, normalized=True)


@pytest.mark.parametrize(
    ("declared", "resolved"),
    [
        (None, None),
        ("m", Space("m", 4, Metric.COSINE, True)),
        ("m:l2", Space("m", 4, Metric.L2, True)),
        (DeclaredSpace("m", Metric.DOT), Space("m", 4, Metric.DOT, True)),
        (Space("m", 4, Metric.L2, False), Space("m", 4, Metric.L2, False)),
    ],
)
def test_a_file_without_metadata_has_the_declared_space(declared, resolved):
    assert resolve_space("'a'", declared, FOUND, is_known=False) == resolved


@pytest.mark.parametrize("declared", [None, "minilm", "minilm:dot", DeclaredSpace("minilm"), Space("minilm", 4, Metric.DOT, False)])
def test_the_space_in_metadata_is_used(declared):
    assert resolve_space("'a'", declared, KNOWN, is_known=True) == KNOWN


@pytest.mark.parametrize(
    ("declared", "found", "is_known", "message"),
    [
        ("mpnet", KNOWN, True, "'a' was declared as space 'mpnet', but its own metadata says space 'minilm'"),
        ("minilm:cosine", KNOWN, True, "metric 'cosine', but its own metadata says metric 'dot'"),
        (Space("minilm", 8, Metric.DOT), KNOWN, True, "dim 8, but its own metadata says dim 4"),
        (Space("m", 8), FOUND, False, "dim 8"),
    ],
)
def test_a_contradiction_is_refused(declared, found, is_known, message):
    with pytest.raises(SpaceMismatchError, match=message):
        resolve_space("'a'", declared, found, is_known=is_known)


def test_hits_leave_out_empty_places():
    hits = Hits(np.array([[4, 2, -1], [7, 8, 9]]), np.array([[0.5, 0.25, -np.inf], [3, 2, 1]], np.float32))
    assert len(hits) == 2
    assert hits.row(0) == ([4, 2], [0.5, 0.25])
    assert hits.row(1) == ([7, 8, 9], [3.0, 2.0, 1.0])
    with pytest.raises(ParameterError, match=r"Hits.scores must be of shape \(2, 3\). Got \(2, 2\) instead"):
        Hits(hits.ids, hits.scores[:, :2])
