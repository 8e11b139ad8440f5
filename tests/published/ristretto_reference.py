"""ristretto255 in plain integers, from RFC 9496 alone: slow, and what the kernels must equal.

Points are affine, every sum divides, and a multiple is double-and-add: nothing is shared
with the kernels' formulas. Encoding and decoding follow sections 4.3.1 and 4.3.2.
"""

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)

Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def negative(a: int) -> bool:
    return a % P % 2 == 1


def magnitude(a: int) -> int:
    return -a % P if negative(a) else a % P


def sqrt_ratio(u: int, v: int) -> tuple[bool, int]:
    """(True, sqrt(u/v)) or (False, sqrt(sqrt(-1) u/v)), by definition: try both roots."""
    candidate = u * pow(v, -1, P) % P if v % P else 0
    for value, square in ((candidate, True), (SQRT_M1 * candidate % P, False)):
        root = pow(value, (P + 3) // 8, P)
        for r in (root, root * SQRT_M1 % P):
            if r * r % P == value:
                return square or value == 0, magnitude(r)
    raise AssertionError("one of the two is a square")


def add(p: Point, q: Point) -> Point:
    (x1, y1), (x2, y2) = p, q
    t = D * x1 * x2 * y1 * y2 % P
    both = pow((1 + t) * (1 - t), -1, P)
    return (
        (x1 * y2 + y1 * x2) * (1 - t) * both % P,
        (y1 * y2 + x1 * x2) * (1 + t) * both % P,
    )


def multiply(m: int, p: Point) -> Point:
    result = IDENTITY
    for bit in bin(m % L)[2:]:
        result = add(result, result)
        if bit == "1":
            result = add(result, p)
    return result


def decode(encoding: bytes) -> Point | None:
    s = int.from_bytes(encoding, "little")
    if s >= P or negative(s):
        return None
    u1, u2 = 1 - s * s, 1 + s * s
    v = -(D * u1 * u1) - u2 * u2
    square, root = sqrt_ratio(1, v * u2 * u2)
    den_x = root * u2
    den_y = root * den_x * v
    x, y = magnitude(2 * s * den_x), u1 * den_y % P
    return None if not square or negative(x * y) or y == 0 else (x, y)


def encode(p: Point) -> bytes:
    x, y = p
    t = x * y
    u1, u2 = (1 + y) * (1 - y), x * y
    _, root = sqrt_ratio(1, u1 * u2 * u2)
    den1, den2 = root * u1, root * u2
    z_inv = den1 * den2 * t
    if negative(t * z_inv):
        x, y = y * SQRT_M1, x * SQRT_M1
        den_inv = den1 * sqrt_ratio(1, -1 - D)[1]
    else:
        den_inv = den2
    if negative(x * z_inv):
        y = -y
    return magnitude(den_inv * (1 - y)).to_bytes(32, "little")


def generator() -> Point:
    y = 4 * pow(5, -1, P) % P
    _, x = sqrt_ratio(y * y - 1, D * y * y + 1)
    return magnitude(x), y


G = generator()
