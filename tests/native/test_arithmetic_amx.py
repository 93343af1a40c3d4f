"""The AMX path at its three precisions against float64, on emulated tiles and, where there are some, on real ones.

Splitting numbers into one, two or three bf16 has its own bar, relative to what a sum's terms add up to in
absolute value: 2^-7, 2^-15 and nothing (csrc/cpu/arithmetic_amx.cpp). Added to it is float32's: twice the error of
PyTorch's float32 arithmetic and a floor (tolerances.py).
"""

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from native_arithmetic import AdamStep, Floats, Memory, Table, chosen_rows, hidden_layer, load, names, random
from tolerances import error_bar

from sacfast.native import machine, toolchain
from sacfast.native.reports import BuildError

SOURCES = toolchain.source_root()
EXPORTS = """
#include "cpu/amx_tiles.h"
#include "cpu/arithmetic.h"
using namespace sacfast::cpu;
extern "C" const Arithmetic* sacfast_arithmetic(const char* path, const char* precision) {
  return find_arithmetic(path, precision);
}
extern "C" const char* sacfast_arithmetic_names() { return arithmetic_names(); }
extern "C" void sacfast_tile_dot(float* c, const char* a, const char* b) {
  const Tiles tiles;
  tile_load<0>(c, 16);
  tile_load<1>(a);
  tile_load<2>(b);
  tile_dot<0, 1, 2>();
  tile_store<0>(c, 16);
}
"""

# What a product leaves out of |a b|, and what a stored operand leaves out of |x|.
LEFT_OUT = {"bf16": 2.0**-7, "bf16x3": 2.0**-15, "float32": 0.0}
STORED = {"bf16": 2.0**-8, "bf16x3": 2.0**-17, "float32": 0.0}
PAIRS = [(1, 1), (7, 16), (16, 7), (17, 33), (33, 17), (32, 32), (64, 31), (14, 256), (256, 30), (256, 256)]
COLUMNS = [1, 7, 16, 17, 31, 32, 33, 64, 256]


FOUND = machine.cpu_paths()
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif("avx512" not in FOUND, reason="no AVX-512, which the AMX path is written in"),
]
PATHS = ["amx-emulated", "amx"] if "amx" in FOUND else ["amx-emulated"]


