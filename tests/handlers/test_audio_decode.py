import re
import socket
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest

from handlers.audio.decode import SAMPLE_RATE, decode, measure_seconds
from handlers.errors import InvalidRequest, TooLarge, UnsupportedMedia
from tests.handlers.audio_files import CONTAINERS, damaged, encoded, likeness, sound_file, sweep


class MeteredFile(BytesIO):
    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


def seconds_of(file: BytesIO, max_seconds: float = 60) -> float:
    return len(decode(file, max_seconds=max_seconds)) / SAMPLE_RATE


def refusal(data: bytes) -> InvalidRequest:
    """What `decode` and `measure_seconds` both say, which is the same."""
    with pytest.raises(InvalidRequest) as measured:
        measure_seconds(BytesIO(data), max_seconds=60)
    with pytest.raises(InvalidRequest) as decoded:
        decode(BytesIO(data), max_seconds=60)
    assert measured.value.message == decoded.value.message
    assert decoded.value.param == "file"
    return decoded.value


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_format_decodes_to_the_signal_that_went_in(kind: str) -> None:
    signal = sweep(2)
    waveform = decode(BytesIO(encoded(kind, signal)), max_seconds=60)
    assert waveform.dtype == np.float32
    assert len(waveform) / SAMPLE_RATE == pytest.approx(2, abs=0.13)
    assert likeness(waveform, signal) > 0.99


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_file_is_measured_without_decoding_it(kind: str) -> None:
    assert measure_seconds(BytesIO(encoded(kind, sweep(2))), max_seconds=60) == pytest.approx(2, abs=0.13)


def test_wav_samples_come_out_as_they_are() -> None:
    signal = sweep(0.5)
    waveform = decode(sound_file(signal, subtype="FLOAT"), max_seconds=60)
    np.testing.assert_array_equal(waveform, signal)


def test_the_index_of_an_m4a_may_be_at_its_end() -> None:
    data = encoded("m4a", sweep(1))
    assert data.index(b"moov") > data.index(b"mdat")
    assert seconds_of(BytesIO(data)) == pytest.approx(1, abs=0.13)


