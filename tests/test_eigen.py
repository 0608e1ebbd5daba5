"""Eigenvectors are a matrix's own: not of how rounding left it, nor of who computed them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamcl.core.basis import Side
from streamcl.core.eigen import eigenvectors, leading, pin, reflectors

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
    x = units()
    one, other = x.T @ x, x.flip(0).T @ x.flip(0)
    assert not torch.equal(one, other)
    pinned, again = (eigenvectors(matrix, pinned=True)[1] for matrix in (one, other))
    free, elsewhere = (eigenvectors(matrix, pinned=False)[1] for matrix in (one, other))
    assert float((pinned - again).abs().max()) < 1e-8
    assert float((free.abs() - elsewhere.abs()).abs().max()) > 1e-3


def units(rows: int = 200) -> Tensor:
    """What 40 rectified units make of five inputs: some are off, and some say what others do."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 5, dtype=torch.float64, generator=generator)
    return torch.relu(x @ torch.randn(5, 40, dtype=torch.float64, generator=generator) + torch.linspace(-15, 20, 40))


@pytest.mark.parametrize("lead", [0, 4, 30], ids=["all", "some that matter", "more than matter"])
def test_a_sides_vectors_and_what_completes_them_are_the_same_however_the_moments_were_summed(lead: int) -> None:
    x = units()
    one, other = (Side.of(moments, lead) for moments in (x.T @ x, x.flip(0).T @ x.flip(0)))
    free, elsewhere = (Side.of(moments, lead, pinned=False) for moments in (x.T @ x, x.flip(0).T @ x.flip(0)))
    assert float((one.vectors.T @ one.vectors - torch.eye(40)).abs().max()) < 1e-12
    assert float((one.vectors - other.vectors).abs().max()) < 1e-7
    assert lead == 4 or float((free.vectors - elsewhere.vectors).abs().max()) > 0.01


def test_of_fewer_directions_that_matter_than_lead_the_others_lie_outside() -> None:
    values = torch.tensor([0.0, 1e-12, 3e-9, 1, 2], dtype=torch.float64)
    vectors = orthogonal(N, 4)[:, :5]
    kept, found = leading(values, vectors)
    assert torch.equal(kept, torch.tensor([0.0, 0, 0, 1, 2], dtype=torch.float64))
    assert torch.allclose(found.T @ found, torch.eye(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found[:, 3:].abs(), vectors[:, 3:].abs(), atol=1e-12)


def test_reflections_turn_columns_to_axes_also_where_their_pivots_are_rounding() -> None:
    columns = torch.cat([torch.zeros(2, 3, dtype=torch.float64), orthogonal(N, 5)[:, :3]])
    found = []
    for rounding in (1e-17, -1e-17):
        columns[0, 0] = rounding
        below, scales = reflectors(columns)
        q = torch.eye(N + 2, dtype=torch.float64)
        for k in range(3):
            v = torch.zeros(N + 2, dtype=torch.float64)
            v[k], v[k + 1 :] = 1.0, below[k + 1 :, k]
            q = q @ (torch.eye(N + 2, dtype=torch.float64) - scales[k] * torch.outer(v, v))
        assert torch.allclose((q.T @ columns).abs(), torch.eye(N + 2, 3, dtype=torch.float64), atol=1e-12)
        found.append(q)
    assert torch.allclose(*found, atol=1e-12)


def test_a_large_space_is_what_completes_the_others_however_it_was_turned() -> None:
    n = 400
    values = torch.cat([torch.ones(n - 20, dtype=torch.float64), torch.arange(2.0, 22.0, dtype=torch.float64)])
    vectors = orthogonal(n, 6)
    turned = vectors.clone()
    turned[:, : n - 20] = vectors[:, : n - 20] @ orthogonal(n - 20, 7)
    one, other = pin(values, vectors), pin(values, turned)
    assert torch.allclose(one, other, atol=1e-11)
    assert torch.allclose(one.T @ one, torch.eye(n, dtype=torch.float64), atol=1e-12)
    matrix = vectors @ torch.diag(values) @ vectors.T
    assert torch.allclose(matrix @ one, one * values, atol=1e-11)
