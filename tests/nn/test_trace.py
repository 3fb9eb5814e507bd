"""The trace of a Jacobian: exact against autograd's own, and what Hutchinson's probes cost in variance."""

import pytest
import torch

from gencli.core import Rng
from gencli.nn.trace import exact, hutchinson, signs


def matrix(symmetric=True):
    made = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (made + made.T) / 2 if symmetric else made


def test_the_exact_trace_is_that_of_the_jacobian_and_can_be_differentiated():
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def f(x):
        return (x.flatten(1) @ matrix(False)[:4, :4]).reshape(x.shape).sin() * x.square().sum((1, 2))[:, None, None]

    found = exact(again=True)(f(x), x)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda row: f(row[None])[0].flatten(), x[i]).reshape(4, 4)
        torch.testing.assert_close(found[i], jacobian.trace())
    assert torch.autograd.grad(found.sum(), x)[0].abs().sum() > 0
    torch.testing.assert_close(exact()(f(x), x), found.detach())


def estimates(a, probes):
    """v·A v of every probe `(K, 6)`."""
    x = torch.zeros(len(probes), 6, dtype=torch.float64, requires_grad=True)
    return hutchinson([probes])(x @ a.T, x)


def test_probes_are_right_on_average_and_signs_vary_least():
    a, n = matrix(), 100_000
    of_signs = estimates(a, signs(Rng.batch("s", total=n), torch.zeros(n, 6, dtype=torch.float64)))
    of_normal = estimates(a, Rng.batch("n", total=n).normal((n, 6), torch.float64))
    for found in (of_signs, of_normal):
        assert abs(found.mean() - a.trace()) < 3 * found.std() / n**0.5
    assert of_signs.var() < of_normal.var()
    off = a - torch.diag(a.diag())
    assert of_signs.var() == pytest.approx(2 * float(off.square().sum()), rel=0.03), "the diagonal adds none"
    assert estimates(torch.diag(a.diag()), signs(Rng.batch("d", total=64), torch.zeros(64, 6).double())).var() < 1e-24


def test_the_mean_of_probes_is_the_mean_of_each():
    a = matrix(False)
    drawn = [signs(Rng.batch(i, total=5), torch.zeros(5, 6).double()) for i in range(3)]
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    together = hutchinson(drawn)((x @ a.T).tanh(), x)
    torch.testing.assert_close(together, sum(hutchinson([v])((x @ a.T).tanh(), x) for v in drawn) / 3)
