"""Estimators in skops files that are made to crash or to hang, and declarations that are damaged: each is an error with a name."""

import contextlib
import io
import json
import os
import pickle

import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC

import embridge as eb
from embridge.decoders.archive import read_archive, write_archive
from embridge.decoders.bounds import DEPTH, parse_json
from embridge.decoders.retrain import retrain
from embridge.errors import DecoderError, EmbridgeError, UnreadableFileError
from tests.decoders.support import SPACE, Bomb, P, labeled


def rewritten(model, path, edit):
    """A skops file of which `edit` changed the members, with valid checksums."""
    members = read_archive(skops.io.dumps(model), compressed=True)
    schema = json.loads(members["schema.json"])
    edit(members, schema)
    members["schema.json"] = json.dumps(schema).encode()
    path.write_bytes(write_archive(members))
    return path


def attributes(schema):
    return schema["content"]["content"]


def array_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def replaced(name, array):
    def edit(members, schema):
        members["forged.npy"] = array_bytes(array)
        attributes(schema)[name] |= {"file": "forged.npy", "__id__": 77}

    return edit


FORGED = [
    (SVC(), "_n_support", np.array([10**6, 10**6, 10**6], np.int32)),
    (SVC(), "support_", np.arange(10**5, dtype=np.int32)),
    (SVC(), "support_vectors_", np.ones((2, P))),
    (SVC(), "_dual_coef_", np.ones((1, 3))),
    (SVC(), "_intercept_", np.ones(1)),
    (SVR(), "_dual_coef_", np.ones((1, 3))),
    (KMeans(3, n_init=1), "cluster_centers_", np.ones((3, 1))),
    (KNeighborsClassifier(algorithm="brute"), "_y", np.full(300, 10**9)),
    (KNeighborsClassifier(algorithm="brute"), "_y", np.zeros(3, np.int64)),
    (KNeighborsClassifier(algorithm="brute"), "_fit_X", np.ones((300, 2), np.float32)),
]


@pytest.mark.parametrize(("model", "name", "array"), FORGED, ids=[f"{type(m).__name__}-{n}" for m, n, _ in FORGED])
def test_numbers_that_compiled_code_would_follow_out_of_its_arrays_are_refused(tmp_path, model, name, array):
    x, y = labeled()
    model.fit(x, x[:, 0] if isinstance(model, SVR) else y)
    path = rewritten(model, tmp_path / "d.skops", replaced(name, array))
    with pytest.raises(DecoderError, match=rf"d\.skops.*{type(model).__name__} that is inconsistent: .*_"):
        eb.open_decoder(path, space=SPACE)
    skops.io.dump(model, path)
    found = eb.open_decoder(path, space=SPACE).decode(x).prediction
    assert (
        np.allclose(found, model.predict(x), atol=1e-5) if found.dtype.kind == "f" else found.tolist() == model.predict(x).tolist()
    )


def test_sparse_matrices_need_trust(tmp_path):
    x, y = labeled()
    model = LogisticRegression().fit(x, y).sparsify()
    skops.io.dump(model, tmp_path / "d.skops")
    with pytest.raises(DecoderError, match=r"--trust scipy\.sparse\._csr\.csr_matrix"):
        eb.open_decoder(tmp_path / "d.skops", space=SPACE)
    found = eb.open_decoder(tmp_path / "d.skops", space=SPACE, trusted=["scipy.sparse._csr.csr_matrix"])
    assert found.decode(x).prediction.tolist() == model.predict(x).tolist()


