"""The table of csrc/cpu/arithmetic.h through ctypes: its functions on tensors, with guarded memory.

Operands and packed weights are opaque: they are written with the table's own store and pack functions, and read
back by a product with the identity matrix.
"""

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, c_bool, c_char_p, c_float, c_int64, c_void_p

import torch

GUARD = 192  # bytes behind every array, which nothing may write
CHUNK = 64  # kChunkRows
PANEL = 32  # kPanel


class Operand(Structure):
    _fields_ = [("data", c_void_p), ("rows", c_int64), ("columns", c_int64)]


class AdamStep(Structure):
    _fields_ = [
        (name, c_float)
        for name in ("one_minus_beta1", "beta2", "one_minus_beta2", "step_size", "inverse_root_c2", "epsilon")
    ]

    @classmethod
    def at(cls, t: int, lr: float = 3e-4, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8):
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        return cls(1 - beta1, beta2, 1 - beta2, lr / c1, c2**-0.5, epsilon)


_SIZE = CFUNCTYPE(c_int64, c_int64, c_int64)
_PACK = CFUNCTYPE(None, c_void_p, *[c_int64] * 5, c_void_p)
_STORE = CFUNCTYPE(None, c_void_p, c_int64, Operand, c_int64, c_int64)
_ROWS = (Operand, c_int64, c_void_p)  # h, h_begin, rows
_FLAT = (c_void_p, c_void_p, c_void_p, c_void_p)  # p, m, v, g


class Functions(Structure):
    _fields_ = [
        ("path", c_char_p),
        ("precision", c_char_p),
        ("row_unit", c_int64),
        ("activation_bytes", _SIZE),
        ("gradient_bytes", _SIZE),
        ("forward_bytes", _SIZE),
        ("backward_bytes", _SIZE),
        ("pack_forward", _PACK),
        ("pack_backward", _PACK),
        ("store_activation", _STORE),
        ("store_gradient", _STORE),
        ("hidden", CFUNCTYPE(None, Operand, c_int64, Operand, c_int64, c_int64, c_void_p, c_void_p)),
        (
            "output",
            CFUNCTYPE(None, Operand, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int64),
        ),
        ("value", CFUNCTYPE(None, Operand, c_int64, c_int64, c_void_p, c_float, c_void_p)),
        ("value_gradient", CFUNCTYPE(None, c_void_p, c_void_p, *_ROWS, Operand, c_int64, c_int64)),
        ("hidden_gradient", CFUNCTYPE(None, Operand, c_int64, c_void_p, *_ROWS, Operand, c_int64, c_int64)),
        ("input_gradient", CFUNCTYPE(None, Operand, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64)),
        (
            "weight_gradient",
            CFUNCTYPE(None, Operand, c_int64, c_int64, Operand, c_void_p, c_void_p, c_void_p),
        ),
        ("weight_scratch_bytes", CFUNCTYPE(c_int64, c_int64)),
        ("value_weight_gradient", CFUNCTYPE(None, c_void_p, Operand, c_int64, c_int64, c_void_p)),
        ("adam", CFUNCTYPE(None, *_FLAT, c_int64, POINTER(AdamStep))),
        ("adam_polyak", CFUNCTYPE(None, *_FLAT, c_void_p, c_int64, POINTER(AdamStep), c_float)),
        (
            "dense_vector",
            CFUNCTYPE(None, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_bool),
        ),
        ("finite", CFUNCTYPE(c_bool, c_void_p, c_int64)),
    ]


