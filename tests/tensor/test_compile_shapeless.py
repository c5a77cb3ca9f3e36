"""``compile(shapeless=True)``: as the function itself for every shape, with one plan where traces do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import Tensor, Var
from metal_candle.tensor import plan_store

import numpy as np
import pytest


def filled(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


def test_one_plan_for_all_shapes() -> None:
    @mc.compile(shapeless=True)
    def f(x: Tensor, y: Tensor) -> Tensor:
        return (x.matmul(y) * 2.0).softmax(-1).sum_keepdim(-1) + y.sum_all()

    assert f.explain() == ""
    for m, k, n in ((2, 3, 4), (5, 3, 2), (7, 2, 9), (1, 1, 1), (2, 3, 4), (3, 0, 2)):
        x, y = filled(m, k), filled(k, n)
        np.testing.assert_allclose(f(x, y).numpy(), np.full((m, 1), 1 + y.numpy().sum()), rtol=1e-5, atol=1e-5)
    assert f.traces == 5
    assert len(f._store.kept) == 1
    assert "serves 5 tuples of shapes" in f.explain()
    assert "plan 1" not in f.explain()
    f(filled(1, 1).to_dtype("f16"), filled(1, 1).to_dtype("f16"))
    assert "plan 1:" in f.explain()
    assert repr(f) == "compile(f): 2 plans"


CHECKED: list[tuple[Callable[[Tensor], Any], list[tuple[int, ...]]]] = [
    (lambda x: x + x.transpose(0, 1), [(2, 2), (3, 3), (2, 3), (3, 3)]),
    (lambda x: x.sum_all() / x.dim(-1), [(2, 4), (3, 4), (3, 5), (2, 4)]),
    (lambda x: x.narrow(0, 0, 5), [(6, 2), (7, 2), (4, 2), (5, 2)]),
    (lambda x: x.get(4), [(6, 2), (7, 2), (4, 2), (5, 2)]),
    (lambda x: x[4], [(6, 2), (7, 2), (4, 2), (5, 2)]),
    (lambda x: x.reshape((2, 6)), [(3, 4), (4, 3), (2, 6), (3, 3)]),
    (lambda x: x * 2.0 if x.dim(0) < 4 else x + 1.0, [(2, 2), (3, 2), (4, 2), (2, 2)]),
    (lambda x: (x * 1.0, x.dim(0)), [(2, 2), (3, 2), (4, 2), (2, 2)]),
    (lambda x: x * (0.0 if x.dim(0) < 3 else -0.0), [(2, 2), (3, 2), (4, 2)]),
]


@pytest.mark.parametrize(("function", "shapes"), CHECKED, ids=range(len(CHECKED)))
def test_every_shape_gives_what_the_function_gives(function: Callable[[Tensor], Any], shapes: list[Any]) -> None:
    """Errors too: the second round finds the plans of the first."""

    def outcome(call: Callable[[Tensor], Any], x: Tensor) -> Any:
        try:
            found = call(x)
        except mc.Error as error:
            return type(error), str(error)
        parts = found if isinstance(found, tuple) else (found,)
        return [(p.shape, repr(p.tolist())) if isinstance(p, Tensor) else p for p in parts]

    f = mc.compile(function, shapeless=True)
    for shape in shapes * 2:
        x = filled(*shape)
        assert outcome(f, x) == outcome(function, x)


def test_an_error_of_a_third_shape_is_the_functions_own() -> None:
    f = mc.compile(lambda x, y: x.add(y), shapeless=True)
    f(filled(2), filled(2))
    f(filled(3), filled(3))
    with pytest.raises(ValueError, match=r"add: got shapes \(2,\) and \(1,\)"):
        f(filled(2), filled(1))


def test_a_plan_that_depends_on_the_shape_is_not_shared() -> None:
    f = mc.compile(lambda x: x.reshape((x.dim(0) * x.dim(1),)) * 2.0, shapeless=True)
    for m, n in ((2, 3), (4, 5), (1, 7), (2, 3), (3, 2)):
        x = np.arange(m * n, dtype=np.float32).reshape(m, n)
        np.testing.assert_array_equal(f(Tensor(x)).numpy(), x.reshape(-1) * 2)
    assert f.traces == 4
    assert [line for line in f.explain().splitlines() if "because reshape" in line] == [
        "  shares no plan because reshape(shape=(6,)) for one shape, reshape(shape=(20,)) for another",
        "  shares no plan because reshape(shape=(20,)) for one shape, reshape(shape=(7,)) for another",
    ]
    assert "serves 2 tuples of shapes" in f.explain()


def test_a_shape_that_a_rule_did_not_foresee_gets_its_own_plan() -> None:
    """Traced with a base of the full shape, which fuses; later the base is one row, which broadcasts."""
    f = mc.compile(lambda base, x, a, b: base + x.matmul(a).matmul(b) * 0.5, shapeless=True)

    def check(rows: int, t: int) -> None:
        base, x, a, b = (filled(*shape) for shape in ((rows, 16), (t, 16), (16, 4), (4, 16)))
        want = base.numpy() + x.numpy() @ a.numpy() @ b.numpy() * 0.5
        np.testing.assert_allclose(f(base, x, a, b).numpy(), want, rtol=1e-4, atol=1e-4)

    for rows, t in ((3, 3), (5, 5), (1, 4), (8, 8), (1, 4), (1, 6)):
        check(rows, t)
    assert (f.traces, len(f._store.kept)) == (5, 2)
    with pytest.raises(ValueError, match=r"add: got shapes \(2, 16\) and \(3, 16\)"):
        f(filled(2, 16), filled(3, 16), filled(16, 4), filled(4, 16))


def test_what_a_shapeless_function_makes_inside_counts() -> None:
    f = mc.compile(lambda x: x + Tensor.ones((x.dim(0),), "f32"), shapeless=True)
    for n in (2, 3, 4):
        assert f(Tensor(np.zeros(n, np.float32))).to_vec1() == [1.0] * n
    assert f.traces == 3
    assert "shares no plan because it holds a tensor [2] for one shape, [3] for another" in f.explain()
    g = mc.compile(lambda x: x + Tensor(float(x.dim(0))), shapeless=True)
    assert [g(filled(n)).shape for n in (2, 3)] == [(2,), (3,)]
    assert "shares no plan because the number 2.0 for one shape, 3.0 for another" in g.explain()


def test_shapeless_gradients() -> None:
    w = Var([2.0, 3.0])

    @mc.compile(shapeless=True)
    def step(x: Tensor) -> Any:
        loss = (x * w).sqr().mean_all()
        return loss, loss.backward()[w]

    for n in (1, 2, 3, 4, 3):
        x = np.ones((n, 2), np.float32) * n
        loss, gradient = step(Tensor(x))
        np.testing.assert_allclose(loss.numpy(), n * n * 6.5, rtol=1e-6)
        np.testing.assert_allclose(gradient.numpy(), np.array([2.0, 3.0]) * n * n, rtol=1e-6)
    assert (step.traces, len(step._store.kept)) == (4, 1)


def test_shapes_and_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_store, "MOST_SHAPES", 4)
    f = mc.compile(lambda x: x * 2.0, shapeless=True, max_plans=2)
    for n in range(1, 8):
        f(filled(n))
    assert (len(f._plans), len(f._store.kept)) == (4, 1)
    assert "serves 4 tuples of shapes" in f.explain()
    g = mc.compile(lambda x: x * float(x.dim(0)), shapeless=True, max_plans=2)
    g(filled(1))
    g(filled(2))
    with pytest.warns(RuntimeWarning, match="max_plans is 2"):
        g(filled(3))
    g(filled(4))
    assert (len(g._plans), len(g._store.kept)) == (2, 2)
    g(filled(3))
    assert g.traces == 4
