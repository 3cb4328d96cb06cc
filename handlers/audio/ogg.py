"""How much sound the pages of an Ogg file hold, told without looking at its packets.

FFmpeg takes 5 µs for each of the 50 packets in a second of Opus: an hour too long would be refused after a second.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# An encoder's pages have a second each, or 4 KB. Whoever makes more of them has them read packet by packet.
_MAX_PAGES = 20_000

# Lengths are rounded, and trimmed at both ends; what is so little over the limit is left to who counts exactly.
_SLACK_SECONDS = 1.0

_HEAD = struct.Struct("<4sxBq12xB")
_BEGINS = 2


class _Page(NamedTuple):
    """position: samples up to its end, counted from the stream's beginning. packets: that end in it."""

    begins_stream: bool
    position: int
    packets: int
    body: bytes


class _Stream(NamedTuple):
    """skipped: samples at its beginning that nobody hears. most: samples in a packet."""

    rate: int
    skipped: int
    most: int


def is_longer(file: BinaryIO, seconds: float) -> bool:
    """Whether the file is surely longer: False may mean that its pages do not tell.

    A page adds what its position says, but never more than its packets can hold, so that a lie does not go far.
    """
    total, position = 0.0, 0
    stream: _Stream | None = None
    was_beginning = False
    for page in _pages(file):
        if page.begins_stream:
            # Of streams side by side the first is meant; those behind each other are one recording.
            if not was_beginning:
                stream = _stream(page.body)
                position = stream.skipped if stream else 0
        elif stream and page.position > position:
            total += min(page.position - position, page.packets * stream.most) / stream.rate
            position = page.position
        was_beginning = page.begins_stream
        if total > seconds + _SLACK_SECONDS:
            return True
    return False


def _pages(file: BinaryIO) -> Iterator[_Page]:
    """Up to the first thing that is no page. Only of one that begins a stream the body is read."""
    at = 0
    for _ in range(_MAX_PAGES):
        file.seek(at)
        head = file.read(_HEAD.size + 255)
        if len(head) < _HEAD.size:
            return
        word, flags, position, count = _HEAD.unpack_from(head)
        if word != b"OggS":
            return
        lengths = head[_HEAD.size : _HEAD.size + count]
        at += _HEAD.size + count
        begins_stream = bool(flags & _BEGINS)
        body = b""
        if begins_stream:
            file.seek(at)
            body = file.read(sum(lengths))
        yield _Page(begins_stream, position, count - lengths.count(255), body)
        at += sum(lengths)


def _stream(packet: bytes) -> _Stream | None:
    """Of the packet that a stream begins with (RFC 7845, section 5.1; Vorbis I, section 4.2.2)."""
    if packet.startswith(b"OpusHead") and len(packet) >= 12:
        return _Stream(48_000, struct.unpack_from("<H", packet, 10)[0], 5_760)
    if packet.startswith(b"\x01vorbis") and len(packet) >= 29:
        rate = struct.unpack_from("<I", packet, 12)[0]
        return _Stream(rate, 0, 1 << (packet[28] >> 4) >> 1) if rate else None
    return None
