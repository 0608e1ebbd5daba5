"""The linearised predictive: how uncertain outputs are, given how uncertain the parameters are.

With ``f(x; theta) = f(x; theta*) + J (theta - theta*)`` and ``theta ~ N(theta*, Sigma)`` a row's outputs are Gaussian,

    f ~ N(f(x; theta*), J Sigma J^T)

(Immer, Korzepa & Bauer 2021, "Improving predictions of Bayesian neural nets via local linearization"). Weights drawn from
the same posterior and put through the network itself leave the region where the curvature that it is made of holds, which
destroys its predictions; drawn outputs do not.

Every precision is a diagonal in some basis, so ``J Sigma J^T = J~ diag(1 / Lambda) J~^T`` with the Jacobian turned there.
Of a layer with one row of inputs a sample, whose output has the gradients g_k, that is

    (J Sigma J^T)_kl = sum_oi  g~_ko g~_lo a~_i^2 / Lambda_oi        g~ = U_G^T g,  a~ = U_A^T a

and no Jacobian is formed. Directions without precision (no prior, no data) have no variance claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamcl.core import likelihood as likelihoods
from streamcl.core.basis import Basis, Matrix, Side, matrices_in, turned_into
from streamcl.core.closed_forms import Lookup, Names, Site
from streamcl.core.fisher import Fisher
from streamcl.core.jacobians import Jacobians, RowGradients
from streamcl.core.layout import Layout
from streamcl.core.measures import SquaresIn, columns_of
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Full, Layered, Precision
from streamcl.core.watched import called_at

Gram = Callable[[Tensor], Tensor]

TILE_BYTES = 16 << 20  # Jacobians of a layer held at once


@dataclass(frozen=True, slots=True)
class Outputs:
    """Of some rows: outputs [n, ...] at the parameters, and their covariance [n, K, K], or what was asked for instead."""

    outputs: Tensor
    spread: Tensor


def is_linear(module: nn.Module, parameters: FlatParameters, x: Tensor) -> bool:
    """Whether the outputs for rows x [n, ...] are linear in the parameters: doubled with them."""
    twice = {name: 2 * p.detach() for name, p in zip(parameters.names, parameters.parameters, strict=True)}
    with torch.no_grad():
        output, doubled = module(x), called_at(module, parameters, twice, x)
    return bool(torch.allclose(doubled, 2 * output, rtol=1e-4, atol=1e-4 * float(output.abs().max())))


class Linearised:
    """The outputs of a module whose parameters have this posterior precision, around where they are now.

    note: why some rows had to be taken one by one, or what is only approximate; None where nothing is.
    """

    def __init__(self, module: nn.Module, parameters: FlatParameters, precision: Precision) -> None:
        self._module, self._parameters = module, parameters
        self._precision = precision
        self._jacobians: Jacobians | None = None
        self._mixing = False

    @property
    def note(self) -> str | None:
        """What should be said of the outputs that were computed."""
        if self._mixing:
            return (
                "the model's output for a row depends on the rows beside it: the uncertainty is that of each row by itself"
            )
        return None if self._jacobians is None else self._jacobians.slow

    def of(self, x: Tensor, gram: Gram | None = None) -> Iterator[Outputs]:
        """For rows x [n, ...], some at a time. gram: of roots [n, K, j], a sum over j (`Likelihood.variances`)."""
        if self._jacobians is None:
            self._jacobians = self._prepared(x)
        gram = gram or _products
        for rows in self._jacobians.of(x):
            self._mixing |= rows.mixing
            yield Outputs(rows.outputs, self._spread(rows, gram))

    def _prepared(self, x: Tensor) -> Jacobians:
        """Finds the layers whose Jacobians need not be formed, and expresses the variances in their coordinates."""
        unit = likelihoods.Gaussian(1.0)  # its exact Fisher is the sum of squared Jacobians
        layout = self._parameters.layout
        basis, values = self._diagonal(Fisher(self._module, self._parameters, unit), x)
        theta = self._parameters.theta
        variances = torch.where(values > 0, 1 / values.clamp(min=torch.finfo(values.dtype).tiny), 0.0)
        self._basis = basis.to(theta.device, theta.dtype)
        self._variances = variances.to(theta.device, theta.dtype)
        self._places = {matrix.key: place for matrix, place in self._basis.offsets()}
        self._matrix_of = {name: matrix for matrix in basis.matrices for name in matrix.names}
        self._own = layout.split(Basis.unturned(basis.size, basis.matrices).back(self._variances))
        return Jacobians(self._module, self._parameters, unit, _Untouched(layout, self._basis))

    def _diagonal(self, fisher: Fisher, x: Tensor) -> tuple[Basis, Tensor]:
        """The basis in which the precision is a diagonal, and that [P]."""
        layout = self._parameters.layout
        if isinstance(self._precision, Full):
            values, vectors = torch.linalg.eigh(self._precision.matrix)
            rounding = float(values[-1].clamp(min=0)) * len(values) * torch.finfo(values.dtype).eps
            values = torch.where(values > rounding, values, 0.0)
            return Basis(layout.size, (Matrix.stack(layout.parts),), ((Side(vectors, values), None),)), values
        if isinstance(self._precision, Layered) and self._precision.basis.matrices:
            return self._precision.axes()
        pairs, _ = fisher.products(x)
        basis = Basis.unturned(layout.size, matrices_in(layout, [(str(weight), bias) for weight, bias in pairs]))
        return basis, basis.into(self._precision.diagonal())

    # -- J Sigma J^T -----------------------------------------------------------------------------------------------

    def _spread(self, rows: RowGradients, gram: Gram) -> Tensor:
        """Summed over layers: what is known of one says nothing of another."""
        outputs = rows.outputs.reshape(len(rows.outputs), -1)
        spread = gram(outputs.new_zeros((*outputs.shape, 1)))
        for site, gradients in rows.calls:
            matrix = self._matrix_of[str(site.names[0])]
            spread += self._of_call(site, matrix, gradients, gram)
        others = dict(rows.others)
        for matrix in self._basis.matrices:
            if matrix.key in others:
                parts = [others.pop(name) for name in matrix.names]
                joined = matrix.joined([part.flatten(2) for part in parts])
                spread += gram((self._turned(matrix, joined) * self._deviations(matrix)).flatten(2))
        for name, each in others.items():
            spread += gram((each * self._own[name].sqrt()).flatten(2))
        return spread

    def _deviations(self, matrix: Matrix) -> Tensor:
        """Of its coordinates, [rows, columns]."""
        return self._variances[self._places[matrix.key]].view(matrix.rows, matrix.columns).sqrt()

    def _turned(self, matrix: Matrix, gradients: Tensor) -> Tensor:
        return turned_into(self._basis.sides_of(matrix), gradients)

    def _of_call(self, site: Site, matrix: Matrix, gradients: Tensor, gram: Gram) -> Tensor:
        """gradients: [k, ...] of the call's output."""
        if isinstance(site, Lookup):
            return self._of_lookup(site, matrix, gradients, gram)
        g = torch.stack([site.rows_of(each) for each in gradients], 1)  # [n, k, t, rows]
        if matrix.stacked:
            weight = (g.mT @ site.columns_of().unsqueeze(1)).flatten(2)
            each = weight if site.names[1] is None else torch.cat([weight, g.sum(2)], 2)
            return gram((self._turned(matrix, each.unsqueeze(3)) * self._deviations(matrix)).flatten(2))
        a, (left, right) = columns_of(site, matrix), self._basis.sides_of(matrix)
        g = g if left is None else left.into(g)
        a = a if right is None else right.into(a)
        deviations = self._deviations(matrix)
        if g.shape[2] == 1:
            return gram(g.squeeze(2) * (a.squeeze(1).square() @ deviations.square().mT).sqrt().unsqueeze(1))
        return _of_products(g, a, deviations, gram)

    def _of_lookup(self, site: Lookup, matrix: Matrix, gradients: Tensor, gram: Gram) -> Tensor:
        """Of an embedding: the tokens of a sample are rows of its Jacobian, and all others 0."""
        owners, tokens, each = site.gathered(gradients)  # each: [pairs, k, features]
        right = self._basis.sides_of(matrix)[1]
        each = each if right is None else right.into(each)
        spread = gram(each * self._deviations(matrix)[tokens].unsqueeze(1))
        return spread.new_zeros((site.samples, *spread.shape[1:])).index_add_(0, owners, spread)