class Memory:
    """`size` zero bytes at `offset` bytes from a 64-byte boundary, between guards that `check` looks at."""

    def __init__(self, size: int, offset: int = 0):
        self.block = torch.full((size + 2 * GUARD + 128,), 0xA5, dtype=torch.uint8)
        self.start = (-self.block.data_ptr()) % 64 + 64 * (GUARD // 64) + offset
        self.bytes = self.block[self.start : self.start + size]
        self.bytes.zero_()

    @property
    def address(self) -> int:
        return self.block.data_ptr() + self.start

    def check(self) -> None:
        end = self.start + len(self.bytes)
        assert (self.block[: self.start] == 0xA5).all() and (self.block[end:] == 0xA5).all(), "guard written"


class Floats(Memory):
    """Guarded float32 numbers, by default not 64-byte aligned, as slices of a flat buffer are not."""

    def __init__(self, values: torch.Tensor, offset: int = 4):
        super().__init__(4 * values.numel(), offset)
        self.values = self.block.narrow(0, self.start, len(self.bytes)).numpy().view("float32")
        self.values[:] = values.reshape(-1).numpy()
        self.shape = values.shape

    @classmethod
    def empty(cls, *shape: int, offset: int = 4) -> "Floats":
        return cls(torch.full(shape, float("nan")), offset)

    def tensor(self) -> torch.Tensor:
        self.check()
        return torch.from_numpy(self.values.copy()).reshape(self.shape)


class Matrix(Memory):
    """An Operand with its memory."""

    def __init__(self, size: int, rows: int, columns: int):
        super().__init__(size)
        self.operand = Operand(self.address, rows, columns)
        self.rows, self.columns = rows, columns


class Table:
    """One arithmetic path at one precision. Row counts are multiples of row_unit throughout."""

    def __init__(self, functions: Functions):
        self.functions = functions
        self.row_unit = functions.row_unit
        self.precision = functions.precision.decode()

    def activation(self, rows: int, columns: int) -> Matrix:
        return Matrix(self.functions.activation_bytes(rows, columns), rows, columns)

    def gradient(self, rows: int, columns: int) -> Matrix:
        return Matrix(self.functions.gradient_bytes(rows, columns), rows, columns)

    def store(self, values: torch.Tensor, *, kind: str = "activation", padding: int = 3) -> Matrix:
        """A new operand with these rows, given `padding` floats apart."""
        matrix = getattr(self, kind)(*values.shape)
        rows = Floats(torch.nn.functional.pad(values, (0, padding), value=float("nan")))
        put = getattr(self.functions, f"store_{kind}")
        half = values.shape[0] // (2 * self.row_unit) * self.row_unit  # in two calls, for `begin`
        stride = values.shape[1] + padding
        put(rows.address, stride, matrix.operand, 0, half)
        put(rows.address + 4 * half * stride, stride, matrix.operand, half, values.shape[0] - half)
        matrix.check()
        return matrix

    def pack(self, w: torch.Tensor, direction: str) -> Memory:
        """Packed [outputs, inputs] weights, in calls of one panel as threads make them."""
        outputs, inputs = w.shape
        packed = Memory(getattr(self.functions, f"{direction}_bytes")(outputs, inputs))
        master = Floats(w)
        for begin in reversed(range(0, outputs, PANEL)):
            end = min(begin + PANEL, outputs)
            getattr(self.functions, f"pack_{direction}")(
                master.address, inputs, outputs, inputs, begin, end, packed.address
            )
        packed.check()
        return packed

    def read(self, matrix: Matrix, kind: str = "activation") -> torch.Tensor:
        """The numbers of an operand, as the product with the identity gives them."""
        identity = torch.eye(matrix.columns)
        if kind == "activation":
            return self.output(matrix, identity, torch.zeros(matrix.columns))
        return self.input_gradient(matrix, identity)

    def chunks(self, rows: int):
        return ((begin, min(CHUNK, rows - begin)) for begin in range(0, rows, CHUNK))

    def hidden(
        self, x: Matrix, w: torch.Tensor, b: torch.Tensor, *, begin: int = 0, y_begin: int = 0, count: int
    ) -> Matrix:
        y = self.activation(y_begin + count + self.row_unit, w.shape[0])
        packed, bias = self.pack(w, "forward"), Floats(b)
        for at, some in self.chunks(count):
            self.functions.hidden(
                x.operand, begin + at, y.operand, y_begin + at, some, packed.address, bias.address
            )
        y.check()
        return y

    def output(self, x: Matrix, w: torch.Tensor, b: torch.Tensor, begin: int = 0, count: int = -1):
        outputs = w.shape[0]
        count = x.rows - begin if count < 0 else count
        stride = (outputs + 15) // 16 * 16 + 16
        packed, bias, out = self.pack(w, "forward"), Floats(b), Floats.empty(count, stride, offset=0)
        for at, some in self.chunks(count):
            self.functions.output(
                x.operand,
                begin + at,
                some,
                packed.address,
                bias.address,
                outputs,
                out.address + 4 * at * stride,
                stride,
            )
        result = out.tensor()
        assert result[:, stride - 16 :].isnan().all(), "written beyond the columns rounded up to 16"
        return result[:, :outputs]

    def value(self, x: Matrix, w: torch.Tensor, b: float, begin: int = 0) -> torch.Tensor:
        count = x.rows - begin
        weights, q = Floats(w), Floats.empty(count)
        for at, some in self.chunks(count):
            self.functions.value(x.operand, begin + at, some, weights.address, b, q.address + 4 * at)
        return q.tensor()

    def value_gradient(
        self, dq: torch.Tensor, w: torch.Tensor, h: Matrix, begin: int, rows: torch.Tensor | None, to: int
    ) -> Matrix:
        """From row `to` on, by the rows of h from `begin` on, or by its `rows` (int32)."""
        count, chosen = len(dq), None if rows is None else rows.data_ptr()
        dy, factors, weights = self.gradient(to + count + self.row_unit, h.columns), Floats(dq), Floats(w)
        self.functions.value_gradient(
            factors.address, weights.address, h.operand, begin, chosen, dy.operand, to, count
        )
        dy.check()
        return dy

    def hidden_gradient(
        self,
        dy: Matrix,
        dy_begin: int,
        w: torch.Tensor,
        h: Matrix,
        begin: int,
        rows: torch.Tensor | None,
        to: int,
    ) -> Matrix:
        count, chosen = dy.rows - dy_begin, None if rows is None else rows.data_ptr()
        dx, packed = self.gradient(to + count + self.row_unit, h.columns), self.pack(w, "backward")
        self.functions.hidden_gradient(
            dy.operand, dy_begin, packed.address, h.operand, begin, chosen, dx.operand, to, count
        )
        dx.check()
        return dx

    def input_gradient(self, dy: Matrix, w: torch.Tensor, begin: int = 0, count: int = -1) -> torch.Tensor:
        inputs = w.shape[1]
        count = dy.rows - begin if count < 0 else count
        stride = (inputs + 15) // 16 * 16 + 16
        packed, dx = self.pack(w, "backward"), Floats.empty(count, stride, offset=0)
        for at, some in self.chunks(count):
            self.functions.input_gradient(
                dy.operand, begin + at, some, packed.address, inputs, dx.address + 4 * at * stride, stride
            )
        result = dx.tensor()
        assert result[:, stride - 16 :].isnan().all(), "written beyond the columns rounded up to 16"
        return result[:, :inputs]

    def weight_gradient(self, dy: Matrix, x: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
        scratch = Memory(self.functions.weight_scratch_bytes(x.columns))
        parts = []
        for begin in range(0, dy.columns, PANEL):
            end = min(begin + PANEL, dy.columns)
            dw, db = Floats.empty(end - begin, x.columns), Floats.empty(end - begin)
            self.functions.weight_gradient(
                dy.operand, begin, end, x.operand, dw.address, db.address, scratch.address
            )
            parts.append((dw.tensor(), db.tensor()))
        scratch.check()
        return torch.cat([dw for dw, _ in parts]), torch.cat([db for _, db in parts])

    def value_weight_gradient(self, dq: torch.Tensor, h: Matrix, width: int) -> torch.Tensor:
        """In calls of `width` columns."""
        factors, dw = Floats(dq), Floats.empty(h.columns)
        for begin in range(0, h.columns, width):
            end = min(begin + width, h.columns)
            self.functions.value_weight_gradient(factors.address, h.operand, begin, end, dw.address)
        return dw.tensor()


def load(library: ctypes.CDLL, path: str, precision: str) -> Table | None:
    library.sacfast_arithmetic.restype = POINTER(Functions)
    found = library.sacfast_arithmetic(path.encode(), precision.encode())
    return Table(found.contents) if found else None


def names(library: ctypes.CDLL) -> list[str]:
    library.sacfast_arithmetic_names.restype = c_char_p
    return library.sacfast_arithmetic_names().decode().split()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def hidden_layer(rows: int, columns: int) -> torch.Tensor:
    """Half of the units are off, some of them with a zero of each sign."""
    h = random(rows, columns).relu()
    h[:, ::5] = -0.0
    return h


def chosen_rows(compact: bool, rows: int, begin: int, count: int) -> torch.Tensor:
    """`count` of `rows` rows: those from `begin` on, or, `compact`, any."""
    if not compact:
        return torch.arange(begin, begin + count, dtype=torch.int32)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
    return order[:count].sort().values.to(torch.int32)
