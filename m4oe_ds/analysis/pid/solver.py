"""Partial information decomposition of discrete tables ``p(x1, x2, y)`` by its exact convex program.

Definition: Bertschinger, Rauh, Olbrich, Jost, Ay, "Quantifying unique information", Entropy 16(4), 2014. With Delta the
set of tables ``q`` that share ``p``'s pairwise marginals ``(X1,Y)`` and ``(X2,Y)``::

    I_Q = min over q in Delta of I_q(Y; X1,X2)
    R = I(X1;Y) + I(X2;Y) - I_Q    U1 = I_Q - I(X2;Y)    U2 = I_Q - I(X1;Y)    S = I(Y; X1,X2) - I_Q

``H(Y)`` is the same all over Delta, so the program is ``min f(q) = sum q ln[q(x1,x2,y) / q(x1,x2)]`` under linear
constraints. Its Lagrange dual is explicit: maximise ``sum p(x1,y) a(x1,y) + sum p(x2,y) b(x2,y)`` subject to
``sum_y exp(a(x1,y) + b(x2,y)) <= 1`` for every ``(x1,x2)``. Any such ``a, b`` bounds ``f`` from below, and this is the
duality gap every solver here reports: the error of each of R, U1, U2, S is at most the gap.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m4oe_ds.analysis.information import LN2, Table, entropy, mutual_information, probability_table, xlogy
from m4oe_ds.errors import ConfigError, DataError

log = logging.getLogger(__name__)

Solver = Literal["interior", "alternating"]
CLIP_BITS = 1e-6  # rounding below zero that is set to zero; anything more negative is an error
SMALLEST_BARRIER = 1e-13  # below it the Newton system has no correct digits in float64
INNER_ROUNDS = 100  # of the I-projection within one sweep; more only polishes a q that the next sweep replaces
MIN_SAMPLES_PER_CELL = 5


@dataclass(frozen=True)
class DiscreteDecomposition:
    """Decomposition of one table; all values in bits.

    ``information1``, ``information2`` are I(X1;Y), I(X2;Y); ``total`` is I(X1,X2;Y) and equals
    ``redundancy + unique1 + unique2 + synergy``; ``duality_gap`` bounds the error of the four parts;
    ``coupling[x1, x2, y]`` is the minimising table.
    """

    redundancy: float
    unique1: float
    unique2: float
    synergy: float
    total: float
    information1: float
    information2: float
    target_entropy: float
    duality_gap: float
    iterations: int
    coupling: Table

    def parts(self) -> dict[str, float]:
        """The four parts by their usual letters, in bits."""
        return {"R": self.redundancy, "U1": self.unique1, "U2": self.unique2, "S": self.synergy}


@dataclass(frozen=True)
class _Program:
    """The program on a table without unused symbols: marginals ``[n1,k]``, ``[n2,k]``, allowed cells ``[n1,n2,k]``."""

    p1: Table
    p2: Table
    support: NDArray[np.bool_]

    def start(self) -> Table:
        """The conditionally independent table ``p(x1,y) p(x2,y) / p(y)``: feasible, positive on the whole support."""
        return self.p1[:, None, :] * self.p2[None, :, :] / self.p1.sum(0)

    def objective(self, q: Table) -> float:
        """``f(q) = -H_q(Y|X1,X2)`` in nats."""
        pair = q.sum(2, keepdims=True)
        ratio = np.divide(q, pair, out=np.ones_like(q), where=q > 0)
        return float(xlogy(q, ratio).sum())

    def marginal_error(self, q: Table) -> float:
        """Largest absolute deviation from the prescribed marginals."""
        return float(max(np.abs(q.sum(1) - self.p1).max(), np.abs(q.sum(0) - self.p2).max()))

    def gap(self, q: Table, a: Table, b: Table) -> float:
        """Duality gap in nats of ``q`` and multipliers ``a[n1,k], b[n2,k]``, ``a`` shifted to be feasible.

        Written as ``sum q [ln(q / q(x1,x2)) - a - b]``, which is >= 0 for any ``q`` and equals ``f(q)`` minus the dual
        value where the marginals hold.
        """
        exponent = np.where(self.support, a[:, None, :] + b[None, :, :], -np.inf)
        peak = exponent.max(2, keepdims=True)
        peak = np.where(np.isfinite(peak), peak, 0.0)
        with np.errstate(divide="ignore"):  # a pair (x1, x2) without allowed label has no constraint
            excess = (np.log(np.exp(exponent - peak).sum(2)) + peak[..., 0]).max(1)
        linear = np.where(self.support, exponent - excess[:, None, None], 0.0)
        return self.objective(q) - float((q * linear).sum())

    def scaled(self, q: Table, rounds: int) -> Table:
        """``q`` with rounding errors of its marginals removed by row and column scaling (zeros stay zeros)."""
        for _ in range(rounds):
            if self.marginal_error(q) < 1e-15:
                break
            rows = q.sum(1)
            q = q * np.divide(self.p1, rows, out=np.ones_like(rows), where=rows > 0)[:, None, :]
            columns = q.sum(0)
            q = q * np.divide(self.p2, columns, out=np.ones_like(columns), where=columns > 0)
        return q


def broja(
    p: ArrayLike, *, solver: Solver = "interior", tolerance: float = 1e-7, max_iterations: int | None = None
) -> DiscreteDecomposition:
    """Redundancy, unique informations and synergy of a discrete table, exactly (Bertschinger et al. 2014).

    Args:
        p: ``p[x1, x2, y]``, non-negative, sum 1; unused symbols are allowed.
        solver: ``interior`` (barrier Newton method, default) or ``alternating`` (block minimisation of Banerjee,
            Rauh, Montufar 2018; slow, a second opinion).
        tolerance: duality gap in bits at which to stop.
        max_iterations: Newton steps or sweeps; default 500 or 20000. Running out is logged and visible in the gap.

    Returns:
        All informations in bits, the gap, and the minimising table in the shape of ``p``.

    Raises:
        DataError: ``p`` is not a probability table with three axes.
        ConfigError: unknown solver, or a tolerance that is not positive.
        ArithmeticError: the solver failed so badly that a part came out negative beyond its error bound.
    """
    if not tolerance > 0:
        raise ConfigError(f"tolerance {tolerance}", "broja", "give a positive number of bits")
    table = probability_table(p, ndim=3, name="p[x1, x2, y]")
    used = [np.flatnonzero(table.sum(axis=axes) > 0) for axes in ((1, 2), (0, 2), (0, 1))]
    inner = table[np.ix_(*used)]
    p1, p2 = inner.sum(1), inner.sum(0)
    program = _Program(p1, p2, (p1[:, None, :] > 0) & (p2[None, :, :] > 0))
    if solver == "interior":
        q, gap, steps = _interior(program, tolerance * LN2, max_iterations or 500)
    elif solver == "alternating":
        q, gap, steps = _alternating(program, tolerance * LN2, max_iterations or 20000)
    else:
        raise ConfigError(f"unknown solver {solver!r}", "broja", "use interior or alternating")
    value = program.objective(q)
    gap = max(0.0, gap / LN2)
    if gap > tolerance:
        log.warning("PID solver %s stopped after %d iterations at a duality gap of %.2g bits", solver, steps, gap)
    coupling = np.zeros_like(table)
    coupling[np.ix_(*used)] = q
    return _decompose(table, coupling, value / LN2, gap, steps)


def _decompose(table: Table, coupling: Table, value: float, gap: float, steps: int) -> DiscreteDecomposition:
    """The four parts from ``p``'s own informations and ``I_Q = H(Y) + f(q)`` (``value``, ``gap`` in bits)."""
    h_y = entropy(table.sum((0, 1)))
    i1, i2 = mutual_information(table.sum(1)), mutual_information(table.sum(0))
    i12 = mutual_information(table.reshape(-1, table.shape[2]))
    i_q = h_y + value
    parts = {"redundancy": i1 + i2 - i_q, "unique1": i_q - i2, "unique2": i_q - i1, "synergy": i12 - i_q}
    for name, part in parts.items():
        if part < -CLIP_BITS - gap:
            raise ArithmeticError(f"PID {name} = {part:.3g} bits is negative beyond the duality gap {gap:.3g}")
    clipped = {name: max(0.0, part) for name, part in parts.items()}
    return DiscreteDecomposition(
        **clipped,
        total=i12,
        information1=i1,
        information2=i2,
        target_entropy=h_y,
        duality_gap=gap,
        iterations=steps,
        coupling=coupling,
    )


