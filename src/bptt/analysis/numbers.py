"""Numbers and texts as a person reads them."""


def number(value: float) -> str:
    """Three digits; "none" where there is no number.

    >>> number(0.0123456), number(0.0), number(float("nan"))
    ('0.0123', '0', 'none')
    """
    return "none" if value != value else f"{value:.3g}"


def share(value: float) -> str:
    """A share in per cent; from ten on as so many times.

    >>> share(0.8546), share(0.00583), share(1e-9), share(1.4), share(146.2), share(float("nan"))
    ('85.5%', '0.583%', '<0.001%', '140%', '146 times', 'none')
    """
    if value != value:
        return number(value)
    if 0 < value < 1e-5:
        return "<0.001%"
    return f"{100 * value:.3g}%" if value < 9.995 else f"{value:.3g} times"


def size(count: float) -> str:
    """Bytes in the unit that fits.

    >>> size(512), size(5e6), size(float("nan"))
    ('512 B', '4.768 MiB', 'unknown')
    """
    if count != count:
        return "unknown"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def ladder(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `most`.

    >>> ladder(60)
    [1, 2, 5, 10, 20, 50]
    """
    return [m * 10**e for e in range(len(str(most))) for m in (1, 2, 5) if m * 10**e <= most]


def duration(seconds: float) -> str:
    """A time a person reads at a glance.

    >>> duration(8.25), duration(84), duration(7384)
    ('8.2 s', '1 min 24 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def took(seconds: float) -> str:
    """A time, short ones in milliseconds.

    >>> took(0.0123), took(0.25), took(2.5), took(90)
    ('12 ms', '0.25 s', '2.5 s', '1 min 30 s')
    """
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds:.2f} s" if seconds < 1 else duration(seconds)


def quantity(value: float, unit: str = "") -> str:
    """A number of three digits with k, M or G, and its unit.

    >>> quantity(63_120, "char/s"), quantity(950), quantity(1_234_567)
    ('63.1k char/s', '950', '1.23M')
    """
    scale = next((s for s in (1e9, 1e6, 1e3) if abs(value) >= s), 1.0)
    suffix = {1e9: "G", 1e6: "M", 1e3: "k", 1.0: ""}[scale]
    return f"{value / scale:.3g}{suffix} {unit}".rstrip()


def printable(text: str) -> str:
    r"""`text` with every character that is no visible character, space, tab or newline written as an escape.

    So a text can't move the cursor, change colours, or reverse the reading order of what is printed around it.

    >>> printable("[/b] \x1b[31mred <script>")
    '[/b] \\x1b[31mred <script>'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
