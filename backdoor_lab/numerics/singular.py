"""Top singular values and directions of centered rows.

`top_directions` computes several directions by a full decomposition; `top_direction` computes only
the first one, with the accuracy of float64 at nearly the cost of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backdoor_lab.core.lazy import Tensor, torch

BLOCK = 1024
"""Number of rows converted to float64 at a time, few enough to fit into the processor's cache."""
SMALL = 64
"""Number of rows or columns below which decomposing in float64 is faster than in float32."""
STEPS = 120
"""Maximum number of Lanczos steps before the fast method gives up."""
KRYLOV = 1e-5
"""Residual, relative to the eigenvalue, at which the Lanczos method stops: the limit of float32."""
GAP = 1e-4
"""Relative gap between the top two eigenvalues below which float32 cannot distinguish them."""
CORRECTIONS = 4
ACCURACY = 1e-9
"""Maximum angle between the computed direction and the exact one, in radians."""


@dataclass(frozen=True)
class TopDirection:
    """The top singular direction of the centered rows of an array (n, d).

    `variance` is the squared singular value; `direction` float64 (d,) has length 1 and arbitrary
    sign; `along` float64 (n,) are the projections of the centered rows; `offset` is the projection
    of the mean, so that the uncentered rows project to ``along + offset``.
    """

    variance: float
    direction: Tensor
    along: Tensor
    offset: float


def top_direction(values: Tensor) -> TopDirection:
    """Computes the top singular direction of the centered rows of floating-point `values` (n, d).

    The Gram matrix, the expensive part, is computed in float32, and so is its top eigenvector, by
    the Lanczos method. Their errors are about 1e-6 divided by the relative gap of the top two
    eigenvalues. The residual is then computed in float64, and reduced by Olsen's correction until
    the angle to the exact vector is at most 1e-9 (Golub and Van Loan, Matrix Computations, 4th ed.,
    2013, sections 8.1 and 10.1 to 10.3; Olsen, Joergensen, Simons, Chem. Phys. Lett. 169, 1990). A
    Cholesky factorization proves that the vector is the *top* one: it succeeds only if all other
    eigenvalues are smaller.

    If any of these steps fails (as for two equal singular values), and always on a GPU, the whole
    decomposition is done in float64. The result thus always has the accuracy of a float64 SVD.
    Additional memory: O(n + min(n, d)^2), for n < d also O(n d).
    """
    rows = _Centred(values)
    found = None
    if min(values.shape) >= SMALL and values.device.type == "cpu":
        found = _quick(rows)
    variance, direction = found or _exact(rows)
    along = rows.times(direction)
    return TopDirection(variance, direction, along, float(rows.mean @ direction))


