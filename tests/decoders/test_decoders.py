"""Decoders: every format against the library that made it, folding, streaming, declarations."""

import json
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import ElasticNet, LogisticRegression, PoissonRegressor, Ridge, RidgeClassifier, SGDClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

import embridge as eb
from embridge.errors import (
    CollectionError,
    DecoderError,
    MapError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.testing.decoders import DecoderConformance
from tests.decoders.support import SPACE, Net, P, exported, labeled, onnx_of, rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One decoder of each format and kind, by name."""
    folder = tmp_path_factory.mktemp("decoders")
    x, y = labeled()
    logistic = LogisticRegression().fit(x, y)
    svm = make_pipeline(StandardScaler(), LinearSVC()).fit(x, y)
    ridge = Ridge().fit(x, x[:, 0] - 2 * x[:, 1])
    eb.save_decoder(logistic, folder / "head.safetensors", SPACE)
    eb.save_decoder(svm, folder / "scores.safetensors", SPACE)
    eb.save_decoder(Ridge().fit(x, x @ rows(P, 3)[:, :4]), folder / "wide.safetensors", SPACE, kind="output")
    eb.save_decoder(svm, folder / "svm.skops", SPACE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eb.save_decoder(MLPClassifier((8,), max_iter=30).fit(x, y), folder / "mlp.skops", SPACE)
    eb.save_decoder(ridge, folder / "ridge.skops", SPACE)
    eb.save_decoder(PCA(3).fit(x), folder / "pca.skops", SPACE)
    space = json.dumps(SPACE.to_dict())
    onnx_of(logistic, folder / "zipmap.onnx", zipmap=True, space=space)
    onnx_of(logistic, folder / "tensor.onnx", zipmap=False, space=space)
    onnx_of(ridge, folder / "ridge.onnx", space=space)
    eb.save_decoder(exported(Net()), folder / "fixed.pt2", SPACE)
    batch = ({0: torch.export.Dim("n", min=2, max=50)},)
    eb.save_decoder(
        exported(Net(last=torch.nn.Softmax(1)), batch), folder / "soft.pt2", SPACE, kind="classifier", classes=["x", "y", "z"]
    )
    return folder


NAMES = ["head.safetensors", "scores.safetensors", "wide.safetensors", "svm.skops", "mlp.skops", "ridge.skops", "pca.skops"]
NAMES += ["zipmap.onnx", "tensor.onnx", "ridge.onnx", "fixed.pt2", "soft.pt2"]


@pytest.mark.parametrize("name", NAMES)
class TestConformance(DecoderConformance):
    @pytest.fixture
    def decoder(self, files, name):
        return eb.open_decoder(files / name)


# Against the libraries themselves


def test_scikit_learn_in_every_format(files, tmp_path):
    x, y = labeled()
    fresh = rows(200, 9)
    logistic = LogisticRegression().fit(x, y)
    for name in ("head.safetensors", "zipmap.onnx", "tensor.onnx"):
        found = eb.open_decoder(files / name).decode(fresh)
        assert found.prediction.tolist() == logistic.predict(fresh).tolist()
        assert np.allclose(found.probability, logistic.predict_proba(fresh), atol=1e-5)
    svm = make_pipeline(StandardScaler(), LinearSVC()).fit(x, y)
    for name in ("scores.safetensors", "svm.skops"):
        found = eb.open_decoder(files / name).decode(fresh)
        assert found.prediction.tolist() == svm.predict(fresh).tolist()
        assert np.allclose(found.output, svm.decision_function(fresh), atol=1e-4)
    expected = Ridge().fit(x, x[:, 0] - 2 * x[:, 1]).predict(fresh)
    for name in ("ridge.skops", "ridge.onnx"):
        decoder = eb.open_decoder(files / name)
        assert (decoder.kind, decoder.classes) == ("regressor", None)
        assert np.allclose(decoder.decode(fresh).prediction, expected, atol=1e-4)
    assert np.allclose(eb.open_decoder(files / "pca.skops").decode(fresh).output, PCA(3).fit(x).transform(fresh), atol=1e-5)


def test_torch_programs_of_fixed_and_bounded_batches(files):
    fresh = rows(131, 9)
    with torch.no_grad():
        expected = [net.eval()(torch.tensor(fresh)).numpy() for net in (Net(), Net(last=torch.nn.Softmax(1)))]
    assert np.allclose(eb.open_decoder(files / "fixed.pt2").decode(fresh).output, expected[0], atol=1e-6)
    soft = eb.open_decoder(files / "soft.pt2").decode(fresh)
    assert np.allclose(soft.probability, expected[1], atol=1e-6)
    assert soft.prediction.tolist() == np.array(list("xyz"))[expected[1].argmax(1)].tolist()


@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(),
        LinearSVC(),
        RidgeClassifier(),
        SGDClassifier(random_state=0),
        make_pipeline(StandardScaler(), PCA(4), LogisticRegression()),
        SVC(kernel="linear", decision_function_shape="ovo"),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c"), (3, 1)])
def test_a_head_predicts_as_the_classifier_it_was_made_of(model, names):
    x, y = labeled(names=names)
    model.fit(x, y)
    if isinstance(model, SVC) and len(names) > 2:
        pytest.skip("votes of pairs are no linear scores")
    head, fresh = eb.LinearHead.from_estimator(model, SPACE), rows(500, 7)
    assert head.decode(fresh).prediction.tolist() == model.predict(fresh).tolist()
    if hasattr(model, "predict_proba"):
        assert np.allclose(head.decode(fresh).probability, model.predict_proba(fresh), atol=1e-5)


def test_a_head_of_regressors_and_transformers():
    x = rows()
    for model in (Ridge(), ElasticNet(alpha=0.01), make_pipeline(StandardScaler(), Ridge())):
        for y in (x[:, 0] + 1, x[:, :2] @ np.array([[1, 2, 3], [3, 2, 1]])):
            model.fit(x, y)
            found = eb.LinearHead.from_estimator(model, SPACE).decode(x)
            assert np.allclose(found.prediction if y.ndim == 1 else found.output, model.predict(x), atol=1e-4)
    pca = PCA(2).fit(x)
    head = eb.LinearHead.from_estimator(pca, SPACE)
    assert head.kind == "output"
    assert np.allclose(head.decode(x).output, pca.transform(x), atol=1e-5)


@pytest.mark.parametrize(
    "model", [MLPClassifier((4,), max_iter=5), PoissonRegressor(), make_pipeline(Normalizer(), LinearSVC()), SVC(kernel="rbf")]
)
def test_what_is_not_linear_is_no_head(model):
    x, y = labeled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, np.abs(x[:, 0]) if isinstance(model, PoissonRegressor) else y)
    with pytest.raises(DecoderError, match="not linear from end to end"):
        eb.LinearHead.from_estimator(model, SPACE)


# Folding


def planted_map(p, q, seed, *, normalized, name="source"):
    rng = np.random.default_rng(seed)
    target = eb.Space("taught", q, normalized=normalized)
    return eb.LinearMap(rng.normal(size=(q, p)), rng.normal(size=q), eb.Space(name, p), target)


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6), st.booleans(),
    st.sampled_from(["classifier", "regressor", "output"]), st.booleans(),
)  # fmt: skip
def test_a_folded_head_is_map_then_head(p, q, outputs, seed, normalized, kind, linked):
    rng = np.random.default_rng(seed)
    translation = planted_map(p, q, seed, normalized=normalized)
    classes = list(range(max(2, outputs))) if kind == "classifier" else None
    link = ("sigmoid" if outputs == 1 else "softmax") if linked and kind == "classifier" else None
    head = eb.LinearHead(rng.normal(size=(outputs, q)), rng.normal(size=outputs), translation.target, kind, classes, link)
    folded, x = head.after(translation), rows(50, seed, p)
    assert folded.space == translation.source
    y = translation.apply(x)
    then, once, scores = head.decode(y), folded.decode(x), head.scores(y)
    # Float32 rounds W x + b to 1e-7 of what is summed; where that cancels, its direction is as uncertain either way round.
    summed = np.linalg.norm(x, axis=1) * np.linalg.norm(translation.coef) + np.linalg.norm(translation.intercept)
    cancelled = summed / np.linalg.norm(x @ translation.coef.T + translation.intercept, axis=1) if normalized else np.ones(50)
    scale = max(1.0, float(np.linalg.norm(y, axis=1).max() * np.linalg.norm(head.coef) + np.linalg.norm(head.intercept)))
    allowed = 1e-6 * scale * (10 + cancelled[:, None])
    assert (np.abs(folded.scores(x) - scores) <= allowed).all()
    for name in ("probability", "output"):
        if getattr(then, name) is not None:
            assert (np.abs(getattr(once, name) - getattr(then, name)) <= allowed).all()
    if kind == "classifier":  # equal wherever the scores do not tie to within rounding
        ordered = np.sort(scores, axis=1)
        clear = (np.abs(scores[:, 0]) if outputs == 1 else ordered[:, -1] - ordered[:, -2]) > 10 * allowed[:, 0]
        assert (once.prediction == then.prediction)[clear].all()


@pytest.mark.parametrize("normalized", [True, False])
def test_a_folded_head_is_map_then_head_on_real_embeddings(normalized):
    old, new = (eb.open(eb.sample_path(name)) for name in ("minilm", "mpnet"))
    shared = eb.match(old, new)
    fitted = eb.fit(shared.sample(1000), "ridge", alpha=0.1)
    target = eb.Space("mpnet", 768, normalized=normalized)
    translation = eb.LinearMap(fitted.coef, fitted.intercept, fitted.source, target)
    kinds = np.array(["a", "b", "c"])[np.arange(1000) % 3]
    head = eb.LinearHead.from_estimator(LogisticRegression().fit(shared.y[:1000], kinds), target)
    folded, y = head.after(translation), translation.apply(shared.x)
    assert (folded.length is not None) == normalized
    assert np.abs(folded.scores(shared.x) - head.scores(y)).max() < 1e-5
    assert np.abs(folded.decode(shared.x).probability - head.decode(y).probability).max() < 1e-5
    assert (folded.decode(shared.x).prediction == head.decode(y).prediction).mean() > 0.999  # a tie may round either way


def test_a_folded_head_keeps_rows_that_translate_to_nothing():
    space = eb.Space("taught", 2, normalized=True)
    translation = eb.LinearMap(np.eye(2), np.zeros(2), eb.Space("source", 2), space)
    head = eb.LinearHead(np.eye(2), np.array([0.25, -1]), space, "output")
    x = np.array([[0, 0], [3, 4]], np.float32)
    assert np.allclose(head.after(translation).decode(x).output, head.decode(translation.apply(x)).output)


def test_folding_goes_on_until_a_second_scaling_to_unit_length(tmp_path):
    head = eb.LinearHead(rows(3, 1, 5), rows(1, 2, 3)[0], eb.Space("taught", 5, normalized=True), "output")
    first = planted_map(4, 5, 1, normalized=True)
    folded = head.after(first)
    affine = eb.LinearMap(rows(4, 4, 3), rows(1, 5, 4)[0], eb.Space("older", 3), eb.Space("source", 4))
    x = rows(40, 6, 3)
    assert np.allclose(folded.after(affine).decode(x).output, head.decode(first.apply(affine.apply(x))).output, atol=1e-4)
    unit = eb.LinearMap(affine.coef, affine.intercept, affine.source, eb.Space("source", 4, normalized=True))
    with pytest.raises(MapError, match="is too: scaling"):
        folded.after(unit)
    done = eb.decode(eb.MemoryCollection(np.arange(40), x, affine.source), folded, tmp_path / "out.parquet", via=unit)
    assert not done.folded  # two steps then, and the same result
    reported = np.array(pq.read_table(tmp_path / "out.parquet")["output"].to_pylist())
    assert np.allclose(reported, folded.decode(unit.apply(x)).output, atol=1e-5)
    with pytest.raises(SpaceMismatchError, match="'source'"):
        head.after(affine)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("name", ["head.safetensors", "svm.skops", "tensor.onnx", "soft.pt2"])
def test_decoding_through_a_map_is_translating_then_decoding(files, tmp_path, name, normalized):
    decoder, translation = eb.open_decoder(files / name), planted_map(4, P, 3, normalized=normalized)
    x = rows(90, 8, 4)
    done = eb.decode(
        eb.MemoryCollection(np.arange(90), x, translation.source), decoder, tmp_path / "o.parquet", via=translation, batch_rows=13
    )
    table, expected = pq.read_table(tmp_path / "o.parquet"), decoder.decode(translation.apply(x))
    assert done.folded == (name == "head.safetensors")
    assert table["prediction"].to_pylist() == expected.prediction.tolist()
    values = expected.output if expected.probability is None else expected.probability
    assert np.allclose(np.array(table[done.columns[1]].to_pylist()), values, atol=1e-5)
    lineage = json.loads(table.schema.metadata[b"embridge.lineage"])
    assert lineage == {"source": done.source, "decoder": decoder.fingerprint, "map": translation.fingerprint}


# Saving and declaring


@pytest.mark.parametrize("normalized", [True, False])
def test_a_head_comes_back_as_it_was_saved(tmp_path, normalized):
    head = eb.LinearHead(rows(3), [1, 2, 3], SPACE, classes=["a", "b", "c"], link="softmax")
    head = head.after(planted_map(4, P, 2, normalized=normalized))
    head.save(tmp_path / "h.safetensors")
    back = eb.open_decoder(tmp_path / "h.safetensors", space="source")
    assert back.fingerprint == head.fingerprint
    assert np.array_equal(back.scores(rows(9, 1, 4)), head.scores(rows(9, 1, 4)))
    assert back.classes.tolist() == ["a", "b", "c"]
    with pytest.raises(OutputExistsError):
        head.save(tmp_path / "h.safetensors")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"coef": rows(3)[:, :5]}, SpaceMismatchError, r"coef of shape \(n_outputs, 6\)"),
        ({"classes": ["a"]}, ParameterError, "3 labels for 3 rows"),
        ({"classes": None}, ParameterError, "Got 'none'"),
        ({"link": "sigmoid"}, ParameterError, "link must be"),
        ({"kind": "regressor"}, ParameterError, "neither classes nor link"),
        ({"kind": "oracle"}, ParameterError, "one of classifier, regressor, output"),
        ({"length": rows(2, 0, P + 1)}, ParameterError, "must be given together"),
        ({"length": rows(2), "offset": np.zeros(3)}, ParameterError, r"of shape \(r, 7\)"),
        ({"coef": np.full((3, P), np.nan)}, eb.EmbridgeError, "NaN"),
    ],
)
def test_a_head_that_does_not_hold_together_is_refused(changes, error, message):
    given = {"coef": rows(3), "intercept": np.zeros(3), "space": SPACE, "classes": ["a", "b", "c"]}
    with pytest.raises(error, match=message):
        eb.LinearHead(**(given | changes))


@pytest.mark.parametrize("name", ["svm.skops", "plain.onnx", "net.pt2"])
def test_a_space_has_to_be_declared_and_is_then_kept(tmp_path, name):
    path, (x, y) = tmp_path / name, labeled()
    if name.endswith(".skops"):
        import skops.io

        skops.io.dump(LinearSVC().fit(x, y), path)
    elif name.endswith(".onnx"):
        onnx_of(Ridge().fit(x, x[:, 0]), path)
    else:
        torch.export.save(exported(Net()), path)
    with pytest.raises(UndeclaredSpaceError, match=r"embridge decoder register .*--space NAME"):
        eb.open_decoder(path)
    assert eb.open_decoder(path, space="taught:dot").space == eb.Space("taught", P, "dot")
    with pytest.raises(SpaceMismatchError, match="dim"):
        eb.register_decoder(path, eb.Space("taught", P + 1))
    eb.register_decoder(path, "taught", normalized=True)
    assert eb.open_decoder(path).space == eb.Space("taught", P, normalized=True)
    with pytest.raises(SpaceMismatchError, match="declared as space 'other'"):
        eb.open_decoder(path, space="other")
    with pytest.raises(OutputExistsError):
        eb.register_decoder(path, "other")
    assert eb.register_decoder(path, "other", overwrite=True).space.name == "other"
    assert eb.open_decoder(path).space.name == "other"


def test_what_a_file_says_itself_cannot_be_contradicted(files, tmp_path):
    for name in ("head.safetensors", "tensor.onnx"):
        with pytest.raises(SpaceMismatchError, match="'taught'"):
            eb.open_decoder(files / name, space="other")
        assert eb.open_decoder(files / name, space="taught").space.same_as(SPACE)
    with pytest.raises(ParameterError, match="declared as regressor"):
        eb.open_decoder(files / "head.safetensors", kind="regressor")
    with pytest.raises(ParameterError, match="other classes"):
        eb.open_decoder(files / "soft.pt2", classes=["u", "v", "w"])
    with pytest.raises(DecoderError, match="not a regressor"):
        eb.register_decoder(files / "svm.skops", "taught", kind="regressor", overwrite=True)


def test_a_sidecar_belongs_to_one_file(tmp_path):
    x, y = labeled()
    path = tmp_path / "d.skops"
    eb.save_decoder(LinearSVC().fit(x, y), path, SPACE)
    with pytest.raises(OutputExistsError):
        eb.save_decoder(LinearSVC().fit(x, y), path, SPACE)
    import skops.io

    skops.io.dump(LinearSVC(C=0.1).fit(x, y), path)
    with pytest.raises(DecoderError, match="not the file that was registered"):
        eb.open_decoder(path)
    (tmp_path / "d.skops.json").write_text('{"format": "something else"}')
    with pytest.raises(UnreadableFileError, match=r"d\.skops\.json"):
        eb.open_decoder(path)


def test_outputs_that_cannot_be_written_are_refused_before_work(files, tmp_path):
    head = eb.open_decoder(files / "head.safetensors")
    source = eb.MemoryCollection(np.arange(5), rows(5), SPACE)
    (tmp_path / "there.parquet").write_text("mine")
    with pytest.raises(OutputExistsError):
        eb.decode(source, head, tmp_path / "there.parquet")
    assert (tmp_path / "there.parquet").read_text() == "mine"
    eb.decode(source, head, tmp_path / "there.parquet", overwrite=True)
    clash = eb.MemoryCollection(np.arange(5), rows(5), SPACE, {"output": [1] * 5})
    with pytest.raises(CollectionError, match="already has a column 'output'"):
        eb.decode(clash, head, tmp_path / "new.parquet")
    with pytest.raises(ParameterError, match="batch_rows"):
        eb.decode(source, head, tmp_path / "new.parquet", batch_rows=0)
    assert not (tmp_path / "new.parquet").exists()


def test_a_classifier_of_several_labels_at_once_is_refused(tmp_path):
    x, y = labeled()
    model = MultiOutputClassifier(LogisticRegression()).fit(x, np.stack([y, y], 1))
    with pytest.raises(DecoderError, match="several labels at once"):
        eb.save_decoder(model, tmp_path / "m.skops", SPACE)
    assert not list(tmp_path.iterdir())
