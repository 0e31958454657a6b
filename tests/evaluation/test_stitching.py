"""Stitching: what a decoder of the target is handed, by every method, and how the methods are compared."""

import dataclasses

import numpy as np
import pytest

import embridge as eb
from embridge.errors import BadVectorsError, ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.evaluation.stitching import METHODS_COMPARED, compare_stitching, stitch
from embridge.records import StitchingScore
from embridge.testing.translators import planted_anchors, textlike_anchors
from embridge.translators import METHODS, fit


def cosines(vectors, anchors):
    """Pair by pair, as the definition has it."""
    return np.array([[v @ a / np.linalg.norm(v) / np.linalg.norm(a) for a in anchors] for v in vectors])


def rotated(anchors, scale=3.0, seed=0):
    """The same anchors, their targets the sources under a planted rotation and a scale."""
    dim = anchors.source.dim
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    return dataclasses.replace(anchors, y=(scale * anchors.x @ q).astype(np.float32))


# --- Relative representations


def test_relative_vectors_are_cosines_to_the_anchors():
    rng = np.random.default_rng(0)
    vectors, anchors = rng.normal(size=(20, 6)), 5 * rng.normal(size=(9, 6)) + 1
    found = eb.relative(vectors, anchors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cosines(vectors, anchors), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.diag(eb.relative(anchors, anchors)), 1, rtol=0, atol=1e-6)


def test_relative_vectors_of_two_spaces_agree_up_to_rotation_and_scale():
    pair = rotated(planted_anchors(50, 8, 8))
    np.testing.assert_allclose(eb.relative(pair.x, pair.x[:20]), eb.relative(pair.y, pair.y[:20]), rtol=0, atol=1e-5)


def test_a_zero_vector_has_cosine_zero_to_everything():
    found = eb.relative(np.zeros((1, 3), np.float32), np.eye(3, dtype=np.float32))
    assert not found.any()


@pytest.mark.parametrize(
    ("vectors", "anchors", "error", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), SpaceMismatchError, "vectors expects 4-dimensional vectors. Got 3"),
        (np.ones((2, 3)), np.ones((0, 3)), ParameterError, "anchors must be at least one row"),
        (np.ones(3), np.ones((2, 3)), BadVectorsError, "vectors"),
        (np.ones((2, 3)), [["a", "b"]], BadVectorsError, "anchors"),
    ],
)
def test_what_relative_refuses(vectors, anchors, error, message):
    with pytest.raises(error, match=message):
        eb.relative(vectors, anchors)


# --- What a decoder is handed


@pytest.mark.parametrize("method", METHODS)
def test_a_translator_stitches_as_its_map_applies(method):
    anchors = planted_anchors(80, 6, 9, noise=0.3)
    expected = fit(anchors, method, role="decode").apply(anchors.x)
    np.testing.assert_array_equal(stitch(anchors.x, anchors, method), expected)


def test_auto_is_for_decoding():
    anchors = textlike_anchors(300, 12, 16)
    expected = fit(anchors, "auto", role="decode").apply(anchors.x)
    np.testing.assert_array_equal(stitch(anchors.x, anchors), expected)


@pytest.mark.parametrize(("p", "q"), [(6, 9), (9, 6), (8, 8)])
def test_absolute_pads_or_cuts(p, q):
    anchors = planted_anchors(20, p, q)
    found = stitch(anchors.x, anchors, "absolute")
    assert found.shape == (20, q)
    np.testing.assert_array_equal(found[:, : min(p, q)], anchors.x[:, : min(p, q)])
    assert not found[:, p:].any()


def test_relative_is_to_the_anchors_of_the_source():
    anchors = planted_anchors(20, 6, 9)
    np.testing.assert_array_equal(stitch(anchors.x[:5], anchors, "relative"), eb.relative(anchors.x[:5], anchors.x))


def test_l2_scaling_recovers_a_rotation_of_directions_and_the_mean_length():
    pair = rotated(planted_anchors(100, 8, 8))
    length = np.linalg.norm(pair.y, axis=1).mean()
    directions = pair.y / np.linalg.norm(pair.y, axis=1, keepdims=True)
    for method in ("ortho", "linear", "l-ortho"):
        found = stitch(7 * pair.x, pair, method, scaling="l2")  # the length of a row does not count
        np.testing.assert_allclose(found, length * directions, rtol=0, atol=1e-4 * length)


@pytest.mark.parametrize("method", ["absolute", "affine", "ridge", "bridge", "rotation"])
def test_under_l2_scaling_every_row_has_the_mean_length_of_the_target(method):
    anchors = planted_anchors(100, 6, 9)
    found = np.linalg.norm(stitch(anchors.x, anchors, method, scaling="l2"), axis=1)
    np.testing.assert_allclose(found, np.linalg.norm(anchors.y, axis=1).mean(), rtol=1e-5)