def _newton_step(program: _Program, q: Table, mu: float) -> tuple[Table, Table, Table, float]:
    """Newton step of ``f(q) - mu sum ln q`` on the constraints: ``(dq, a, b, squared decrement)``.

    The Hessian is block diagonal over ``(x1,x2)``: ``diag(1/q + mu/q^2) - 11'/q(x1,x2)``, inverted in closed form
    (Sherman-Morrison) as ``D + D11'D / (q(x1,x2) - 1'D1)``, ``D = q^2/(q + mu)``. Only the Schur complement of size
    ``(n1 + n2) k`` is solved numerically; least squares because one constraint per label is redundant.
    """
    s, (n1, n2, k) = program.support, q.shape
    safe = np.where(s, q, 1.0)
    pair = q.sum(2, keepdims=True)
    d = np.where(s, q * q / np.where(s, q + mu, 1.0), 0.0)
    slack = np.where(s, mu * q / np.where(s, q + mu, 1.0), 0.0).sum(2)  # q(x1,x2) - 1'D1 without cancellation
    c = np.divide(1.0, slack, out=np.zeros_like(slack), where=slack > 0)
    gradient = np.where(s, np.log(safe / np.where(pair > 0, pair, 1.0)) - mu / safe, 0.0)

    def inverse(v: Table) -> Table:
        return d * (v + (c * (d * v).sum(2))[..., None])

    eye = np.eye(k)
    block1 = np.einsum("xzy,xzw,xz->xyw", d, d, c) + d.sum(1)[:, :, None] * eye
    block2 = np.einsum("xzy,xzw,xz->zyw", d, d, c) + d.sum(0)[:, :, None] * eye
    cross = d[..., :, None] * (d[..., None, :] * c[..., None, None] + eye)
    schur = np.zeros(((n1 + n2) * k, (n1 + n2) * k))
    view = schur.reshape(n1 + n2, k, n1 + n2, k)
    view[np.arange(n1), :, np.arange(n1), :] = block1
    view[np.arange(n1, n1 + n2), :, np.arange(n1, n1 + n2), :] = block2
    view[:n1, :, n1:, :] = cross.transpose(0, 2, 1, 3)
    view[n1:, :, :n1, :] = cross.transpose(1, 3, 0, 2)
    back = inverse(gradient)
    missing = np.concatenate([program.p1 - q.sum(1) + back.sum(1), program.p2 - q.sum(0) + back.sum(0)]).ravel()
    scale = 1.0 / np.sqrt(np.where(np.diag(schur) > 0, np.diag(schur), 1.0))
    multipliers = scale * np.linalg.lstsq(schur * scale[:, None] * scale, missing * scale, rcond=1e-13)[0]
    a, b = multipliers.reshape(n1 + n2, k)[:n1], multipliers.reshape(n1 + n2, k)[n1:]
    step = np.where(s, inverse(a[:, None, :] + b[None, :, :] - gradient), 0.0)
    return step, a, b, float(-(gradient * step).sum())


