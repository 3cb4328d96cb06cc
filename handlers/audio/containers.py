"""Which audio files are taken, told by their first bytes and never by their name."""

from typing import BinaryIO

from handlers.errors import InvalidRequest, UnsupportedMedia

FORMATS = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")
"""What a caller may send, in OpenAI's words; raw AAC (ADTS) is taken too."""

CODECS = (
    *("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_s16be", "pcm_s24be", "pcm_f32le", "pcm_f64le"),
    *("pcm_alaw", "pcm_mulaw", "mp3float", "mp2", "flac", "alac", "vorbis", "opus", "aac"),
)
"""FFmpeg's decoders that may run; a container could name any of its hundreds."""


def sniff(file: BinaryIO) -> str:
    """FFmpeg's name of the demuxer for this file. Raises UnsupportedMedia, or InvalidRequest for an empty file.

    Playlists, subtitles, images and whatever else FFmpeg would open on its own have no entry here.
    """
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    if not head:
        raise InvalidRequest("The file is empty.", "file")
    demuxer = _by_signature(head) or _by_frame_sync(head)
    if demuxer is None:
        raise UnsupportedMedia(f"The file is not audio of a kind that is taken here. Send one of: {_LIST}.", "file")
    return demuxer


def unsupported_codec() -> UnsupportedMedia:
    return UnsupportedMedia(
        f"The file's audio is in a codec that is not taken here. Convert it to one of: {_LIST}.", "file"
    )


_LIST = ", ".join(FORMATS)


def _by_signature(head: bytes) -> str | None:
    match head[:4], head[8:12]:
        case b"RIFF" | b"RF64", b"WAVE":
            return "wav"
        case b"fLaC", _:
            return "flac"
        case b"OggS", _:
            return "ogg"
        case b"\x1aE\xdf\xa3", _:  # EBML
            return "matroska"
    if head[:3] == b"ID3":
        return "mp3"
    if head[4:8] == b"ftyp":
        return "mp4"
    return None


def _by_frame_sync(head: bytes) -> str | None:
    """MPEG audio without a tag starts with eleven set bits; the layer follows, zero in ADTS."""
    if len(head) < 2 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    match head[1] >> 1 & 3:
        case 0 if head[1] & 0xF0 == 0xF0:
            return "aac"
        case 1 | 2:  # layers III and II; 3 is layer I, and the byte order mark of UTF-16
            return "mp3"
    return None
