"""Every function of every arithmetic path that runs here, against float64.

The bar is derived (tolerances.py): at most twice the error of PyTorch's float32 arithmetic, plus a floor.
"""

import ctypes

import pytest
import torch
from native_arithmetic import CHUNK, AdamStep, Floats, Table, chosen_rows, hidden_layer, load, names, random
from tolerances import EPSILON, assert_as_accurate

PATHS = ["avx512", "avx2", "portable"]
SIZES = [1, 7, 16, 17, 32, 33, 100]
PAIRS = [(1, 1), (7, 16), (16, 7), (17, 33), (33, 17), (32, 32), (14, 256), (256, 30), (100, 65), (256, 256)]


@pytest.fixture(params=PATHS)
def table(request, engine_library) -> Table:
    found = load(engine_library, request.param, "float32")
    if found is None:
        pytest.skip(f"{request.param} does not run here; there are {' '.join(names(engine_library))}")
    assert found.functions.path.decode() == request.param
    return found


def compare(native: torch.Tensor, formula, *inputs: torch.Tensor, name: str = "") -> None:
    """formula(*inputs) in float32 and in float64 are the reference and the exact result."""
    assert_as_accurate(native, formula(*inputs), formula(*(x.double() for x in inputs)), name)


def rows_for(table: Table, wanted: int) -> int:
    return (wanted + table.row_unit - 1) // table.row_unit * table.row_unit


def test_names_are_found_and_others_are_not(engine_library):
    there = names(engine_library)
    assert there and all(load(engine_library, *name.split(":")) for name in there)
    first = load(engine_library, "", "float32")
    assert first and f"{first.functions.path.decode()}:float32" == there[0]
    assert load(engine_library, "avx1024", "float32") is None
    assert load(engine_library, "portable", "bf16") is None
    assert load(engine_library, "", "float31") is None


def test_row_unit_divides_a_chunk(table):
    assert CHUNK % table.row_unit == 0


@pytest.mark.parametrize("kind", ["activation", "gradient"])
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("rows", [8, 264])
def test_operands_keep_what_is_stored(table, rows, columns, kind):
    values = random(rows_for(table, rows), columns)
    assert torch.equal(table.read(table.store(values, kind=kind), kind), values)


@pytest.mark.parametrize("outputs, inputs", PAIRS)
@pytest.mark.parametrize("count", [8, 136])
def test_hidden(table, outputs, inputs, count):
    count, begin = rows_for(table, count), table.row_unit
    x, w, b = random(begin + count, inputs), random(outputs, inputs, seed=1), random(outputs, seed=2)
    y_begin = 2 * table.row_unit
    y = table.hidden(table.store(x), w, b, begin=begin, y_begin=y_begin, count=count)
    all_rows = table.read(y)
    compare(all_rows[y_begin : y_begin + count], lambda x, w, b: (x @ w.T + b).relu(), x[begin:], w, b)
    assert (all_rows[:y_begin] == 0).all() and (all_rows[y_begin + count :] == 0).all()


def test_hidden_keeps_nan(table):
    x = torch.zeros(rows_for(table, 8), 5)
    x[1, 2] = float("nan")
    y = table.read(table.hidden(table.store(x), torch.ones(33, 5), torch.ones(33), count=len(x)))
    assert y[1].isnan().all() and (y[0] == 1).all()


@pytest.mark.parametrize("outputs, inputs", PAIRS)
def test_output(table, outputs, inputs):
    x, w, b = random(rows_for(table, 88), inputs), random(outputs, inputs, seed=1), random(outputs, seed=2)
    begin = table.row_unit
    compare(table.output(table.store(x), w, b, begin), lambda x, w, b: x @ w.T + b, x[begin:], w, b)


@pytest.mark.parametrize("inputs", [*SIZES, 256, 1024])
def test_value(table, inputs):
    x, w, begin = random(rows_for(table, 72), inputs), random(inputs, seed=1), table.row_unit
    compare(table.value(table.store(x), w, 0.5, begin), lambda x, w: x @ w + 0.5, x[begin:], w)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("columns", [*SIZES, 256])
