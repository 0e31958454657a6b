"""A linear head predicts what its estimator predicts, or is refused: thresholds, votes, several labels, float32."""

import warnings

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, Perceptron, PoissonRegressor, Ridge, RidgeClassifier, SGDClassifier
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR

import embridge as eb
from embridge.decoders.agreement import make_rows
from embridge.errors import DecoderError

P = 12
SPACE = eb.Space("new", P, "cosine", True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, P))
X /= np.linalg.norm(X, axis=1, keepdims=True)
FRESH = (RNG.normal(size=(4000, P)) * RNG.choice([0.1, 1, 10], size=(4000, 1))).astype(np.float32)
THREE = X[:, :3].argmax(axis=1)
LABELS = {
    "rare": (X[:, 0] > 0.42).astype(int),
    "signs": np.where(X[:, 0] > 0.3, 1, -1),
    "bool": X[:, 1] > 0,
    "strings": np.array(["b", "a", "c"])[THREE],
    "seven": RNG.integers(0, 7, 600) * 10 - 30,
    "float": THREE.astype(float),
}
KEPT = [
    LogisticRegression(), LogisticRegression(C=1e6), LinearSVC(), RidgeClassifier(), SGDClassifier(random_state=0), Perceptron(),
    SGDClassifier(loss="log_loss", random_state=0), LinearDiscriminantAnalysis(), OneVsRestClassifier(LogisticRegression()),
    OneVsRestClassifier(LinearSVC()), make_pipeline(StandardScaler(), PCA(4), LogisticRegression()),
    make_pipeline(SelectKBest(k=3), LinearSVC()), GridSearchCV(LogisticRegression(), {"C": [1, 10]}, cv=2),
]  # fmt: skip


def fitted(model, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x, y)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("model", KEPT, ids=lambda m: str(m).split("(")[0])
def test_a_head_predicts_what_its_classifier_predicts(model, labels):
    fitted(model, X, LABELS[labels])
    found = eb.LinearHead.from_estimator(model, SPACE).decode(FRESH)
    assert (found.prediction == model.predict(FRESH.astype(float))).all()
    if found.probability is not None:
        assert np.allclose(found.probability, model.predict_proba(FRESH.astype(float)), atol=1e-4)


def threshold(value, model=None, response="predict_proba"):
    return FixedThresholdClassifier(model or LogisticRegression(), threshold=value, response_method=response)


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (threshold(0.1), "rare", "a threshold or votes"),
        (threshold(0.4999), "bool", "a threshold or votes"),
        (threshold(1e-4, LinearSVC(), "decision_function"), "bool", "a threshold or votes"),
        (TunedThresholdClassifierCV(LogisticRegression(), cv=2), "rare", "a threshold or votes"),
        (make_pipeline(StandardScaler(), threshold(0.3)), "rare", "a threshold or votes"),
        (NearestCentroid(), "rare", "a threshold or votes"),
        (SVC(kernel="linear", decision_function_shape="ovo"), "strings", "votes"),
        (SVC(kernel="linear", decision_function_shape="ovo"), "seven", "7 classes and 21 scores"),
        (SVC(kernel="linear"), "strings", "not linear"),
        (OneVsOneClassifier(LinearSVC()), "strings", "not linear"),
        (OutputCodeClassifier(LinearSVC(), random_state=0), "strings", "not linear"),
        (CalibratedClassifierCV(LinearSVC(), cv=2), "strings", "not linear"),
        (make_pipeline(Normalizer(), LinearSVC()), "strings", "not linear"),
    ],
    ids=lambda value: str(value).split("(")[0][:30],
)
def test_a_classifier_that_decides_by_something_else_is_refused(tmp_path, model, labels, message):
    fitted(model, X, LABELS[labels])
    with pytest.raises(DecoderError, match=message):
        eb.save_decoder(model, tmp_path / "h.safetensors", SPACE)
    assert not list(tmp_path.iterdir())