def test_under_l2_scaling_a_normalized_target_stays_so():
    anchors = textlike_anchors(100, 6, 9).unit()
    np.testing.assert_allclose(np.linalg.norm(stitch(anchors.x, anchors, "ortho", scaling="l2"), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("vectors", "method", "options", "error", "message"),
    [
        (np.ones((2, 6)), "procrustes", {}, ParameterError, "method must be one of absolute, relative, auto, bridge"),
        (np.ones((2, 6)), "ortho", {"scaling": "minmax"}, ParameterError, "scaling must be 'standard' or 'l2'"),
        (np.ones((2, 6)), "ortho", {"alpha": 1}, ParameterError, "'ortho' has no parameter 'alpha'"),
        (np.ones((2, 7)), "absolute", {}, SpaceMismatchError, "vectors expects 6-dimensional"),
        (np.ones((2, 7)), "relative", {}, SpaceMismatchError, "vectors expects 6-dimensional"),
    ],
)
def test_what_stitch_refuses(vectors, method, options, error, message):
    with pytest.raises(error, match=message):
        stitch(vectors, planted_anchors(30, 6, 9), method, **options)


# --- Methods side by side


def nearest_class(labels_train, labels_test):
    """A decoder with nothing to tune: the class whose mean is nearest by angle."""

    def train_decoder(vectors, seed):
        assert len(vectors) == len(labels_train)
        means = np.stack([vectors[labels_train == c].mean(0) for c in range(4)])
        return lambda rows: float((np.argmax(eb.relative(rows, means), axis=1) == labels_test).mean())

    return train_decoder


@pytest.fixture
def classes():
    """Four well separated classes in two rotated spaces, split; with the labels of both parts."""
    rng = np.random.default_rng(3)
    pair = planted_anchors(400, 8, 8)
    labels = rng.integers(4, size=400)
    x = 4 * np.eye(8)[labels] + 0.3 * rng.normal(size=(400, 8))
    pair = rotated(dataclasses.replace(pair, x=x.astype(np.float32)))
    train, test = pair.split(0.3)
    return train, test, labels[train.ids], labels[test.ids]


def test_every_method_but_the_absolute_one_undoes_a_rotation(classes):
    train, test, known, expected = classes
    found = compare_stitching(train, test, {"mean": nearest_class(known, expected)}, anchors=100, seeds=range(3))["mean"]
    assert [s.method for s in found.methods] == ["no-stitching", *METHODS_COMPARED]
    assert (found.anchors, found.scaling, found.seeds) == (100, "standard", (0, 1, 2))
    assert found["no-stitching"].mean == 1
    for method in ("relative", "linear", "l-ortho", "ortho", "ridge", "bridge"):
        assert found[method].scores == (1.0, 1.0, 1.0)
    assert found["absolute"].mean < 0.6
    assert "ortho            1.000   0.000" in str(found)
    with pytest.raises(KeyError):
        found["procrustes"]


def test_scores_are_those_of_the_steps_by_hand(classes):
    train, test, known, expected = classes
    train = dataclasses.replace(train, y=train.y + np.random.default_rng(0).normal(size=train.y.shape, scale=6).astype(np.float32))
    decoder = nearest_class(known, expected)
    decoders = {"mean": decoder, "other": lambda vectors, seed: lambda rows: float(rows.sum())}
    options = {"methods": ("relative", "ortho"), "anchors": 20, "scaling": "l2", "seeds": (4, 9)}
    both = compare_stitching(train, test, decoders, **options)
    assert list(both) == ["mean", "other"]
    found = both["mean"]
    for place, seed in enumerate((4, 9)):
        chosen = train.sample(20, seed)
        score = decoder(eb.relative(train.y, chosen.y), seed)(eb.relative(test.x, chosen.x))
        assert found["relative"].scores[place] == score
        handed = stitch(test.x, chosen, "ortho", scaling="l2")
        assert found["ortho"].scores[place] == decoder(train.y, seed)(handed)
        assert both["other"]["ortho"].scores[place] == float(handed.sum())
    assert found["ortho"].mean == pytest.approx(np.mean(found["ortho"].scores))
    assert found["ortho"].deviation == pytest.approx(np.std(found["ortho"].scores, ddof=1))


def test_a_decoder_is_trained_once_a_seed_and_once_more_for_relative(classes):
    train, test, *_ = classes
    seen, done = [], []

    def train_decoder(vectors, seed):
        seen.append((vectors.shape, seed))
        return lambda rows: 0.5

    options = {"anchors": 10**6, "methods": ("ortho", "relative"), "seeds": (1, 2)}
    compare_stitching(train, test, {"any": train_decoder}, progress=lambda n, of: done.append((n, of)), **options)
    n = len(train)
    assert seen == [((n, 8), 1), ((n, n), 1), ((n, 8), 2), ((n, n), 2)]
    assert done == [(i, 6) for i in range(1, 7)]


def test_a_single_seed_has_no_deviation():
    assert (StitchingScore("ortho", (0.5,)).mean, StitchingScore("ortho", (0.5,)).deviation) == (0.5, 0.0)


def test_what_the_comparison_refuses(classes):
    train, test, known, expected = classes
    decoder = {"mean": nearest_class(known, expected)}
    with pytest.raises(ParameterError, match=f"{len(train)} rows of the test set are in the training set too"):
        compare_stitching(train, train, decoder)
    with pytest.raises(ParameterError, match="seeds must be at least one"):
        compare_stitching(train, test, decoder, seeds=())
    with pytest.raises(ParameterError, match="decoders must be at least one"):
        compare_stitching(train, test, {})
    with pytest.raises(SpaceMismatchError, match="The comparison expects 8-dimensional vectors of 'planted-source'"):
        compare_stitching(train, test.reversed(), decoder)
    with pytest.raises(TooFewAnchorsError):
        compare_stitching(train, test.at(np.array([], np.int64)), decoder)
    with pytest.raises(ParameterError, match="method must be one of"):
        compare_stitching(train, test, decoder, methods=("ortho", "magic"))
