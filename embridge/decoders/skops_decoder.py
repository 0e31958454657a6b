"""scikit-learn estimators in skops files: types that are not trusted are refused before anything is loaded."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from embridge.decoders.base import Decoded, Decoder, as_labels, as_outputs, decoded, probe
from embridge.decoders.declaration import Declaration
from embridge.decoders.skops_audit import audited_skops, tame
from embridge.errors import DecoderError, EmbridgeError, MissingDependencyError, UnreadableFileError

# Plain Python classes of scikit-learn that fitted decoders hold and skops does not list. Its compiled trees are left out, as
# in skops: they index memory by numbers from the file, so a forged one can crash the process.
_OWN = frozenset(
    {
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    }
)
_HINT = "save the estimator with skops.io.dump, or eb.save_decoder(estimator, 'X.skops', space)"


class SklearnDecoder(Decoder):
    """A fitted scikit-learn estimator: its predictions, probabilities or decision function; a transformer's output.

    Parameters
    ----------
    estimator : fitted estimator
    said : Declaration
    path, fingerprint : str
    """

    format: ClassVar[str] = "skops"

    def __init__(self, estimator: Any, said: Declaration, path: str, fingerprint: str) -> None:
        self.path, self.estimator, self._fingerprint = path, estimator, fingerprint
        width = getattr(estimator, "n_features_in_", None)
        self.space = said.space_of(path, None if width is None else int(width))
        classes = getattr(estimator, "classes_", None)
        if classes is not None and not (isinstance(classes, np.ndarray) and classes.ndim == 1):
            raise DecoderError(f"{path!r} is a classifier of several labels at once, which is not supported.")
        self.classes = None if classes is None else as_labels(classes)
        predicts = callable(getattr(estimator, "predict", None))
        if not predicts and not callable(getattr(estimator, "transform", None)):
            raise DecoderError(f"{path!r} holds a {type(estimator).__name__}, which neither predicts nor transforms.")
        default = "classifier" if classes is not None else "regressor" if predicts else "output"
        self.kind = said.kind or default
        if (self.kind == "classifier") != (classes is not None):
            raise DecoderError(f"{path!r} holds a {type(estimator).__name__}, which is not a {self.kind}.")
        self._decode(probe(self.space.dim, 2))  # fails where the model cannot decode

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def _decode(self, rows: np.ndarray) -> Decoded:
        model, n = self.estimator, len(rows)
        try:
            if self.kind != "classifier":
                function = model.predict if callable(getattr(model, "predict", None)) else model.transform
                return decoded(self.kind, as_outputs(function(rows), n, self.name), None, probabilities=False)
            labels = np.asarray(model.predict(rows))
            if labels.shape[1:] not in ((), (1,)):
                raise DecoderError(
                    f"{self.path!r} gives several labels at once (shape {labels.shape} for {n} rows), which is not supported. "
                    "Hint: save one classifier per label."
                )
            prediction = as_labels(labels)
            if callable(getattr(model, "predict_proba", None)):
                found = as_outputs(model.predict_proba(rows), n, self.name)
                if self.classes is not None and found.shape[1] != len(self.classes):
                    raise DecoderError(
                        f"{self.path!r} has {len(self.classes)} classes, but gives {found.shape[1]} probabilities per row."
                    )
                return Decoded(prediction, found)
            if callable(getattr(model, "decision_function", None)):
                return Decoded(prediction, output=as_outputs(model.decision_function(rows), n, self.name))
        except EmbridgeError:
            raise
        except Exception as e:  # an estimator may raise anything
            raise DecoderError.fails(self.name, e) from e
        return Decoded(prediction)


def open_skops(path: str, data: bytes, fingerprint: str, said: Declaration, trusted: Sequence[str]) -> SklearnDecoder:
    """Open a skops file whose content is `data`: the checked bytes are loaded.

    Raises
    ------
    DecoderError
        A pickle, a file with types that are not trusted, or an estimator that cannot decode.
    UnreadableFileError
        Damaged, or not a skops file.
    MissingDependencyError
        skops is not installed.
    """
    if not data.startswith(b"PK\x03\x04"):
        if is_pickle(data):
            raise DecoderError.pickle(path, _HINT)
        raise UnreadableFileError.foreign(path, "a skops file", "a zip archive")
    sio = _skops()
    try:
        data, unsafe = audited_skops(data)
        found = sio.get_untrusted_types(data=data)
        unknown = sorted((set(found) | unsafe) - _OWN - set(trusted))
        if unknown:
            raise DecoderError.untrusted(path, unknown)
        estimator = sio.loads(data, trusted=found)
        tame(path, estimator)
        return SklearnDecoder(estimator, said, path, fingerprint)
    except EmbridgeError:
        raise
    except Exception as e:  # a damaged schema can make skops raise anything
        raise UnreadableFileError.at(path, "a skops file", e) from e


def dump_skops(estimator: Any) -> bytes:
    """An estimator as the content of a skops file."""
    try:
        return _skops().dumps(estimator)
    except Exception as e:  # skops may raise anything
        raise DecoderError(f"skops cannot save a {type(estimator).__name__}: {e}") from e


def is_pickle(data: bytes) -> bool:
    """True for a pickle of protocol 2 or later, also compressed by joblib (zlib or gzip)."""
    if data[:1] != b"\x80":
        try:
            data = zlib.decompressobj(47).decompress(data, 1)  # 47: either of the two
        except zlib.error:
            return False
    return data[:1] == b"\x80"


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as e:
        raise MissingDependencyError.of("skops", "A decoder of scikit-learn", "decoders") from e
    return skops.io