def test_a_schema_whose_parts_share_parts_is_refused_before_skops_walks_it(tmp_path):
    """Thirty levels of a pair of the level below: 2^30 places to walk."""

    def edit(members, schema):
        node = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode", "__id__": 1000, "content": []}
        for level in range(1, 31):
            again = node | {"content": []}
            node = node | {"__id__": 1000 + level, "content": [node, again]}
        attributes(schema)["deep"] = node

    x, y = labeled()
    with pytest.raises(UnreadableFileError, match=r"d\.skops.*its schema stands for .* values"):
        eb.open_decoder(rewritten(LogisticRegression().fit(x, y), tmp_path / "d.skops", edit), space=SPACE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array_bytes(np.ones((3, P)))[:-8], "does not have the size"),
        (array_bytes(np.ones((3, P))).replace(b"(3, 6)", b"(9**9,"), "d.skops"),
        (array_bytes(np.ones((3, P))).replace(b"(3, 6), }   ", b"(999999, 6)}"), "does not have the size"),
        (b"\x93NUMPY\x09\x00", "unknown version"),
        (b"", "d.skops"),
    ],
)
def test_arrays_that_are_not_what_their_header_says_are_refused(tmp_path, content, message):
    def edit(members, schema):
        members[attributes(schema)["coef_"]["file"]] = content

    x, y = labeled()
    with pytest.raises(UnreadableFileError, match=message):
        eb.open_decoder(rewritten(LogisticRegression().fit(x, y), tmp_path / "d.skops", edit), space=SPACE)


def test_an_estimator_of_a_file_neither_starts_processes_nor_reads_a_cache(tmp_path):
    """A pipeline's `memory` is a folder of pickles, which retraining would load."""
    x, y = labeled()
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(algorithm="brute", n_jobs=2), memory=str(tmp_path / "cache")).fit(
        x, y
    )
    assert (tmp_path / "cache").exists()
    for path in (tmp_path / "cache").rglob("output.pkl"):
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with contextlib.suppress(TypeError, ValueError):
        clone(model).fit(x, y)
    assert (tmp_path / "boom").exists()  # so it would
    (tmp_path / "boom").rmdir()
    skops.io.dump(model, tmp_path / "d.skops")
    found = eb.open_decoder(tmp_path / "d.skops", space=SPACE)
    assert found.estimator.memory is None
    assert found.estimator[-1].n_jobs is None
    assert retrain(found, None, x, y, SPACE).decode(x).prediction.shape == y.shape
    assert not (tmp_path / "boom").exists()


def test_classifiers_of_one_threshold_decode_as_they_are_and_of_several_labels_not_at_all(tmp_path):
    x, y = labeled()
    rare = FixedThresholdClassifier(LogisticRegression(), threshold=0.1, response_method="predict_proba").fit(x, y == "a")
    found = eb.save_decoder(rare, tmp_path / "a.skops", SPACE).decode(x)
    assert found.prediction.tolist() == rare.predict(x).tolist()
    assert np.allclose(found.probability, rare.predict_proba(x))
    several = OneVsRestClassifier(LogisticRegression()).fit(x, np.c_[x[:, 0] > 0, x[:, 1] > 0, x[:, 2] > 0].astype(int))
    for name in ("b.skops", "b.safetensors"):
        with pytest.raises(DecoderError, match="several labels at once"):
            eb.save_decoder(several, tmp_path / name, SPACE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.skops", "a.skops.json"]


def test_labels_that_do_not_fit_int64_or_are_of_several_kinds_are_refused():
    from embridge.decoders.base import as_classes, as_labels

    for values in (np.array([2**63], np.uint64), [1.5], [np.inf, 0.0], [1e300], [1, "a"], [True, 2], [None], [[1], [2, 3]], [b"x"]):
        with pytest.raises(DecoderError):
            as_labels(values)
    with pytest.raises(DecoderError, match="must differ"):
        as_classes(["a", "b", "a"])
    assert as_labels([1.0, 2.0]).dtype == np.int64
    assert as_labels(np.array([5], np.uint8)).tolist() == [5]


# Declarations beside a decoder, and the facts inside a head


@pytest.fixture
def declared(tmp_path):
    x, y = labeled()
    eb.save_decoder(LinearSVC().fit(x, y), tmp_path / "d.skops", SPACE)
    return tmp_path / "d.skops"


GOOD = {"format": "embridge.decoder.1", "kind": "classifier", "classes": ["a", "b", "c"], "fingerprint": "0"}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        "[" * (DEPTH + 2) + "]" * (DEPTH + 2),
        "{",
        "null",
        "[]",
        '"x"',
        "NaN",
        "\ud800".encode("utf-8", "surrogatepass"),
        b"\xff\xfe",
        '{"format": "embridge.decoder.1", "format": "embridge.decoder.1"}',
        '{"format": "embridge.decoder.1", "space": {"name": "t", "dim": Infinity, "metric": "dot", "normalized": true}}',
        '{"format": "embridge.decoder.1", "space": ' + "9" * 5000 + "}",
        json.dumps(GOOD | {"space": {"name": "taught", "dim": 6.5, "metric": "dot", "normalized": False}}),
        json.dumps(GOOD | {"space": {"name": ["taught"], "dim": 6, "metric": "dot", "normalized": False}}),
        json.dumps(GOOD | {"space": {"name": "taught", "dim": True, "metric": "dot", "normalized": False}}),
        json.dumps(GOOD | {"space": {"name": "taught", "dim": 6, "metric": [], "normalized": False}}),
        json.dumps(GOOD | {"space": SPACE.to_dict(), "kind": {}}),
        json.dumps(GOOD | {"space": SPACE.to_dict(), "classes": "abc"}),
        json.dumps(GOOD | {"space": SPACE.to_dict(), "classes": ["a", 1, None]}),
        json.dumps(GOOD | {"space": SPACE.to_dict(), "classes": [["a"], ["b", "c"]]}),
    ],
    ids=range(20),
)
def test_a_damaged_declaration_is_an_error_that_names_it(declared, text):
    side = declared.with_name("d.skops.json")
    side.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EmbridgeError, match=r"d\.skops"):
        eb.open_decoder(declared)


