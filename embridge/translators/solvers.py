"""Closed forms in terms of second moments, float64. W is (dim_source, dim_target): rows times W."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

CUTOFF = 1e-7  # of the largest singular value; smaller ones are treated as zero


def orthogonal_factor(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """``U V^T`` of ``matrix = U S V^T`` over its singular values above the cutoff, and their number.

    For a cross product x^T y it is the solution of the orthogonal Procrustes problem (Schoenemann 1966), reflections allowed.
    Where the matrix does not have full rank the rest of an orthogonal matrix would depend on the order of rows; it is zero
    (a partial isometry).
    """
    u, s, vt = _svd(matrix)
    rank = int((s > CUTOFF * s[0]).sum()) if s.size and s[0] > 0 else 0
    return u[:, :rank] @ vt[:rank], rank


def least_squares(sxx: np.ndarray, sxy: np.ndarray) -> tuple[np.ndarray, int]:
    """The least-squares solution of minimum norm, ``pinv(Sxx) Sxy``, and its rank.

    Eigenvalues of Sxx are squared singular values of x, so the cutoff is squared.
    """
    values, vectors = eigh(sxx)
    kept = values > CUTOFF**2 * values.max(initial=0)
    basis = vectors[:, kept]
    return basis @ ((basis.T @ sxy) / values[kept, None]), int(kept.sum())


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix."""
    # torch has a threaded LAPACK on every platform, NumPy's wheel does not.
    values, vectors = torch.linalg.eigh(torch.tensor(matrix))
    return values.numpy(), vectors.numpy()


def _svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # LAPACK's divide and conquer sometimes fails on matrices with many zero singular values (few anchors); on the
    # triangular factor of the same matrix, or of its transpose, it then converges.
    try:
        u, s, vt = torch.linalg.svd(torch.tensor(matrix), full_matrices=False)
    except RuntimeError:
        q, r = torch.linalg.qr(torch.tensor(matrix).T)
        v, s, ut = torch.linalg.svd(r, full_matrices=False)
        u, vt = ut.T, (q @ v).T
    return u.numpy(), s.numpy(), vt.numpy()


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """The family ``W(alpha, s) = (Sxx/n + alpha I)^-1 (Sxy/n + alpha s c Q)`` in the eigenbasis of Sxx/n.

    One eigendecomposition is used for all alpha and s. x and y are centered, and scaled to a mean feature variance of one.

    Attributes
    ----------
    values, vectors : ndarray
        Eigenvalues and eigenvectors V of Sxx/n.
    cross : ndarray of shape (dim_source, dim_target)
        ``V^T Sxy/n``.
    toward : ndarray of shape (dim_source, dim_target)
        ``V^T c Q``, Q the Procrustes solution and c the scalar that matches total variances.
    rank : int
        Rank of Q.
    """

    values: np.ndarray
    vectors: np.ndarray
    cross: np.ndarray
    toward: np.ndarray
    rank: int

    @classmethod
    def of(cls, sxx: np.ndarray, sxy: np.ndarray, total_y: float, factor: tuple[np.ndarray, int]) -> Shrinkage:
        """Build it from ``Sxx/n``, ``Sxy/n``, ``tr Syy/n``, and Q with its rank."""
        q, rank = factor
        spread = float(np.vdot(q, sxx @ q))
        c = np.sqrt(total_y / spread) if spread > 0 else 0.0
        values, vectors = eigh(sxx)
        return cls(np.maximum(values, 0), vectors, vectors.T @ sxy, vectors.T @ (c * q), rank)

    def gains(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """``1 / (eigenvalue + alpha)`` and ``alpha / (eigenvalue + alpha)``: the weights of `cross` and of ``s * toward``.

        Zero and one for ``alpha = inf``. Directions without variance are left out where alpha is zero.
        """
        if np.isinf(alpha):
            return np.zeros_like(self.values), np.ones_like(self.values)
        floor = CUTOFF**2 * self.values[-1]
        gain = np.divide(1.0, self.values + alpha, out=np.zeros_like(self.values), where=self.values + alpha > floor)
        return gain, alpha * gain

    def weight(self, alpha: float, s: float) -> np.ndarray:
        """W of shape (dim_source, dim_target); ``alpha = inf`` gives ``s c Q``."""
        regression, toward = self.terms(alpha)
        return self.vectors @ (regression + s * toward)

    def terms(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """For rows in the eigenbasis W is the first, plus s times the second."""
        gain, pull = self.gains(alpha)
        return gain[:, None] * self.cross, pull[:, None] * self.toward