def test_the_sound_of_a_video_is_taken() -> None:
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for _ in range(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        frame = av.AudioFrame.from_ndarray(sweep(1)[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux([*video.encode(None), *sound.encode(frame), *sound.encode(None)])
    assert seconds_of(file) == pytest.approx(1, abs=0.13)


@pytest.mark.parametrize(
    ("channels", "rate", "format", "subtype"),
    [
        (8, 384_000, "WAV", "DOUBLE"),
        (8, 48_000, "FLAC", "PCM_16"),
        (7, 44_100, "WAV", "PCM_24"),
        (2, 4_000, "WAV", "PCM_U8"),
        (1, 8_000, "WAV", "ULAW"),
        (1, 16_000, "RF64", "FLOAT"),
    ],
)
def test_odd_channels_rates_and_sample_formats_decode(channels: int, rate: int, format: str, subtype: str) -> None:
    signal = sweep(0.5, rate)
    file = sound_file(np.repeat(signal[:, np.newaxis], channels, axis=1), rate, format, subtype)
    waveform = decode(file, max_seconds=60)
    assert len(waveform) / SAMPLE_RATE == pytest.approx(0.5, abs=0.001)
    assert likeness(waveform, sweep(0.5)) > 0.99


def test_eight_separate_planes_are_mixed() -> None:
    file = BytesIO()
    with av.open(file, "w", format="adts") as container:
        stream = container.add_stream("aac", rate=48_000, layout="7.1")
        planes = np.tile(sweep(1, 48_000), (8, 1))
        frame = av.AudioFrame.from_ndarray(planes.T.reshape(1, -1), format="flt", layout="7.1")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert likeness(decode(file, max_seconds=60), sweep(1)) > 0.95


def test_sample_rate_and_channels_may_change_within_a_file() -> None:
    mono = sound_file(sweep(1, 16_000), 16_000, "MP3", "MPEG_LAYER_III").getvalue()
    stereo = sound_file(np.repeat(sweep(1, 44_100)[:, np.newaxis], 2, axis=1), 44_100, "MP3", "MPEG_LAYER_III")
    assert seconds_of(BytesIO(mono + stereo.getvalue())) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("samples", [1, 160])
def test_a_moment_of_sound_is_taken(samples: int) -> None:
    assert len(decode(sound_file(sweep(1)[:samples]), max_seconds=60)) == samples


@pytest.mark.parametrize("claim", [0, 0x7FFFFFF0, 0xFFFFFFFF])
def test_the_length_in_a_wav_header_is_not_believed(claim: int) -> None:
    data = bytearray(sound_file(sweep(1)).getvalue())
    at = data.index(b"data") + 4
    data[at : at + 4] = claim.to_bytes(4, "little")
    assert measure_seconds(BytesIO(data), max_seconds=60) == pytest.approx(1)
    assert seconds_of(BytesIO(data)) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["aac", "flac", "mp3", "mp4", "mpga", "ogg", "opus", "webm"])
def test_a_long_file_is_refused_however_few_bytes_it_takes(kind: str) -> None:
    file = BytesIO(encoded(kind, np.zeros(20 * SAMPLE_RATE, np.float32)))
    for refuse in (measure_seconds, decode):
        with pytest.raises(TooLarge, match="longer than 10 seconds") as refused:
            refuse(file, max_seconds=10)
        assert refused.value.param == "file"


def test_a_file_of_exactly_the_limit_is_taken() -> None:
    file = sound_file(sweep(2))
    assert measure_seconds(file, max_seconds=2) == pytest.approx(2)
    assert seconds_of(file, max_seconds=2) == 2


def test_reading_stops_at_the_limit() -> None:
    data = sound_file(np.zeros(60 * SAMPLE_RATE)).getvalue()
    for refuse in (measure_seconds, decode):
        file = MeteredFile(data)
        with pytest.raises(TooLarge):
            refuse(file, max_seconds=1)
        assert file.bytes_read < len(data) / 4


def test_a_flood_of_empty_packets_is_cut_off() -> None:
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        for _ in range(1_000):
            packet = av.Packet(b"\0\0")
            packet.stream, packet.time_base, packet.pts = stream, Fraction(1, SAMPLE_RATE), 0
            container.mux(packet)
    for refuse in (measure_seconds, decode):
        with pytest.raises(InvalidRequest, match="more pieces"):
            refuse(file, max_seconds=1)


def claiming(name: bytes, offset: int) -> bytes:
    """An M4A whose table `name` says 100 million at `offset` bytes behind its name."""
    data = bytearray(encoded("m4a", sweep(1)))
    at = data.index(name) + len(name) + offset
    data[at : at + 4] = (100_000_000).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(("name", "offset"), [(b"stsz", 8), (b"stts", 8)])
def test_an_mp4_that_claims_to_be_of_many_samples_is_refused_before_room_is_made_for_them(
    name: bytes, offset: int
) -> None:
    assert "more pieces" in refusal(claiming(name, offset)).message


def test_fragments_and_hidden_tables_of_an_mp4_are_counted_too() -> None:
    data = encoded("m4a", sweep(1))
    fragment = b"\0\0\0\x20moof\0\0\0\x18traf\0\0\0\x10trun\0\0\0\0" + (1 << 30).to_bytes(4, "big")
    assert "more pieces" in refusal(data + fragment).message
    assert isinstance(refusal(data + b"\0\0\0\x10moov\0\0\0\x08cmov"), UnsupportedMedia)
    assert "cannot be decoded" in refusal(data[:24] + b"\0\0\0\x08free" * 60_000).message


@pytest.mark.parametrize("format", ["AU", "IRCAM", "PAF", "MAT4", "AIFF", "W64", "CAF", "VOC"])
def test_formats_that_nobody_asked_for_are_not_opened(format: str) -> None:
    assert isinstance(refusal(sound_file(sweep(0.1), format=format).getvalue()), UnsupportedMedia)


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"http://127.0.0.1/audio.mp3",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"RIFF\x10\x00\x00\x00AVI LIST",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x00",
        b"\xff",
        b"\xff\xfe<\x00",
    ],
)
def test_playlists_and_other_files_are_refused_by_their_first_bytes(data: bytes) -> None:
    error = refusal(data)
    assert isinstance(error, UnsupportedMedia)
    assert "flac, m4a, mp3" in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\0\0\0\0WAVE#EXTM3U\n%s\n",
        b"ID3\x04\0\0\0\0\0\0#EXTM3U\n%s\n",
        b"ID3\x04\0\0\0\0\0\0ffconcat version 1.0\nfile '%s'\n",
        b"\xff\xfb#EXTM3U\n%s\n",
        b"fLaC#EXTM3U\n%s\n",
        b"\x1aE\xdf\xa3%s",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42mp42\0\0\0\x30moov%s",
        b"#EXTM3U\n#EXTINF:10,\n%s\n",
        b"ffconcat version 1.0\nfile '%s'\n",
    ],
    ids=["wav", "mp3", "mp3 concat", "frame", "flac", "webm", "mp4", "m3u8", "concat"],
)
def test_a_file_that_names_an_address_is_refused_and_nobody_is_called(data: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        refusal(data % b"http://127.0.0.1:%d/a.mp3" % server.getsockname()[1] + bytes(2_000))
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("format", ["AU", "IRCAM", "PAF", "MAT4", "AIFF"])
@pytest.mark.parametrize("signature", [b"ID3\x04\0\0\0\0\0\0", b"\xff\xfb\x90\x00"])
def test_a_known_signature_leads_to_no_other_format(signature: bytes, format: str) -> None:
    with pytest.raises(InvalidRequest):
        decode(BytesIO(signature + sound_file(np.zeros(16_000), format=format).getvalue()), max_seconds=60)


@pytest.mark.parametrize("kind", ["flac", "aac", "mp3", "mpga"])
@pytest.mark.parametrize("length", [0, 100, 300_000])
def test_a_tag_before_any_format_that_may_have_one_is_passed_over(kind: str, length: int) -> None:
    sound = encoded(kind, sweep(1))
    size = bytes(length >> shift & 0x7F for shift in (21, 14, 7, 0))
    tagged = b"ID3\x04\0\0" + size + bytes(length) + sound
    plain = decode(BytesIO(sound), max_seconds=60)
    assert len(decode(BytesIO(tagged), max_seconds=60)) == len(plain)
    assert measure_seconds(BytesIO(tagged), max_seconds=60) == measure_seconds(BytesIO(sound), max_seconds=60)


@pytest.mark.parametrize("tag", [b"ID3", b"ID3\x04\0\0\x7f\x7f\x7f\x7f", b"ID3\x04\0\0\xff\xff\xff\xfffLaC"])
def test_a_tag_that_ends_nowhere_is_refused(tag: bytes) -> None:
    assert "cannot be decoded" in refusal(tag + bytes(500)).message


@pytest.mark.parametrize("packet", [b"\x80theora", b"Speex   ", b"fishead\0", b""])
def test_an_ogg_that_does_not_begin_with_audio_is_refused(packet: bytes) -> None:
    page = b"OggS\0\x02" + bytes(20) + b"\x01" + bytes([len(packet)]) + packet
    assert isinstance(refusal(page), UnsupportedMedia)


def test_an_unusual_codec_inside_a_wav_is_refused() -> None:
    error = refusal(sound_file(sweep(0.5), subtype="IMA_ADPCM").getvalue())
    assert isinstance(error, UnsupportedMedia)
    assert "codec" in error.message


def test_an_empty_file_is_called_empty() -> None:
    assert "empty" in refusal(b"").message


def test_a_wav_without_samples_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot be decoded") as refused:
        decode(sound_file(np.zeros(0)), max_seconds=60)
    assert refused.value.param == "file"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_samples_that_are_not_numbers_are_refused(value: float) -> None:
    with pytest.raises(InvalidRequest, match="not numbers"):
        decode(sound_file(np.full(SAMPLE_RATE, value), subtype="DOUBLE"), max_seconds=60)


def test_samples_beyond_full_scale_are_clipped() -> None:
    waveform = decode(sound_file(np.full(SAMPLE_RATE, 40.0), subtype="FLOAT"), max_seconds=60)
    np.testing.assert_array_equal(waveform, 1)


def test_samples_as_large_as_a_float_can_be_are_clipped_where_they_are() -> None:
    samples = np.zeros(44_100, np.float32)
    samples[1000:1010] = np.finfo(np.float32).max
    waveform = decode(sound_file(samples, 44_100, subtype="FLOAT"), max_seconds=60)
    assert np.isfinite(waveform).all()
    assert waveform[363:367].max() == 1
    assert waveform[8000:] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("rate", "channels", "complaint"), [(1, 1, "sample rate of 1 Hz"), (8_000, 64, "64 channels")])
def test_rates_and_channels_that_blow_a_file_up_are_refused(rate: int, channels: int, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as refused:
        decode(sound_file(np.zeros((100, channels)), rate), max_seconds=60)
    assert refused.value.param == "file"


def test_a_video_without_sound_is_refused() -> None:
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        container.mux([*video.encode(av.VideoFrame(32, 32)), *video.encode(None)])
    assert "no audio track" in refusal(file.getvalue()).message


def test_a_file_closed_by_a_caller_who_left_is_no_crash() -> None:
    file = sound_file(sweep(1))
    file.close()
    with pytest.raises(InvalidRequest, match="closed"):
        decode(file, max_seconds=60)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_damaged_files_decode_or_are_refused(kind: str) -> None:
    data = encoded(kind, sweep(1))
    for seed in range(25):
        file = BytesIO(damaged(data, seed))
        for read in (measure_seconds, decode):
            try:
                read(file, max_seconds=10)
            except InvalidRequest as error:
                assert error.param == "file"
                assert not re.search(r"0x[0-9a-f]|Errno|Traceback|/", error.message)