def test_value_gradient(table, columns, compact):
    rows, count = rows_for(table, 264), rows_for(table, 48)
    h, w, dq = hidden_layer(rows, columns), random(columns, seed=1), random(count, seed=2)
    begin, to = table.row_unit, 2 * table.row_unit
    chosen = chosen_rows(compact, rows, begin, count)
    dy = table.value_gradient(dq, w, table.store(h), begin, chosen if compact else None, to)
    result = table.read(dy, "gradient")
    compare(result[to : to + count], lambda w, q, h: q[:, None] * w * (h > 0), w, dq, h[chosen.long()])
    assert (result[:to] == 0).all() and (result[to + count :] == 0).all()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("outputs, inputs", PAIRS)
def test_hidden_gradient(table, outputs, inputs, compact):
    rows, count = rows_for(table, 136), rows_for(table, 56)
    h, w, dy = hidden_layer(rows, inputs), random(outputs, inputs, seed=1), random(count + 64, outputs)
    begin, to = table.row_unit, 2 * table.row_unit
    chosen = chosen_rows(compact, rows, begin, count)
    gradient = table.store(dy, kind="gradient")
    dx = table.hidden_gradient(gradient, 64, w, table.store(h), begin, chosen if compact else None, to)
    result = table.read(dx, "gradient")
    compare(result[to : to + count], lambda d, w, h: d @ w * (h > 0), dy[64:], w, h[chosen.long()])
    assert (result[:to] == 0).all() and (result[to + count :] == 0).all()


@pytest.mark.parametrize("outputs, inputs", PAIRS)
def test_input_gradient(table, outputs, inputs):
    dy, w, begin = random(rows_for(table, 88), outputs), random(outputs, inputs, seed=1), table.row_unit
    matrix = table.store(dy, kind="gradient")
    compare(table.input_gradient(matrix, w, begin), lambda d, w: d @ w, dy[begin:], w)


@pytest.mark.parametrize("outputs, inputs", PAIRS)
@pytest.mark.parametrize("rows", [8, 264, 1000])
def test_weight_gradient(table, outputs, inputs, rows):
    rows = rows_for(table, rows)
    dy, x = random(rows, outputs), random(rows, inputs, seed=1)
    dw, db = table.weight_gradient(table.store(dy, kind="gradient"), table.store(x))
    compare(dw, lambda d, x: d.T @ x, dy, x, name="dW")
    compare(db, lambda d, x: d.sum(0), dy, x, name="db")


@pytest.mark.parametrize("columns", [*SIZES, 256])
@pytest.mark.parametrize("rows", [8, 64, 264])
def test_value_weight_gradient(table, columns, rows):
    h, dq = random(rows_for(table, rows), columns), random(rows_for(table, rows), seed=1)
    compare(table.value_weight_gradient(dq, table.store(h), 64), lambda h, q: q @ h, h, dq)


def adam_formula(p, m, v, g, target, step: AdamStep, tau):
    """AdamStep's numbers as given, so that float32 rounds nothing in advance that float64 does not."""
    m = m + step.one_minus_beta1 * (g - m)
    v = step.beta2 * v + step.one_minus_beta2 * g * g
    p = p - step.step_size * m / (v.sqrt() * step.inverse_root_c2 + step.epsilon)
    return torch.stack([p, m, v, target + tau * (p - target)])


def adam_inputs(n: int) -> list[torch.Tensor]:
    p, m, g, target = (random(n, seed=seed) for seed in range(4))
    v = random(n, seed=5).square() * 10.0 ** -torch.arange(n).remainder(9)
    m *= v.sqrt()
    v[::11] = m[::11] = g[::11] = 0.0  # a unit that never fired
    return [p, m, v, g, target]


