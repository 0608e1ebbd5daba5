"""Eigenvectors are a matrix's own: not of how rounding left it, nor of who computed them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamcl.core.eigen import eigenvectors, pin

N = 12


def orthogonal(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]


SPECTRA = {
    "all different": torch.arange(1.0, N + 1, dtype=torch.float64),
    "one space of equal ones": torch.tensor([1.0, 2, 3, 5, 5, 5, 5, 6, 7, 8, 9, 10], dtype=torch.float64),
    "two": torch.tensor([2.0, 2, 2, 3, 5, 5, 5, 5, 6, 7, 8, 9], dtype=torch.float64),
    "most of them next to nothing": torch.tensor(
        [0.0] * 3 + [1e-17, 3e-12, 4e-9, 5e-8, 0.5, 1, 2, 3, 4], dtype=torch.float64
    ),
    "all alike": torch.ones(N, dtype=torch.float64),
    "nothing at all": torch.zeros(N, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("aligned", [False, True], ids=["anywhere", "along coordinates"])
def test_spaces_turned_within_themselves_have_the_same_axes(name: str, aligned: bool) -> None:
    values = SPECTRA[name]
    vectors = torch.eye(N, dtype=torch.float64)[torch.randperm(N)] if aligned else orthogonal(N, 0)
    turned = vectors.clone()
    for low, high in {"one space of equal ones": [(3, 7)], "two": [(0, 3), (4, 8)]}.get(
        name, [(0, 0 if name == "all different" else 7 if "nothing" in name and name != "nothing at all" else N)]
    ):
        if high > low:
            turned[:, low:high] = vectors[:, low:high] @ orthogonal(high - low, 1)
    turned = turned * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(N // 2)
    one, other = pin(values, vectors), pin(values, turned)
    assert torch.allclose(one, other, atol=1e-12)
    assert torch.allclose(one.T @ one, torch.eye(N, dtype=torch.float64), atol=1e-12)
    kept = torch.where(values > 1e-7 * values.max(), values, 0.0)
    assert torch.allclose(one @ torch.diag(kept) @ one.T, vectors @ torch.diag(kept) @ vectors.T, atol=1e-12)


def test_what_lies_in_a_space_is_an_axis_of_its_own() -> None:
    """Pixels that are never lit: each has its own direction, and is never mixed with another."""
    matrix = torch.zeros(N, N, dtype=torch.float64)
    matrix[4:, 4:] = (
        orthogonal(N - 4, 2) @ torch.diag(torch.arange(1.0, N - 3, dtype=torch.float64)) @ orthogonal(N - 4, 2).T
    )
    _, vectors = eigenvectors(matrix, pinned=True)
    assert torch.allclose(vectors[:4, :4].abs(), torch.eye(4, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("pinned", [True, False])
def test_the_largest_come_last_and_are_eigenvectors(pinned: bool) -> None:
    root = orthogonal(N, 3)
    matrix = root @ torch.diag(SPECTRA["two"]) @ root.T
    values, vectors = eigenvectors(matrix, pinned, most=5)
    assert torch.allclose(values, SPECTRA["two"][-5:], atol=1e-12)
    assert torch.allclose(matrix @ vectors, vectors * values, atol=1e-12)


def test_of_a_machine_that_rounds_otherwise_they_are_the_same() -> None:
    """The moments of units of which some are off and some say what others do, summed in two orders."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, dtype=torch.float64, generator=generator)
    units = torch.relu(x @ torch.randn(5, 20, dtype=torch.float64, generator=generator) + torch.linspace(-9, 30, 20))
    one, other = units.T @ units, units.flip(0).T @ units.flip(0)
    assert not torch.equal(one, other)
    pinned, again = (eigenvectors(matrix, pinned=True)[1] for matrix in (one, other))
    free, elsewhere = (eigenvectors(matrix, pinned=False)[1] for matrix in (one, other))
    assert float((pinned - again).abs().max()) < 1e-8
    assert float((free.abs() - elsewhere.abs()).abs().max()) > 1e-3
