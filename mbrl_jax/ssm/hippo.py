"""HiPPO-LegS, whose states are the Legendre coefficients of all inputs so far, taken apart.

A = -(tril(p pᵀ) - diag(n)) with pₙ = √(2n + 1) is a normal matrix less a product of two vectors
(NPLR: S4, arXiv 2111.00396, theorem 1). Normal matrices have unitary eigenvectors; those of A
are no use. NumPy, while a program is built: LAPACK calls inside vmapped programs can deadlock.
"""

import numpy as np


def hippo_legs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of the normal part of HiPPO-LegS ("HiPPO-N").

    With pₙ = √(n + 1/2), S = A + p pᵀ is skew-symmetric but for its diagonal of -1/2, so that
    its eigenvectors are unitary and Re λ = -1/2 (S5, arXiv 2208.04933, appendix B.1).

    Args:
      size: of the real system; even.

    Returns:
      Those with Im λ > 0 in rising order, complex128 [size / 2], and their eigenvectors as columns
      [size, size / 2].
    """
    n = np.arange(size)
    p = np.sqrt(2.0 * n + 1.0)
    A = np.diag(n.astype(np.float64)) - np.tril(p[:, None] * p[None])
    S = A + p[:, None] * p[None] / 2.0
    real = np.diag(S).mean()
    imag, vectors = np.linalg.eigh(-1j * (S - np.diag(np.diag(S))))
    return real + 1j * imag[size // 2 :], vectors[:, size // 2 :]


def dplr_legs(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HiPPO-LegS in the eigenvectors V of its normal part: V diag(Λ) Vᴴ - V P (V P)ᴴ is A.

    Args:
      size: of the real system; even.

    Returns:
      Halves of conjugate pairs, complex128 [size / 2]: Λ of `hippo_legs`, P = Vᴴ p with
      pₙ = √(n + 1/2), and B = Vᴴ b with bₙ = √(2n + 1), where inputs enter.
    """
    poles, vectors = hippo_legs(size)
    n = np.arange(size)
    inverse = vectors.conj().T
    return poles, inverse @ np.sqrt(n + 0.5), inverse @ np.sqrt(2.0 * n + 1.0)
