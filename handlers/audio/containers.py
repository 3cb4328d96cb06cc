"""Which audio files are taken, told by their first bytes and never by their name."""

from functools import reduce
from typing import BinaryIO, Literal, TypeAlias

from handlers.errors import InvalidRequest, UnsupportedMedia

FORMATS = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")
"""What a caller may send, in OpenAI's words; raw AAC (ADTS) is taken too."""

Container: TypeAlias = Literal["wav", "flac", "ogg", "mp3", "aac", "mp4", "matroska"]

# A page of Ogg: 27 bytes, up to 255 of lengths, then the first packet, whose own first bytes name the codec.
_OGG_HEAD = 27
_HEAD_BYTES = _OGG_HEAD + 255 + 8

# Of an ID3 tag: its name, version and flags, then its size in four times seven bits (ID3v2.4, section 3.1).
_TAG_HEAD = 10


def sniff(file: BinaryIO) -> Container:
    """Raises UnsupportedMedia, or InvalidRequest for an empty file.

    Playlists, subtitles, images and whatever else a library would open on its own have no entry here.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if not head:
        raise InvalidRequest("The file is empty.", "file")
    container = _behind_tag(file, head) or _by_signature(head) or _by_frame_sync(head)
    if container is None:
        raise UnsupportedMedia(f"The file is not audio of a kind that is taken here. Send one of: {_LIST}.", "file")
    return container


def unsupported_codec() -> UnsupportedMedia:
    return UnsupportedMedia(
        f"The file's audio is in a codec that is not taken here. Convert it to one of: {_LIST}.", "file"
    )


def undecodable() -> InvalidRequest:
    return InvalidRequest("The file cannot be decoded: it is empty or damaged, or its content is not audio.", "file")


def closed_early() -> InvalidRequest:
    return InvalidRequest("The file was closed before it was read.", "file")


def in_too_many_pieces() -> InvalidRequest:
    return InvalidRequest("The file is in more pieces than audio ever is; encode it again.", "file")


_LIST = ", ".join(FORMATS)


def _behind_tag(file: BinaryIO, head: bytes) -> Container | None:
    """What an ID3 tag stands before, if that is no MP3: taggers write it before FLAC, and recorders before AAC, too.

    FFmpeg passes over the tag itself, whatever the format.
    """
    if head[:3] != b"ID3" or len(head) < _TAG_HEAD:
        return None
    size = reduce(lambda size, byte: size << 7 | byte & 0x7F, head[6:_TAG_HEAD], 0)
    file.seek(_TAG_HEAD + size)
    audio = file.read(4)
    if audio == b"fLaC":
        return "flac"
    return "aac" if _by_frame_sync(audio) == "aac" else None


def _by_signature(head: bytes) -> Container | None:
    match head[:4], head[8:12]:
        case b"RIFF" | b"RF64", b"WAVE":
            return "wav"
        case b"fLaC", _:
            return "flac"
        case b"OggS", _:
            _check_ogg_codec(head)
            return "ogg"
        case b"\x1aE\xdf\xa3", _:  # EBML
            return "matroska"
    if head[:3] == b"ID3":
        return "mp3"
    if head[4:8] == b"ftyp":
        return "mp4"
    return None


def _check_ogg_codec(page: bytes) -> None:
    """Ogg carries video and whole slide shows, too; one that begins with audio is meant."""
    packet = page[_OGG_HEAD + page[_OGG_HEAD - 1] :] if len(page) >= _OGG_HEAD else b""
    if not packet.startswith((b"\x01vorbis", b"OpusHead", b"\x7fFLAC")):
        raise unsupported_codec()


def _by_frame_sync(head: bytes) -> Container | None:
    """MPEG audio without a tag starts with eleven set bits; the layer follows, zero in ADTS."""
    if len(head) < 2 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    match head[1] >> 1 & 3:
        case 0 if head[1] & 0xF0 == 0xF0:
            return "aac"
        case 1 | 2:  # layers III and II; 3 is layer I, and the byte order mark of UTF-16
            return "mp3"
    return None
