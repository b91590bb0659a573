"""Normal numbers that are a function of a key and of where they are used: native/noise.h in torch, to the bit."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_TURNS = ((13, 15, 26, 6), (17, 29, 16, 24))
_BLOCK = 2**20
_LOGARITHM = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def normals(key: int, clock: int, steps: int, rows: int, units: int, like: Tensor) -> Tensor:
    """The numbers (T, B, H) that steps clock, clock + 1, ... draw, in the dtype and on the device of `like`."""
    length = _length(steps, rows, units)
    return torch.cat(
        [_block(key, clock + t, min(length, steps - t), rows, units, like) for t in range(0, steps, length)]
    )


def by_step(noise: tuple[int, int], steps: int, rows: int, units: int, like: Tensor) -> Callable[[int], Tensor]:
    """The numbers (B, H) of a step, made for several steps at once. noise: key and clock."""
    length = _length(steps, rows, units)
    made: dict[int, Tensor] = {}

    def of(t: int) -> Tensor:
        block = t // length
        if block not in made:
            made.clear()
            made[block] = _block(noise[0], noise[1] + block * length, length, rows, units, like)
        return made[block][t % length]

    return of


def _length(steps: int, rows: int, units: int) -> int:
    """How many steps at once; the intermediate arrays are several times as large as the result."""
    return max(1, min(steps, _BLOCK // (rows * units)))


def _block(key: int, clock: int, steps: int, rows: int, units: int, like: Tensor) -> Tensor:
    """Threefry-2x32 with 20 rounds: a step's key comes from key and clock, the counter is the row and half the unit.

    The Box-Muller transform turns its two words into the numbers of two neighbouring units.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958; the approximations of
    Cephes.
    """
    count: Any = {"dtype": torch.int64, "device": like.device}
    clocks = torch.arange(steps, **count) + clock
    step = threefry(clocks & _WORD, (clocks >> 32) & _WORD, key & _WORD, (key >> 32) & _WORD)
    row, pair = torch.arange(rows, **count)[:, None], torch.arange((units + 1) // 2, **count)
    a, b = threefry(row, pair, *(word[:, None, None] for word in step))
    square = _logarithm(((a >> 1).float() + 1) * 2.0**-31) * -2
    radius = square.double().sqrt().float()  # rounded as it should be; torch's root of float32 isn't
    cosine, sine = _turned(b)
    return torch.stack([radius * cosine, radius * sine], -1).flatten(-2)[..., :units].to(like.dtype)


def threefry(a: Tensor, b: Tensor, key0: Tensor | int, key1: Tensor | int) -> tuple[Tensor, Tensor]:
    """Two words of 32 bits, in int64, from a counter of two words and a key of two words."""
    keys = (key0, key1, key0 ^ key1 ^ 0x1BD11BDA)
    a, b = (a + keys[0]) & _WORD, (b + keys[1]) & _WORD
    for group in range(5):
        for turn in _TURNS[group % 2]:
            a = (a + b) & _WORD
            b = (((b << turn) & _WORD) | (b >> (32 - turn))) ^ a
        a, b = (a + keys[(group + 1) % 3]) & _WORD, (b + keys[(group + 2) % 3] + (group + 1)) & _WORD
    return a, b


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    first, second, *others = coefficients
    y = x * first + second
    for c in others:
        y = y * x + c
    return y


def _logarithm(u: Tensor) -> Tensor:
    """ln u of normal float32 numbers: u = 2^e m with m in [sqrt ½, sqrt 2), a polynomial in m - 1."""
    bits = u.view(torch.int32)
    e = (bits - 0x3F3504F3) >> 23
    f, n = (bits - (e << 23)).view(torch.float32) - 1, e.float()
    z = f * f
    y = _polynomial(f, _LOGARITHM) * f * z + n * -2.12194440e-4
    return ((y + z * -0.5) + f) + n * 0.693359375


def _turned(b: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of b / 2^32 turns, moved by an eighth: the first two bits say the quarter."""
    quarter, within = b >> 30, (((b << 2) & _WORD) ^ 0x80000000) - 0x80000000  # the latter signed
    x = (within >> 8).float() * 2.0**-24 * 1.5707963267948966
    z = x * x
    s = _polynomial(z, _SINE) * z * x + x
    c = (_polynomial(z, _COSINE) * z * z + z * -0.5) + 1
    odd = (quarter & 1) == 1
    cosine, sine = torch.where(odd, s, c), torch.where(odd, c, s)
    return torch.where(((quarter + 1) & 2) > 0, -cosine, cosine), torch.where(quarter >= 2, -sine, sine)
