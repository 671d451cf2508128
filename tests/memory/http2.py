"""Frames and header blocks of HTTP/2."""

HOST = "www.example.com"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACK, END_STREAM, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MOST = 2**31 - 1


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def integer(value, prefix):
    """RFC 7541 §5.1, with no bits in front of the prefix."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes([value])
    out, value = bytes([most]), value - most
    while value >= 128:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def literal(name, value):
    """RFC 7541 §6.2.2: not indexed, a new name."""
    return b"\0" + integer(len(name), 7) + name + integer(len(value), 7) + value


def block(method, path, size=0, *fields):
    """A request's header block, filled up to `size` bytes."""
    out = b"".join(literal(name, value) for name, value in [
        (b":method", method), (b":scheme", b"http"), (b":authority", HOST.encode()), (b":path", path), *fields])
    while (missing := size - len(out)) > 40:
        name = b"x-filler-%d" % len(out)
        out += literal(name, b"a" * min(4000, max(0, missing - len(name) - 6)))
    return out


def status(payload, last):
    """The first field of a response's header block: indexed, or a literal of digits (RFC 7541 §6, appendix B)."""
    first = payload[0]
    if 0x88 <= first <= 0x8E:
        return ["200", "204", "206", "304", "400", "404", "500"][first - 0x88]
    if first & 0x80:
        return last
    length = payload[1] & 0x7F
    text = payload[2 : 2 + length]
    if not payload[1] & 0x80:
        return text.decode("latin-1")
    bits, digits = "".join(f"{byte:08b}" for byte in text), ""
    while len(digits) < 3 and bits:
        size = 5 if bits[:5] < "00011" else 6
        digits += str(int(bits[:5], 2) if size == 5 else int(bits[:6], 2) - 22)
        bits = bits[size:]
    return digits
