"""The two heads of the paper's tables, for `eb.compare_stitching`: a linear SVM and a small MLP, by accuracy."""

from __future__ import annotations

import hashlib

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC


def heads(labels_train: np.ndarray, labels_test: np.ndarray, epochs: int = 15) -> dict:
    """Both, trained on the labels of the training rows and scored on those of the test rows."""
    trained = {}

    def svm(vectors, seed):
        # Nothing in it is drawn by chance, so of the same vectors it is the same for every seed: trained once.
        key = hashlib.sha256(vectors.tobytes()).digest()
        if key not in trained:
            trained[key] = LinearSVC(tol=1e-3, random_state=0).fit(vectors, labels_train)
        return lambda rows: trained[key].score(rows, labels_test)

    def mlp(vectors, seed):
        model = MLPClassifier((256,), random_state=seed)
        for _ in range(epochs):
            model.partial_fit(vectors, labels_train, classes=np.unique(labels_train))
        return lambda rows: model.score(rows, labels_test)

    return {"SVM": svm, "MLP": mlp}