def _interior(program: _Program, tolerance: float, max_iterations: int) -> tuple[Table, float, int]:
    """Barrier method (Boyd and Vandenberghe, ch. 11) with the dual bound as stopping rule; nats.

    On the central path the gap is ``mu`` times the number of cells, so ``mu`` shrinks until the certificate holds.
    """
    q, s = program.start(), program.support

    def barrier(point: Table, mu: float) -> float:
        return program.objective(point) - mu * float(np.log(point[s]).sum())

    cells = int(s.sum())
    mu = 1.0 / cells
    steps = 0
    best_q, best_gap = q, np.inf
    while steps < max_iterations:
        step, a, b, decrement = _newton_step(program, q, mu)
        steps += 1
        shrink = step[s] < 0
        length = min(1.0, 0.99 / float((-step[s][shrink] / q[s][shrink]).max())) if shrink.any() else 1.0
        here = barrier(q, mu)
        while length > 1e-10 and barrier(q + length * step, mu) > here - 0.1 * length * decrement + 1e-14:
            length *= 0.5
        q = program.scaled(q + length * step, rounds=5)  # rounding grows as 1/mu: keep the marginals exact
        gap = program.gap(q, a, b)
        if gap < best_gap:
            best_gap, best_q = gap, q
        if best_gap <= tolerance or mu < SMALLEST_BARRIER:
            break
        if decrement < 0.1 * mu or length <= 1e-10:
            mu *= 0.1
    return best_q, best_gap, steps