def test_a_threshold_in_the_middle_is_none():
    for model in (threshold(0.5), threshold(0, LinearSVC(), "decision_function")):
        fitted(model, X, LABELS["rare"])
        found = eb.LinearHead.from_estimator(model, SPACE).decode(FRESH)
        assert (found.prediction == model.predict(FRESH.astype(float))).all()


@pytest.mark.parametrize(
    "model",
    [OneVsRestClassifier(LinearSVC()), RidgeClassifier(), MultiOutputClassifier(LinearSVC()), ClassifierChain(LinearSVC())],
    ids=lambda m: str(m).split("(")[0],
)  # fmt: skip
def test_several_labels_at_once_are_refused(model):
    fitted(model, X, np.c_[X[:, 0] > 0.1, X[:, 1] > 0, X[:, 2] > 0.2].astype(int))
    with pytest.raises(DecoderError):
        eb.LinearHead.from_estimator(model, SPACE)


def target(inverse, func=None):
    return TransformedTargetRegressor(Ridge(), func=func or _same, inverse_func=inverse, check_inverse=False)


def _same(values):
    return values


def _clipped(values):
    return np.clip(values, -5, 5)


def test_regressors_whose_target_is_transformed_are_kept_or_refused():
    y = np.abs(2 * X[:, 0] + 1)
    for model in (Ridge(), LinearSVR(), SVR(kernel="linear"), TransformedTargetRegressor(Ridge(), transformer=StandardScaler())):
        fitted(model, X, y)
        found = eb.LinearHead.from_estimator(model, SPACE).decode(FRESH).prediction
        assert np.allclose(found, model.predict(FRESH.astype(float)), atol=1e-4)
    for model in (
        target(_clipped),
        target(np.round),
        target(np.expm1, np.log1p),
        PoissonRegressor(),
        make_pipeline(PolynomialFeatures(2), Ridge()),
    ):
        fitted(model, X, y)
        with pytest.raises(DecoderError, match="not linear"):
            eb.LinearHead.from_estimator(model, SPACE)


def test_what_float32_cannot_hold_is_refused():
    """Behind a scaler, the intercept of rows a million units away drowns the coefficients."""
    for model, y in ((LogisticRegression(), LABELS["rare"]), (Ridge(), X[:, 0])):
        piped = make_pipeline(StandardScaler(), model).fit(X + 1e6, y)
        with pytest.raises(DecoderError, match="coefficients of 32 bits"):
            eb.LinearHead.from_estimator(piped, SPACE)
        near = make_pipeline(StandardScaler(), model).fit(X + 3, y)
        assert eb.LinearHead.from_estimator(near, SPACE).kind in ("classifier", "regressor")


def test_the_rows_cover_every_class_and_both_sides_of_every_boundary():
    rng = np.random.default_rng(1)
    coef, intercept = rng.normal(size=(20, 30)), 30 * rng.normal(size=20)  # at rows of length 1 the intercepts decide
    scores = np.vstack([rows.astype(float) @ coef.T + intercept for rows in make_rows(coef, intercept)])
    best = np.sort(scores, axis=1)
    assert set(scores.argmax(axis=1)) == set(range(20))
    margins = best[:, -1] - best[:, -2]
    for label in range(20):
        mine = margins[scores.argmax(axis=1) == label]
        assert (mine < 0.1).any()
        assert (mine > 1).any()
    single = np.concatenate([rows.astype(float) @ coef[0] + 7 for rows in make_rows(coef[:1], np.array([7.0]))])
    for low, high in ((1e-5, 1e-3), (1e-3, 1e-1), (1e-1, 10), (10, 1e3)):
        for sign in (1, -1):
            assert ((sign * single > low) & (sign * single < high)).any()


def test_an_estimator_that_fails_is_an_error():
    with pytest.raises(DecoderError, match="LogisticRegression"):
        eb.LinearHead.from_estimator(LogisticRegression(), SPACE)
    broken = LogisticRegression().fit(X, LABELS["rare"])
    broken.coef_ = np.full_like(broken.coef_, np.nan)
    with pytest.raises(DecoderError, match="not linear"):
        eb.LinearHead.from_estimator(broken, SPACE)