def test_a_declaration_that_is_no_file_is_an_error(declared):
    side = declared.with_name("d.skops.json")
    for make in (os.mkdir, os.mkfifo, lambda p: os.symlink(p, p)):
        side.unlink() if side.is_file() else None
        make(side)
        with pytest.raises(UnreadableFileError, match=r"d\.skops\.json"):
            eb.open_decoder(declared)
        side.rmdir() if side.is_dir() else side.unlink()


def test_a_width_beyond_all_embeddings_is_refused(tmp_path):
    x, y = labeled()
    model = LinearSVC().fit(x, y)
    del model.n_features_in_
    skops.io.dump(model, tmp_path / "d.skops")
    with pytest.raises(DecoderError, match=r"1,000,000,000,000 values\. The limit is 1,048,576"):
        eb.open_decoder(tmp_path / "d.skops", space=eb.Space("taught", 10**12))


def test_json_is_parsed_strictly():
    assert parse_json(b'{"a": [1, {"b": 2}]}') == {"a": [1, {"b": 2}]}
    for text, message in (('{"a": 1, "a": 2}', "'a' twice"), ("[" * 5000 + "]" * 5000, "nested"), ("[1]" * 9, "Extra data")):
        with pytest.raises(ValueError, match=message):
            parse_json(text)
    with pytest.raises(ValueError, match="the limit is 5"):
        parse_json("[1, 2, 3]", 5)


@pytest.mark.parametrize(
    "facts",
    ["[" * 100_000, "[]", '{"space": {"name": "t", "dim": Infinity, "metric": "dot", "normalized": true}, "classes": null}', "{}"],
)
def test_damaged_facts_of_a_head_are_an_error_that_names_it(tmp_path, facts):
    from safetensors.numpy import save_file

    arrays = {"coef": np.ones((1, P), np.float32), "intercept": np.ones(1, np.float32)}
    save_file(arrays, tmp_path / "h.safetensors", {"format": "embridge.head.1", "head": facts, "fingerprint": ""})
    with pytest.raises(UnreadableFileError, match=r"h\.safetensors"):
        eb.open_decoder(tmp_path / "h.safetensors")


def test_coefficients_that_are_infinite_in_float32_are_refused(tmp_path):
    from safetensors.numpy import save_file

    facts = {"space": SPACE.to_dict(), "kind": "output", "classes": None, "link": None}
    for value in (np.nan, np.inf, 1e300):
        arrays = {"coef": np.full((1, P), value), "intercept": np.ones(1)}
        save_file(arrays, tmp_path / "h.safetensors", {"format": "embridge.head.1", "head": json.dumps(facts), "fingerprint": ""})
        with pytest.raises(UnreadableFileError, match=r"h\.safetensors.*(NaN|infinite)"):
            eb.open_decoder(tmp_path / "h.safetensors")