def compile_library(path: str, folder: Path) -> Path:
    try:
        compiler = toolchain.find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    exports = folder / "exports.cpp"
    exports.write_text(EXPORTS)
    flags = [*toolchain.flags(), *toolchain.path_flags(path), "-DSACFAST_PATH_AMX"]
    common = [*compiler, *flags, f"-I{SOURCES}"]
    sources = [exports, *(SOURCES / "cpu" / f"{name}.cpp" for name in ("arithmetic", "arithmetic_amx"))]
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    running = [
        subprocess.Popen([*common, "-c", str(source), "-o", made])
        for source, made in zip(sources, objects, strict=True)
    ]
    assert all([process.wait() == 0 for process in running])
    library = folder / "arithmetic.so"
    subprocess.run([*compiler, "-shared", *objects, "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="module", params=PATHS)
def library(request, tmp_path_factory) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(compile_library(request.param, tmp_path_factory.mktemp(request.param))))
    there = names(loaded)
    if request.param == "amx" and not there:
        pytest.skip("the system grants no tiles")
    assert there == [f"{request.param}:{precision}" for precision in ("float32", "bf16x3", "bf16")]
    return loaded


@pytest.fixture(params=list(LEFT_OUT))
def table(request, library) -> Table:
    return load(library, "", request.param)


def compare(table: Table, result: torch.Tensor, formula, *inputs: torch.Tensor, stored=False, products=True):
    """formula(*inputs), of absolute values, says how large the terms are that add up to a result.

    stored: the result has been through an operand; products: it is a product of two split matrices.
    """
    exact = formula(*(x.double() for x in inputs))
    bar = torch.full_like(exact, error_bar(formula(*inputs), exact))
    if products:
        bar += LEFT_OUT[table.precision] * formula(*(x.double().abs() for x in inputs))
    if stored:
        bar += STORED[table.precision] * (exact.abs() + bar)
    excess = ((result.double() - exact).abs() - bar).max().item()
    assert excess <= 0, f"the bar is exceeded by {excess:.3g} of {bar.max().item():.3g}"


def rounded(table: Table, x: torch.Tensor) -> torch.Tensor:
    """x as an operand has it."""
    return table.read(table.store(x))


def test_real_tiles_compile(tmp_path):
    """Here, whatever the CPU: the instructions, not their emulation."""
    library = compile_library("amx", tmp_path)
    if shutil.which("objdump"):
        listing = subprocess.run(
            ["objdump", "-d", library], capture_output=True, text=True, check=True
        ).stdout
        assert all(
            name in listing for name in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease")
        )


# ---------------------------------------------------------------------------------------------- tiles


def tile_dot(library, c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """c + a b for c [16, 16], a bf16 [16, 32], b bf16 [32, 16], on tiles."""
    memory = [Memory(1024) for _ in range(3)]
    pairs = b.reshape(16, 2, 16).transpose(1, 2).contiguous()
    for tile, values in zip(memory, (c.contiguous(), a.contiguous(), pairs), strict=True):
        tile.bytes.copy_(values.view(torch.uint8).reshape(-1))
    library.sacfast_tile_dot(*(ctypes.c_void_p(tile.address) for tile in memory))
    for tile in memory:
        tile.check()
    return memory[0].bytes.clone().view(torch.float32).reshape(16, 16)


def test_tile_dot_is_the_instruction(library):
    """Even and odd elements apart, in float32, in order; a product of two bf16 is exact in float32."""
    a, b, c = random(16, 32).bfloat16(), random(32, 16, seed=1).bfloat16(), random(16, 16, seed=2)
    even, odd = torch.zeros(16, 16), torch.zeros(16, 16)
    for k in range(0, 32, 2):
        even = even + a.float()[:, k, None] * b.float()[k]
        odd = odd + a.float()[:, k + 1, None] * b.float()[k + 1]
    result = tile_dot(library, c, a, b)
    assert torch.equal(result, c + (even + odd))
    exact = c.double() + a.double() @ b.double()
    assert (result.double() - exact).abs().max() <= error_bar(c + a.float() @ b.float(), exact)


def test_tile_dot_takes_denormals_for_zeros(library):
    one, zero = torch.ones(16, 32).bfloat16(), torch.zeros(16, 16)
    tiny = torch.full((32, 16), 2.0**-130).bfloat16()
    assert (tile_dot(library, zero, one, tiny) == 0).all()
    assert (tile_dot(library, zero + 2.0**-130, one * 0, tiny * 0) == 0).all()
    small = torch.full((32, 16), 2.0**-66).bfloat16()  # the products are denormal
    assert (tile_dot(library, zero, small.T, small) == 0).all()


def test_tile_dot_keeps_nan_and_infinity(library):
    a, b = torch.ones(16, 32).bfloat16(), torch.ones(32, 16).bfloat16()
    a[3, 4], a[5, 6] = float("nan"), float("inf")
    result = tile_dot(library, torch.zeros(16, 16), a, b)
    assert result[3].isnan().all() and result[5].isinf().all() and (result[4] == 32).all()


# ------------------------------------------------------------------------------------------- operands


def test_rows_come_in_whole_blocks(table):
    assert table.row_unit == 32


@pytest.mark.parametrize("kind", ["activation", "gradient"])
@pytest.mark.parametrize("columns", COLUMNS)
def test_operands_keep_what_is_stored(table, columns, kind):
    values = random(96, columns) * 10.0 ** torch.randint(-20, 20, (96, columns))
    error = (table.read(table.store(values, kind=kind), kind) - values).abs()
    assert (error <= STORED[table.precision] * values.abs()).all()


@pytest.mark.parametrize("columns", [1, 33, 256])
def test_both_forms_of_an_operand_agree(table, columns):
    """dW with a gradient that is the identity reads the form that forward products do not."""
    x, rows = random(64, columns), torch.eye(64)
    dw, _ = table.weight_gradient(table.store(rows, kind="gradient"), table.store(x))
    assert torch.equal(dw, rounded(table, x))
    dw, db = table.weight_gradient(table.store(x, kind="gradient"), table.store(rows))
    assert torch.equal(dw, rounded(table, x).T)
    compare(table, db, lambda x: x.sum(0), x)


# ------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("outputs, inputs", PAIRS)
@pytest.mark.parametrize("count", [32, 96])
def test_hidden(table, outputs, inputs, count):
    x, w, b = random(32 + count, inputs), random(outputs, inputs, seed=1), random(outputs, seed=2)
    y = table.read(table.hidden(table.store(x), w, b, begin=32, y_begin=64, count=count))
    compare(table, y[64 : 64 + count], lambda x, w, b: (x @ w.T + b).relu(), x[32:], w, b, stored=True)
    assert (y[:64] == 0).all() and (y[64 + count :] == 0).all()


def test_hidden_does_not_depend_on_the_chunks(table):
    x, w, b = table.store(random(64, 40)), random(70, 40, seed=1), random(70, seed=2)
    whole, parts = table.hidden(x, w, b, count=64), table.activation(96, 70)
    packed, bias = table.pack(w, "forward"), Floats(b)
    for row in (32, 0):
        table.functions.hidden(x.operand, row, parts.operand, row, 32, packed.address, bias.address)
    assert torch.equal(whole.bytes, parts.bytes)


def test_hidden_keeps_nan(table):
    x = torch.zeros(32, 5)
    x[1, 2] = float("nan")
    y = table.read(table.hidden(table.store(x), torch.ones(33, 5), torch.ones(33), count=32))
    assert y[1].isnan().all() and (y[0] == 1).all()


@pytest.mark.parametrize("outputs, inputs", PAIRS)
def test_output(table, outputs, inputs):
    x, w, b = random(128, inputs), random(outputs, inputs, seed=1), random(outputs, seed=2)
    result = table.output(table.store(x), w, b, 32)
    compare(table, result, lambda x, w, b: x @ w.T + b, x[32:], w, b)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("outputs, inputs", PAIRS)
def test_hidden_gradient(table, outputs, inputs, compact):
    h, w, dy = hidden_layer(160, inputs), random(outputs, inputs, seed=1), random(128, outputs)
    rows = chosen_rows(compact, 160, 32, 64)
    gradient = table.store(dy, kind="gradient")
    dx = table.hidden_gradient(gradient, 64, w, table.store(h), 32, rows if compact else None, 64)
    result, passes = table.read(dx, "gradient"), h[rows.long()] > 0
    compare(table, result[64:128], lambda d, w: d @ w * passes, dy[64:], w, stored=True)
    assert (result[:64] == 0).all() and (result[128:] == 0).all()


@pytest.mark.parametrize("outputs, inputs", PAIRS)
def test_input_gradient(table, outputs, inputs):
    dy, w = random(96, outputs), random(outputs, inputs, seed=1)
    result = table.input_gradient(table.store(dy, kind="gradient"), w, 32)
    compare(table, result, lambda d, w: d @ w, dy[32:], w)


@pytest.mark.parametrize(
    "rows, outputs, inputs", [*((r, *p) for r in (32, 288) for p in PAIRS), (1056, 33, 65)]
)
def test_weight_gradient(table, rows, outputs, inputs):
    dy, x = random(rows, outputs), random(rows, inputs, seed=1)
    dw, db = table.weight_gradient(table.store(dy, kind="gradient"), table.store(x))
    compare(table, dw, lambda d, x: d.T @ x, dy, x)
    compare(table, db, lambda d: d.sum(0), dy)


# ------------------------------------------------------------------------------- a critic's last layer


@pytest.mark.parametrize("columns", COLUMNS)
def test_value(table, columns):
    """float32 with the activation as it is stored."""
    x, w = random(96, columns), random(columns, seed=1)
    result = table.value(table.store(x), w, 0.5, 32)
    compare(table, result, lambda x, w: x @ w + 0.5, rounded(table, x)[32:], w, products=False)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("columns", COLUMNS)
def test_value_gradient(table, columns, compact):
    h, w, dq = hidden_layer(160, columns), random(columns, seed=1), random(64, seed=2)
    rows = chosen_rows(compact, 160, 32, 64)
    dy = table.value_gradient(dq, w, table.store(h), 32, rows if compact else None, 64)
    result, passes = table.read(dy, "gradient"), h[rows.long()] > 0
    formula = lambda w, q: q[:, None] * w * passes  # noqa: E731
    compare(table, result[64:128], formula, w, dq, stored=True, products=False)
    assert (result[:64] == 0).all() and (result[128:] == 0).all()


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", [32, 288])
def test_value_weight_gradient(table, columns, rows):
    h, dq = random(rows, columns), random(rows, seed=1)
    result = table.value_weight_gradient(dq, table.store(h), 32)
    compare(table, result, lambda h, q: q @ h, rounded(table, h), dq, products=False)


# ------------------------------------------------------------------------- what float32 paths share


def test_parameters_and_one_observation_are_float32(table):
    n, step, tau = 100, AdamStep.at(3), 0.25
    p, m, v, g, target = (random(n, seed=seed) for seed in range(5))
    arrays = [Floats(x) for x in (p, m, v.square(), g, target)]
    before = [x.tensor().double() for x in arrays]
    table.functions.adam_polyak(*(x.address for x in arrays), n, ctypes.byref(step), tau)
    mean = before[1] + step.one_minus_beta1 * (before[3] - before[1])
    square = step.beta2 * before[2] + step.one_minus_beta2 * before[3] ** 2
    value = before[0] - step.step_size * mean / (square.sqrt() * step.inverse_root_c2 + step.epsilon)
    for array, exact in zip(arrays[:3], (value, mean, square), strict=True):
        torch.testing.assert_close(array.tensor().double(), exact, rtol=1e-6, atol=1e-6)
    average = before[4] + tau * (value - before[4])
    torch.testing.assert_close(arrays[4].tensor().double(), average, rtol=1e-6, atol=1e-6)

    w, b, x = inputs = random(33, 30), random(33, seed=1), random(30, seed=2)
    weights, bias, observation, y = *(Floats(given) for given in inputs), Floats.empty(33)
    table.functions.dense_vector(weights.address, bias.address, 33, 30, observation.address, y.address, True)
    compare(table, y.tensor(), lambda w, b, x: (w @ x + b).relu(), w, b, x, products=False)
    assert table.functions.finite(y.address, 33)
    y.values[32] = float("inf")
    assert not table.functions.finite(y.address, 33)


def test_tiles_belong_to_each_thread(table):
    """Calls configure the tiles of the thread they are made on: many at once give the same bytes as one."""
    x, w, b = table.store(random(64, 100)), random(64, 100, seed=1), random(64, seed=2)
    once = table.hidden(x, w, b, count=64)
    with ThreadPoolExecutor(4) as pool:
        many = pool.map(lambda _: table.hidden(x, w, b, count=64), range(16))
        assert all(torch.equal(y.bytes, once.bytes) for y in many)