def _products(each: Tensor) -> Tensor:
    """``sum_j J_kj J_lj``, [n, k, k] of [n, k, j]."""
    return each @ each.mT


def _of_products(g: Tensor, a: Tensor, deviations: Tensor, gram: Gram) -> Tensor:
    """Of ``sum_t g_nkt a_nt^T``, a few of its rows at a time: g [n, k, t, rows], a [n, t, columns]."""
    held = g.shape[0] * g.shape[1] * a.shape[2] * a.element_size()
    step = max(1, TILE_BYTES // max(1, held))
    pieces = [slice(start, start + step) for start in range(0, g.shape[3], step)]
    found = (gram(((g[..., rows].mT @ a.unsqueeze(1)) * deviations[rows]).flatten(2)) for rows in pieces)
    total = next(found)
    for more in found:
        total += more
    return total


class _Untouched(SquaresIn):
    """Which calls are of a whole matrix of a basis; the calls as they are."""

    def __init__(self, layout: Layout, basis: Basis) -> None:
        super().__init__(layout, basis, ())

    def together(self, names: Names, site: Site) -> bool:
        """Whether they are just those of a matrix that is turned as one."""
        given = tuple(name for name in names if name is not None)
        return super().together(names, site) and any(matrix.names == given for matrix in self.basis.matrices)

    def wrapped(self, site: Site) -> Site:
        """As it is."""
        return site


def drawn(outputs: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """Draws [s, n, ...] from ``N(outputs, covariance)``: outputs [n, ...], covariance [n, K, K], noise [s, n, K]."""
    return outputs + torch.einsum("nij,snj->sni", root(covariance), noise).reshape(-1, *outputs.shape)


def root(covariance: Tensor) -> Tensor:
    """R [n, K, K] with ``R R^T`` the covariance, which may be singular: by its eigenvectors."""
    values, vectors = torch.linalg.eigh(covariance)
    found: Tensor = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    return found
