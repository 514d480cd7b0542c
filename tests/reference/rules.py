"""Float64 update rules of one matrix, by eigendecompositions, written to be read."""

import torch
from torch import Tensor


def eigenvectors(covariance: Tensor, basis: Tensor) -> Tensor:
    """One step of orthogonal iteration by the definition: Gram and Schmidt, column after column."""
    columns: list[Tensor] = []
    for x in (covariance @ basis).T:
        for q in columns:
            x = x - (q @ x) * q
        columns.append(x / x.norm())
    return torch.stack(columns, 1)


class ReferenceEigenbasis:
    """Adam's step in the eigenbasis; ``sides`` are the indices of the preconditioned ones."""

    def __init__(self, m: int, n: int, *, beta: float, every: int, sides: tuple[int, ...]) -> None:
        self.beta, self.every, self.sides, self.count = beta, every, sides, 0
        self.covariances = [torch.zeros(k, k).double() for k in (m, n)]
        self.bases = [torch.eye(k).double() for k in (m, n)]
        self.squares = torch.zeros(m, n).double()

    def step(self, u: Tensor, g: Tensor) -> Tensor:
        u, g = u.double(), g.double()
        self.count += 1
        for i in self.sides:
            x = (g, g.T)[i]
            self.covariances[i] = self.beta * self.covariances[i] + (1 - self.beta) * x @ x.T
            if self.count <= self.every or self.count % self.every == 0:
                self.bases[i] = eigenvectors(self.covariances[i], self.bases[i])
        left, right = self.bases
        turned = left.T @ g @ right
        self.squares = self.beta * self.squares + (1 - self.beta) * turned**2
        floor = 0.01 * self.squares.mean().sqrt()
        return left @ ((left.T @ u @ right) / (self.squares.sqrt() + floor)) @ right.T


class ReferenceShampoo:
    """Inverse roots by eigendecompositions."""

    def __init__(
        self, m: int, n: int, *, beta: float, every: int, sides: tuple[int, ...], root: int
    ) -> None:
        self.beta, self.every, self.sides, self.root = beta, every, sides, root
        self.covariances = [torch.zeros(k, k).double() for k in (m, n)]
        self.roots = [torch.eye(k).double() for k in (m, n)]
        self.count = 0

    def step(self, u: Tensor, g: Tensor) -> Tensor:
        u, g = u.double(), g.double()
        self.count += 1
        for i in self.sides:
            x = (g, g.T)[i]
            self.covariances[i] = self.beta * self.covariances[i] + (1 - self.beta) * x @ x.T
            if self.count % self.every == 0:
                values, vectors = torch.linalg.eigh(self.covariances[i])
                values = values.clamp(min=1e-3 * values.max())
                self.roots[i] = vectors @ torch.diag(values ** (-1 / self.root)) @ vectors.T
        return self.roots[0] @ u @ self.roots[1]


def element_normalized(o: Tensor, v: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The update over the root of each entry's mean square, at its own norm; and that mean."""
    v = beta * v.double() + (1 - beta) * o.double() ** 2
    normed = o.double() / v.sqrt()
    return normed * (o.double().norm() / normed.norm()), v


def contra(x: Tensor) -> Tensor:
    """One minus half of each singular value over the Schatten-4 norm, by decomposition."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ torch.diag(1 - s / (2 * (s**4).sum() ** 0.25)) @ vh
