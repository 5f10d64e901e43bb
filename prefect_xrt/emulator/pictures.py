"""The pictures beside a product's files: what a reader needs to see that pictures are shown, and no science."""

from __future__ import annotations

import math
import random
from functools import cache

__all__ = ["plot", "sky"]

_WIDTH, _HEIGHT = 200, 150
_GREYS = 16
_CODE_BITS = 4
_MAX_CODES = 4096
_BLOCK_BYTES = 255
_MARGIN = 12
_BACKGROUND = 0.04


@cache
def plot() -> bytes:
    """Draw falling points with errors and a curve through them, in a frame, as GIF."""
    pixels = bytearray([_GREYS - 1]) * (_WIDTH * _HEIGHT)
    right, bottom = _WIDTH - _MARGIN, _HEIGHT - _MARGIN

    def dot(x: int, y: int, grey: int = 0) -> None:
        if _MARGIN <= x <= right and _MARGIN <= y <= bottom:
            pixels[y * _WIDTH + x] = grey

    for x in range(_MARGIN, right + 1):
        dot(x, _MARGIN)
        dot(x, bottom)
        dot(x, int(_MARGIN + 20 + 0.5 * (x - _MARGIN)), 9)
    for y in range(_MARGIN, bottom + 1):
        dot(_MARGIN, y)
        dot(right, y)
    chance = random.Random(1)  # noqa: S311 - no secret
    for x in range(_MARGIN + 6, right, 9):
        y = int(_MARGIN + 20 + 0.5 * (x - _MARGIN) + chance.gauss(0, 3))
        error = 3 + x // 30
        for step in range(-error, error + 1):
            dot(x, y + step)
        for step in range(-3, 4):
            dot(x + step, y)
    return _gif(pixels)


@cache
def sky() -> bytes:
    """Draw a source on a faint background, as GIF."""
    chance = random.Random(2)  # noqa: S311 - no secret
    pixels = bytearray()
    for y in range(_HEIGHT):
        for x in range(_WIDTH):
            radius = math.hypot(x - _WIDTH / 2, y - _HEIGHT / 2)
            light = 1.4 * _GREYS / (1 + (radius / 5) ** 2) ** 1.5 + 5 * (chance.random() < _BACKGROUND)
            pixels.append(min(int(light), _GREYS - 1))
    return _gif(pixels)


def _gif(pixels: bytearray) -> bytes:
    size = _WIDTH.to_bytes(2, "little") + _HEIGHT.to_bytes(2, "little")
    palette = b"".join(bytes([17 * grey] * 3) for grey in range(_GREYS))
    packed = _lzw(pixels)
    blocks = [packed[start : start + _BLOCK_BYTES] for start in range(0, len(packed), _BLOCK_BYTES)]
    data = b"".join(bytes([len(block)]) + block for block in blocks)
    screen = b"GIF89a" + size + bytes([0x80 | (_CODE_BITS - 1), 0, 0]) + palette
    return screen + b"," + bytes(4) + size + bytes([0, _CODE_BITS]) + data + b"\0;"


def _lzw(pixels: bytearray) -> bytes:
    """Pack as GIF does: the code grows by a bit whenever the table does not fit any more."""
    clear, end = _GREYS, _GREYS + 1
    table: dict[bytes, int] = {}
    bits, length, width = 0, 0, _CODE_BITS + 1
    packed = bytearray()

    def emit(code: int) -> None:
        nonlocal bits, length
        bits |= code << length
        length += width
        while length >= 8:  # noqa: PLR2004 - a byte
            packed.append(bits & 0xFF)
            bits >>= 8
            length -= 8

    def restart() -> None:
        nonlocal width
        emit(clear)
        table.clear()
        table.update({bytes([grey]): grey for grey in range(_GREYS)})
        width = _CODE_BITS + 1

    restart()
    known = b""
    for pixel in pixels:
        longer = known + bytes([pixel])
        if longer in table:
            known = longer
            continue
        emit(table[known])
        number = len(table) + 2
        if number < _MAX_CODES:
            table[longer] = number
            # The reader is one entry behind.
            if number == 1 << width:
                width += 1
        else:
            restart()
        known = bytes([pixel])
    emit(table[known])
    emit(end)
    packed.append(bits & 0xFF)
    return bytes(packed)