def _alternating(program: _Program, tolerance: float, max_iterations: int) -> tuple[Table, float, int]:
    """Alternating minimisation: r(x1|x2) from q, then per label the I-projection of r(x1|x2) p(x2,y) on Delta.

    The dual bound comes from the scalings of the projection: q = r(x1|x2) u(x1,y) v(x2,y), so ln(q / q(x1,x2)) tends
    to ``a + b``. Linear convergence, sometimes thousands of sweeps; it reaches the same optimum as the program.
    """
    q = program.start()
    gap = np.inf
    for sweep in range(1, max_iterations + 1):
        pair = q.sum(2)
        channel = pair / pair.sum(0)
        kernel = np.where(program.support, channel[..., None] * program.p2, 0.0)
        u, v = np.ones_like(program.p1), np.ones_like(program.p2)
        for _ in range(INNER_ROUNDS):
            u = np.divide(program.p1, (kernel * v).sum(1), out=np.zeros_like(u), where=program.p1 > 0)
            v_next = np.divide(program.p2, (kernel * u[:, None]).sum(0), out=np.zeros_like(v), where=program.p2 > 0)
            change = float(np.abs(v_next - v).max())
            v = v_next
            if change < 1e-13 * float(v.max()):
                break
        q = kernel * u[:, None] * v
        if sweep % 10 == 1:
            with np.errstate(divide="ignore"):
                a = np.where(program.p1 > 0, np.log(u), 0.0)
                b = np.where(program.p2 > 0, np.log(v * program.p2 / program.p2.sum(1, keepdims=True)), 0.0)
            gap = program.gap(q, a, b)
            if gap <= tolerance:
                break
    q = program.scaled(q, rounds=1000)
    return q, program.gap(q, a, b), sweep


def cluster_features(x: ArrayLike, *, clusters: int = 5, components: int = 5, seed: int = 0) -> NDArray[np.int64]:
    """Symbols of a continuous source: standardise, PCA, k-means.

    Args:
        x: ``[N, d]`` features.
        clusters: number of symbols (fewer if there are fewer distinct rows).
        components: principal components kept before clustering.
        seed: random state of PCA and k-means.

    Returns:
        ``[N]`` integers below ``clusters``.

    Raises:
        DataError: not a finite ``[N, d]`` array, or fewer rows than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0 or len(values) < clusters or not np.isfinite(values).all():
        raise DataError(
            f"shape {values.shape} or non-finite values", "features", f"expected finite [N >= {clusters}, d]"
        )
    scaled = StandardScaler().fit_transform(values)
    if not scaled.any():
        return np.zeros(len(scaled), dtype=np.int64)  # constant: one symbol, and no variance for PCA to explain
    reduced = PCA(min(components, *scaled.shape), random_state=seed).fit_transform(scaled)
    distinct = len(np.unique(reduced.round(9), axis=0))
    codes = KMeans(min(clusters, distinct), n_init=10, random_state=seed).fit_predict(reduced)
    return codes.astype(np.int64)


def count_table(codes1: ArrayLike, codes2: ArrayLike, y: ArrayLike, *, warn: bool = True) -> Table:
    """Relative frequencies ``p[x1, x2, y]`` of three columns of symbols ``0, 1, ...``, each ``[N]``.

    The plug-in bias of I(X1,X2;Y) is about ``(|X1||X2| - 1)(|Y| - 1) / (2 N ln 2)`` bits and goes almost entirely into
    synergy, so a warning is logged (unless ``warn`` is false) when the table has more than N/5 cells; report a
    permutation null with it.

    Raises:
        DataError: columns of different lengths, empty, not integers, or negative symbols.
    """
    columns = [np.asarray(values) for values in (codes1, codes2, y)]
    for name, column in zip(("x1", "x2", "y"), columns, strict=True):
        if column.ndim != 1 or column.shape != columns[2].shape or column.size == 0:
            raise DataError(f"shape {column.shape}", name, "give three columns of the same length")
        if not np.issubdtype(column.dtype, np.integer) or column.min() < 0:
            raise DataError(f"type {column.dtype} or negative symbols", name, "give integers >= 0")
    table = np.zeros([int(column.max()) + 1 for column in columns])
    rows = columns[2].size
    if warn and table.size * MIN_SAMPLES_PER_CELL > rows:
        log.warning("%d samples for %d cells: synergy of this table is biased upwards", rows, table.size)
    np.add.at(table, tuple(columns), 1.0)
    return table / rows