@pytest.mark.parametrize("t", [1, 1000])
@pytest.mark.parametrize("tau", [None, 0.0, 0.005, 0.75, 1.0])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 100, 1023])
def test_adam(table, n, tau, t):
    step, inputs = AdamStep.at(t), adam_inputs(n)
    p, m, v, g, target = arrays = [Floats(x, offset=4 * i) for i, x in enumerate(inputs)]
    flat = [x.address for x in (p, m, v, g)]
    if tau is None:
        table.functions.adam(*flat, n, ctypes.byref(step))
    else:
        table.functions.adam_polyak(*flat, target.address, n, ctypes.byref(step), tau)
    results = [x.tensor() for x in arrays]
    reference = adam_formula(*inputs, step, tau or 0.0)
    exact = adam_formula(*(x.double() for x in inputs), step, tau or 0.0)
    for i, name in enumerate(["p", "m", "v", "target"]):
        assert_as_accurate(results[i if i < 3 else 4], reference[i], exact[i], name)
    assert torch.equal(results[3], inputs[3])
    if tau in (None, 0.0, 1.0):
        assert torch.equal(results[4], results[0] if tau else inputs[4])


def test_adam_takes_roots_and_quotients_to_rounding(table):
    """AVX-512 approximates both, each to 0.6 units in the last place (lanes.h): p = -g / sqrt(v) of normal v."""
    n = 1 << 16
    g = 1 + torch.rand(n, generator=torch.Generator().manual_seed(0))
    v = (1 + 3 * torch.rand(n, generator=torch.Generator().manual_seed(1))) * 2.0 ** (
        torch.arange(n) % 240 - 120
    )
    p, m, squares, gradients = Floats(torch.zeros(n)), Floats(torch.zeros(n)), Floats(v), Floats(g)
    step = AdamStep(1.0, 1.0, 0.0, 1.0, 1.0, 0.0)
    table.functions.adam(p.address, m.address, squares.address, gradients.address, n, ctypes.byref(step))
    exact = -g.double() / v.double().sqrt()
    error = ((p.tensor().double() - exact) / exact).abs().max().item()
    assert error <= 1.25 * EPSILON[torch.float32]
    assert torch.equal(m.tensor(), g) and torch.equal(squares.tensor(), v)


def test_adam_does_not_depend_on_the_split(table):
    """Threads take ranges of a network: whichever they are, the bytes are the same."""
    whole, parts = ([Floats(x) for x in adam_inputs(333)] for _ in range(2))
    step, n, cut = AdamStep.at(7), 333, 101
    (p, m, v, g, target) = (x.address for x in whole)
    table.functions.adam_polyak(p, m, v, g, target, n, ctypes.byref(step), 0.005)
    for begin, count in ((0, cut), (cut, n - cut)):
        p, m, v, g, target = (x.address + 4 * begin for x in parts)
        table.functions.adam_polyak(p, m, v, g, target, count, ctypes.byref(step), 0.005)
    assert all(torch.equal(a.tensor(), b.tensor()) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("outputs, inputs", [*PAIRS, (15, 8), (31, 40), (256, 23), (1, 256), (40, 376)])
def test_dense_vector(table, outputs, inputs, relu):
    w, b, x = random(outputs, inputs), random(outputs, seed=1), random(inputs, seed=2)
    weights, bias, given, y = Floats(w), Floats(b), Floats(x), Floats.empty(outputs)
    table.functions.dense_vector(
        weights.address, bias.address, outputs, inputs, given.address, y.address, relu
    )
    compare(y.tensor(), lambda w, b, x: (w @ x + b).relu() if relu else w @ x + b, w, b, x)


@pytest.mark.parametrize("n", [1, 16, 17, 63, 64, 200])
def test_finite(table, n):
    x = random(n) * 1e38
    numbers = Floats(x)
    assert table.functions.finite(numbers.address, n) and table.functions.finite(numbers.address, 0)
    for position in range(n):
        for bad in (float("nan"), float("inf"), -float("inf")):
            numbers.values[position] = bad
            assert not table.functions.finite(numbers.address, n)
        numbers.values[position] = float(x[position])