def top_directions(centered: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the top squared singular values (r,) and right singular vectors (d, r) of `centered`.

    `centered` is float64 or float32 (n, d); r = min(k, n, d), largest first. A vector is zero if
    its singular value is zero up to rounding. Uses a full symmetric eigendecomposition of the
    smaller Gram matrix, which is accurate even if the top two singular values nearly coincide,
    unlike power iteration and randomized methods. Memory O(n d + min(n, d)^2).
    """
    n, d = centered.shape
    gram = centered.T @ centered if n >= d else centered @ centered.T
    eigenvalues, vectors = torch.linalg.eigh(gram)
    eigenvalues, vectors = eigenvalues.flip(0)[:k].clamp(min=0), vectors.flip(1)[:, :k]
    limits = torch.finfo(centered.dtype)
    if n < d:
        vectors = centered.T @ vectors
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(min=limits.tiny)
    real = eigenvalues > max(n, d) * limits.eps * eigenvalues[:1]
    return eigenvalues, vectors * real


class _Centred:
    """The centered rows C (n, d) of an array, converted to float64 in blocks."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.device = values, values.device
        self.mean = torch.zeros(values.shape[1], dtype=torch.float64, device=self.device)
        total = sum((block.sum(dim=0) for _, block in self._blocks()), self.mean)
        self.mean = total / max(1, len(values))

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        n, d = self.values.shape
        room = torch.empty(min(BLOCK, n), d, dtype=torch.float64, device=self.device)
        for start in range(0, n, BLOCK):
            where = slice(start, min(n, start + BLOCK))
            block = room[: where.stop - start].copy_(self.values[where])
            yield where, block.sub_(self.mean)

    def times(self, right: Tensor) -> Tensor:
        """Returns C @ right for the centered rows C: float64 (n,)."""
        parts = [block @ right for _, block in self._blocks()]
        return torch.cat(parts) if parts else right.new_zeros(0)

    def transposed_times(self, left: Tensor) -> Tensor:
        """Returns C.T @ left for the centered rows C: float64 (d,)."""
        total = torch.zeros_like(self.mean)
        for where, block in self._blocks():
            total += block.T @ left[where]
        return total

    @property
    def tall(self) -> bool:
        return self.values.shape[0] >= self.values.shape[1]

    def gram_times(self, vector: Tensor) -> Tensor:
        """Returns the product of the smaller Gram matrix (see `gram`) and `vector`, without forming
        the matrix."""
        if not self.tall:
            return self.times(self.transposed_times(vector))
        total = torch.zeros_like(self.mean)
        for _, block in self._blocks():
            total += block.T @ (block @ vector)
        return total

    def gram(self) -> Tensor:
        """Returns the smaller Gram matrix of the centered rows C, in float64: C.T @ C (d, d), or C
        @ C.T (n, n) if d is larger."""
        if not self.tall:
            centered = self.values.double() - self.mean
            return centered @ centered.T
        d = len(self.mean)
        total = torch.zeros(d, d, dtype=torch.float64, device=self.device)
        for _, block in self._blocks():
            total.addmm_(block.T, block)
        return total

    def rough_gram(self, scale: float) -> Tensor:
        """Returns the smaller Gram matrix of ``scale * C`` in float32. C must be on the CPU."""
        mean = self.mean.to(torch.float32)
        step = 4 * BLOCK if self.tall else len(self.values)
        side = min(self.values.shape)
        total = torch.zeros(side, side)
        for part in self.values.split(step):
            block = part.to(torch.float32).sub(mean).mul_(scale).numpy()
            # NumPy detects that both factors are the same matrix and computes half the product.
            product = block.T @ block if self.tall else block @ block.T
            total += torch.from_numpy(product)
        return total


def _exact(rows: _Centred) -> tuple[float, Tensor]:
    eigenvalues, vectors = torch.linalg.eigh(rows.gram())
    return float(eigenvalues[-1]), _right(rows, vectors[:, -1])


def _right(rows: _Centred, vector: Tensor) -> Tensor:
    """Returns the right singular vector that corresponds to `vector`, an eigenvector of the smaller
    Gram matrix."""
    if rows.tall:
        return vector
    direction = rows.transposed_times(vector)
    length = torch.linalg.vector_norm(direction)
    return direction / length.clamp(min=torch.finfo(torch.float64).tiny)


def _quick(rows: _Centred) -> tuple[float, Tensor] | None:
    """Returns the square of the top singular value and its direction, or None if float32 is not
    accurate enough."""
    low, high = (float(each) for each in torch.aminmax(rows.values))
    if not 0 < high - low < torch.finfo(torch.float32).max:
        return None
    scale = 1 / (high - low)
    gram = rows.rough_gram(scale)
    start = _lanczos(gram) if bool(torch.isfinite(gram).all()) else None
    if start is None:
        return None
    top, second, vector = start
    # The Cholesky factor exists if and only if the deflated matrix is below the shift.
    rest = torch.addr(-gram, vector.float(), vector.float(), alpha=top)
    _, above = torch.linalg.cholesky_ex(_shifted(rest, (top + second) / 2))
    factor, failed = torch.linalg.cholesky_ex(_shifted(rest, top))
    if int(above) or int(failed) or second > top * (1 - GAP):
        return None
    for _ in range(CORRECTIONS):
        vector = vector / torch.linalg.vector_norm(vector)
        image = rows.gram_times(vector)
        variance = float(vector @ image)
        residual = (image - variance * vector) * scale**2
        if float(torch.linalg.vector_norm(residual)) <= ACCURACY * (top - second):
            return variance, _right(rows, vector)
        vector = vector + _correction(factor, residual, vector)
    return None


def _shifted(matrix: Tensor, shift: float) -> Tensor:
    return matrix + torch.eye(len(matrix)).mul_(shift)


def _correction(factor: Tensor, residual: Tensor, vector: Tensor) -> Tensor:
    """Returns Olsen's correction of `vector`, which is orthogonal to `vector` and reduces
    `residual`. `factor` is the Cholesky factor of the shifted and deflated Gram matrix."""
    sides = torch.stack([residual, vector], dim=1).float()
    moved, along = torch.cholesky_solve(sides, factor).double().T
    return moved - along * (vector @ moved) / (vector @ along)


def _lanczos(gram: Tensor) -> tuple[float, float, Tensor] | None:
    """Returns the top two eigenvalues and the top eigenvector of the symmetric float32 matrix
    `gram`.

    Each new Lanczos vector is orthogonalized twice against all earlier ones. Returns None if no
    vector reaches a residual of at most `KRYLOV` (a tolerance) times the top eigenvalue.
    """
    side = len(gram)
    steps = min(STEPS, side)
    basis = torch.empty(steps, side)
    start = torch.randn(side, generator=torch.Generator().manual_seed(0))
    basis[0] = start / torch.linalg.vector_norm(start)
    tridiagonal = torch.zeros(steps, steps, dtype=torch.float64)
    for j in range(steps):
        known = basis[: j + 1]
        image = gram @ basis[j]
        tridiagonal[j, j] = image @ basis[j]
        for _ in range(2):
            image = image - known.T @ (known @ image)
        length = float(torch.linalg.vector_norm(image))
        if (j + 1) % 8 == 0 or j + 1 == steps or length <= KRYLOV * float(tridiagonal[0, 0]):
            values, vectors = torch.linalg.eigh(tridiagonal[: j + 1, : j + 1])
            top, second = float(values[-1]), float(values[max(0, j - 1)])
            if length * abs(float(vectors[-1, -1])) <= KRYLOV * top:
                return top, second if j else 0.0, (vectors[:, -1].float() @ known).double()
        if j + 1 < steps:
            basis[j + 1] = image / length
            tridiagonal[j, j + 1] = tridiagonal[j + 1, j] = length
    return None
