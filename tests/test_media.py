"""Decoding: every form of input, and a clear error for everything that cannot be read."""

import io
import struct
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from samples import gif

from modeling_cue import media_audio, media_video
from modeling_cue.media_audio import load_audio
from modeling_cue.media_files import MediaError
from modeling_cue.media_image import load_image
from modeling_cue.media_video import frame_places, load_video

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 255, (12, 10, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def sound(rate: int = 16000, channels: int = 1, form: str = "WAV", seconds: float = 0.5) -> bytes:
    time = np.arange(int(rate * seconds)) / rate
    wave = 0.5 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([wave] * channels, 1), rate, format=form)
    return buffer.getvalue()


def movie(frames: np.ndarray, form: str = "avi", codec: str = "png", with_video: bool = True) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


# ---------------------------------------------------------------------- images


@pytest.mark.parametrize(
    "as_what", ["path", "str", "bytes", "dict of bytes", "dict of path", "pillow", "array", "chw"]
)
def test_every_form_of_an_image(tmp_path, as_what):
    data = encoded(Image.fromarray(PICTURE), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    value = {
        "path": path, "str": str(path), "bytes": data, "dict of bytes": {"bytes": data, "path": None},
        "dict of path": {"bytes": None, "path": str(path)}, "pillow": Image.fromarray(PICTURE), "array": PICTURE,
        "chw": PICTURE.transpose(2, 0, 1),
    }[as_what]  # fmt: skip
    assert np.array_equal(np.asarray(load_image(value)), PICTURE)


def test_modes_are_converted():
    grey = load_image(Image.fromarray(PICTURE[..., 0]))
    assert np.array_equal(np.asarray(grey)[..., 1], PICTURE[..., 0])
    assert load_image(encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")).mode == "RGB"
    palette = load_image(encoded(Image.fromarray(PICTURE).quantize(8), "PNG"))
    assert palette.mode == "RGB"
    deep = (PICTURE[..., 0].astype(np.uint16)) * 257
    found = np.asarray(load_image(encoded(Image.fromarray(deep), "PNG")))[..., 0].astype(int)
    assert np.abs(found - PICTURE[..., 0]).max() <= 1
    clear = np.dstack([PICTURE, np.zeros(PICTURE.shape[:2], np.uint8)])
    assert np.asarray(load_image(encoded(Image.fromarray(clear), "PNG"))).min() == 255  # alpha over white
    assert np.array_equal(np.asarray(load_image(PICTURE / 255.0)), PICTURE)


def test_exif_turns_are_applied():
    image = Image.fromarray(PICTURE)
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert load_image(buffer.getvalue()).size == (12, 10)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"this is no image", "no image that can be read"),
        (encoded(Image.fromarray(RNG.integers(0, 255, (90, 90, 3), dtype=np.uint8)), "PNG")[:900], "cut off"),
        (b"", "it has no bytes"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        ("nowhere.png", "there is no image file 'nowhere.png'"),
        (np.zeros((5, 6, 7), np.uint8), "is no image"),
        (np.full((3, 3, 3), 7.0), "must lie in"),
        (np.zeros((3, 3, 3), np.int64), "must be uint8"),
    ],
)
def test_bad_images(value, message):
    with pytest.raises(MediaError, match=message):
        load_image(value)


def test_a_decompression_bomb_is_refused():
    with pytest.raises(MediaError, match=r"too large to be decoded safely|over 80,000,000"):
        load_image(encoded(Image.new("1", (20_000, 20_000)), "PNG"))


# ---------------------------------------------------------------------- audio


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (44100, 2)])
def test_audio_of_any_rate_and_channels(form, rate, channels):
    wave = load_audio(sound(rate, channels, form), 16000)
    assert wave.dtype == np.float32
    assert abs(len(wave) - 8000) < 1700  # mp3 pads
    spectrum = np.abs(np.fft.rfft(wave))
    assert abs(spectrum.argmax() * 16000 / len(wave) - 440) < 5
    assert 0.4 < np.abs(wave).max() < 0.6


def test_audio_arrays():
    wave = np.linspace(-0.5, 0.5, 100).astype(np.float32)
    assert np.array_equal(load_audio(wave, 16000, 16000), wave)
    assert np.array_equal(load_audio({"array": wave, "sampling_rate": 16000}, 16000), wave)
    assert np.array_equal(load_audio(wave[None], 16000, 16000), wave)  # as torchaudio gives it
    assert np.allclose(load_audio({"array": np.stack([wave, -wave]), "sampling_rate": 16000}, 16000), 0)
    assert np.allclose(load_audio((wave * 32768).astype(np.int16), 16000, 16000), wave, atol=1e-4)
    assert len(load_audio(wave, 16000, 8000)) == pytest.approx(200, abs=40)
    assert np.array_equal(load_audio(np.zeros(50), 16000, 16000), np.zeros(50))  # silence is a sound


@pytest.mark.parametrize(
    ("value", "rate", "message"),
    [
        (np.zeros(10), None, "pass sampling_rate="),
        (np.zeros(0), 16000, "is empty"),
        (np.array([0.0, np.nan]), 16000, "NaN or infinite"),
        (np.array([0.0, 20_000.0]), 16000, r"up to 20000, .* lies in \[-1, 1\]: divide"),
        (np.zeros((32, 100)), 16000, r"\(32, 100\) may be one sound of several channels or several sounds: give"),
        (np.zeros((2, 100)), 16000, r'give stereo as {"array": \.\.\., "sampling_rate": \.\.\.} or'),
        (np.zeros((100, 2)), 16000, r"\(100, 2\) may be one sound of several channels or several sounds"),
        ({"array": np.zeros((9, 100))}, 16000, r"\(9, 100\) has more than 8 channels: give several sounds as a list"),
        (b"this is no sound at all", None, "no media file that can be read"),
        (movie(np.stack([PICTURE] * 3)), None, "has no audio stream"),
        ("nowhere.wav", None, "there is no audio file"),
    ],
)
def test_bad_audio(value, rate, message):
    with pytest.raises(MediaError, match=message):
        load_audio(value, 16000, rate)


# ---------------------------------------------------------------------- video


def test_the_rule_of_sampling():
    assert frame_places(8, 4) == [1, 3, 5, 7]
    assert frame_places(1, 3) == [0, 0, 0]
    assert frame_places(10, 1) == [5]


def test_every_form_of_a_video(tmp_path):
    frames = RNG.integers(0, 255, (5, 16, 18, 3), dtype=np.uint8)
    data = movie(frames)
    (tmp_path / "a.avi").write_bytes(data)
    expected = frames[[0, 2, 4]]
    for value in (data, tmp_path / "a.avi", {"bytes": data, "path": None}, frames, list(frames)):
        assert np.array_equal(load_video(value, 3), expected)
    assert np.array_equal(load_video([Image.fromarray(f) for f in frames], 3), expected)
    assert np.array_equal(load_video(frames[:1], 4), frames[[0] * 4])  # one frame is repeated
    assert load_video(gif(RNG), 2).shape == (2, 32, 32, 3)


def test_frames_of_several_sizes_take_that_of_the_first():
    small = Image.fromarray(PICTURE).resize((7, 5))
    clip = load_video([Image.fromarray(PICTURE), small, PICTURE[:4]], 3)
    assert clip.shape == (3, 12, 10, 3)
    assert np.array_equal(clip[0], PICTURE)
    assert np.array_equal(clip[1], np.asarray(small.resize((10, 12))))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no clip", "no media file that can be read"),
        (sound(), "has no video stream"),
        ([], "has no frames"),
        ("nowhere.mp4", "there is no video file"),
    ],
)
def test_bad_videos(value, message):
    with pytest.raises(MediaError, match=message):
        load_video(value, 2)


# ---------------------------------------------------------------------- what real files do


def container(form: str, codec: str, frames: int = 8, fps: int = 8, **options: str) -> bytes:
    """A clip whose frames get lighter, twelve by twelve; the upper half is black."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as out:
        stream = out.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for k in range(frames):
            picture = np.full((32, 64, 3), 20 * (k % 12), np.uint8)
            picture[:16] = 0
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


def sound_container(form: str, codec: str, rate: int = 48000) -> bytes:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as out:
        stream = out.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        frame.sample_rate = rate
        context = stream.codec_context
        for part in av.AudioResampler(format=context.format, layout=context.layout, rate=rate).resample(frame):
            out.mux(stream.encode(part))
        out.mux(stream.encode())
    return buffer.getvalue()


def decoded_one_by_one(data: bytes) -> np.ndarray:
    """The slow obvious twin: every frame of a clip, at once."""
    with av.open(io.BytesIO(data)) as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


def test_colours_survive_conversion():
    cmyk = load_image(encoded(Image.new("RGB", (8, 8), (200, 40, 90)).convert("CMYK"), "JPEG"))
    assert np.abs(np.asarray(cmyk).astype(int) - (200, 40, 90)).max() <= 4
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))  # 16 bits and nearly black: not to be taken for 8
    assert np.asarray(load_image(encoded(dark, "PNG"))).max() == 1
    wide = Image.fromarray(PICTURE[..., 0]).convert("I")  # which changes no value
    assert np.array_equal(np.asarray(load_image(wide))[..., 0], PICTURE[..., 0])
    assert np.array_equal(np.asarray(load_image(encoded(wide, "TIFF")))[..., 0], PICTURE[..., 0])
    assert load_image(Image.new("I", (4, 4), 25_700)).getpixel((0, 0)) == (100, 100, 100)
    assert load_image(Image.new("I", (4, 4), -1)).getpixel((0, 0)) == (0, 0, 0)
    assert np.asarray(load_image(b"P5 4 4 65535 " + bytes([0, 200] * 16))).max() == 1  # a dark file of 16 bits
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    buffer = io.BytesIO()
    palette.save(buffer, "GIF", transparency=0)
    assert load_image(buffer.getvalue()).getpixel((0, 0)) == (40, 50, 60)
    grey = load_image(encoded(Image.new("LA", (4, 4), (0, 128)), "PNG"))
    assert abs(grey.getpixel((0, 0))[0] - 127) <= 1  # half black over white
    assert load_image(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(Image.fromarray(np.full((4, 4), 0.5, np.float32))).getpixel((0, 0)) == (128, 128, 128)
    assert load_image(np.full((4, 4), 65535, np.uint16)).getpixel((0, 0)) == (255, 255, 255)
    half = torch.full((3, 4, 5), 0.5, dtype=torch.bfloat16)
    assert load_image(half).getpixel((0, 0)) == (128, 128, 128)


def test_a_picture_that_was_opened_but_is_cut_off(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")[:1500])
    with pytest.raises(MediaError, match=r"cut off: replace it"), Image.open(path) as image:
        load_image(image)
    with pytest.raises(MediaError, match=r"cut\.jpg.*cut off: replace it"):
        load_image(path)


@pytest.mark.parametrize(
    ("size", "message"),
    [((20_000, 20_000), "too large"), ((9_200, 9_000), "over 80,000,000: shrink it"), ((3_000, 3), "200 to 1")],
)
def test_a_bomb_is_refused_by_its_header(monkeypatch, size, message):
    data = encoded(Image.new("1", size), "PNG")

    def decode(*_):
        raise AssertionError("the picture was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(MediaError, match=message):
        load_image(data)


@pytest.mark.parametrize("value", [None, 7, object(), [[1, 2], [3]], "x" * 5000, "http://host/a.png"])
@pytest.mark.parametrize("load", [load_image, lambda v: load_audio(v, 16000, 16000), lambda v: load_video(v, 2)])
def test_what_is_no_medium_at_all(load, value):
    with pytest.raises(MediaError) as caught:
        load(value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("form", "codec"), [("mp4", "aac"), ("adts", "aac"), ("webm", "libopus"), ("matroska", "pcm_u8")]
)
def test_sound_in_containers(form, codec):
    wave = load_audio(sound_container(form, codec), 16000)
    assert abs(len(wave) - 16000) < 800
    assert abs(np.abs(np.fft.rfft(wave)).argmax() * 16000 / len(wave) - 440) < 2
    assert 0.4 < np.abs(wave).max() < 0.6


def test_without_soundfile_pyav_reads_the_same(monkeypatch):
    data = sound(44100, 2, "FLAC")
    expected = load_audio(data, 16000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert np.allclose(load_audio(data, 16000), expected, atol=1e-4)


def test_without_pyav_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        load_video(gif(RNG), 2)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_resampling_keeps_tones_and_lets_none_alias(rate):
    time, at = np.arange(2 * rate) / rate, np.arange(32000) / 16000
    kept = load_audio(np.sin(2 * np.pi * 1000 * time), 16000, rate)
    assert abs(len(kept) - 32000) <= 1
    assert np.abs(kept[800:-800] - np.sin(2 * np.pi * 1000 * at)[800 : len(kept) - 800]).max() < 1e-3
    if rate > 20_000:
        aliased = load_audio(np.sin(2 * np.pi * 9500 * time), 16000, rate)
        assert np.abs(aliased[800:-800]).max() < 1e-3


def test_long_sound_is_resampled_in_pieces_without_seams():
    wave = RNG.normal(size=2**20 + 5000).astype(np.float32)
    whole, tail = load_audio(wave, 16000, 32000), load_audio(wave[2**19 :], 16000, 32000)
    assert np.allclose(whole[-200_000:-100], tail[-200_000:-100], atol=1e-5)


def test_numbers_of_every_kind():
    assert load_audio(np.array([0, 128, 255], np.uint8), 8, 8).tolist() == [-1.0, 0.0, 127 / 128]
    assert load_audio(np.array([-(2**31), 2**30], np.int32), 8, 8).tolist() == [-1.0, 0.5]
    wide = torch.ones(4, 2, dtype=torch.bfloat16)  # (samples, channels)
    assert load_audio({"array": wide, "sampling_rate": 8}, 8).tolist() == [1.0] * 4
    assert load_audio([0.5, 0.25], 8, 8).tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1, 2]), "int64: give float"),
        (np.zeros((2, 2, 2)), "not of shape"),
        (np.full(9, 1e300), "NaN or infinite"),
        (np.ones(2), "too short"),
        ({"array": np.ones(99), "sampling_rate": 0.5}, "at least 1 Hz"),
        (sound(seconds=0), "has no samples"),
        (sound(form="FLAC")[:2000], "cut off"),
        (sound(form="OGG")[:3000], "cut off"),
        (container("mp4", "mpeg4"), "has no audio stream"),
    ],
    # Bytes name themselves, and an Ogg stream has a random number: processes that share the tests must agree on names.
    ids=["integers", "cube", "huge", "two", "slow", "empty", "cut FLAC", "cut Ogg", "silent film"],
)
def test_more_bad_audio(value, message):
    with pytest.raises(MediaError, match=message):
        load_audio(value, 16000, 8000)


def test_nan_in_a_file_and_a_file_in_raw(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.0, np.nan] * 50), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(MediaError, match="NaN or infinite"):
        load_audio(buffer.getvalue(), 16000)
    (tmp_path / "a.raw").write_bytes(sound())
    assert len(load_audio(tmp_path / "a.raw", 16000)) == 8000


def test_sound_and_video_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(media_audio, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(media_video, "MAX_FRAMES", 5)
    for value in (sound(), sound_container("mp4", "aac"), np.zeros(9000)):
        with pytest.raises(MediaError, match="longer than"):
            load_audio(value, 16000, 16000)
    with pytest.raises(MediaError, match="more than 5 frames: cut it"):
        load_video(container("avi", "mpeg4"), 2)
    pieces = iter([(np.zeros(1000, np.float32), 16000)] * 100)
    with monkeypatch.context() as patch, pytest.raises(MediaError, match="longer than"):
        patch.setattr(media_audio, "_sound", lambda file, name: pieces)
        load_audio(sound(), 16000)
    assert len(list(pieces)) > 90  # it stopped as soon as it was too much
    monkeypatch.setattr(media_video, "MAX_FRAME_PIXELS", 2048)
    with pytest.raises(MediaError, match="over 8K: shrink it"):
        load_video(movie(np.zeros((2, 32, 65, 3), np.uint8)), 2)


@pytest.mark.parametrize(
    ("form", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx"), ("avi", "mjpeg"), ("matroska", "ffv1"), ("mov", "mpeg4")]
)
def test_clips_equal_the_slow_twin(form, codec):
    data = container(form, codec, frames=11)
    assert np.array_equal(load_video(data, 4), decoded_one_by_one(data)[[1, 4, 6, 9]])
    assert np.array_equal(load_video(data, 30)[::29], decoded_one_by_one(data)[[0, 10]])


def test_a_container_is_not_believed():
    """A stream that starts between key frames has packets that are no frames."""
    cut = io.BytesIO()
    source_bytes = container("matroska", "mpeg2video", 16, fps=25, g="6", bf="2")
    with av.open(io.BytesIO(source_bytes)) as source, av.open(cut, "w", format="matroska") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number:
                packet.stream = stream
                out.mux(packet)
    frames = decoded_one_by_one(cut.getvalue())
    with av.open(io.BytesIO(cut.getvalue())) as source:
        assert len(frames) != sum(1 for packet in source.demux(video=0) if packet.size)
    assert np.array_equal(load_video(cut.getvalue(), 4), frames[frame_places(len(frames), 4)])


def test_frames_of_a_long_clip_are_not_held():
    data = container("matroska", "mpeg4", 400)
    load_video(data, 2)  # imports and caches
    tracemalloc.start()
    load_video(data, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 32 * 64 * 3 + len(data)


def test_clips_are_turned_as_phones_say():
    data = bytearray(container("mp4", "mpeg4"))
    header = data.find(b"tkhd")
    # ISO 14496-12, 8.3.2: in a track header of version 0 the matrix follows 40 bytes after the type. This one turns
    # by 90 degrees clockwise, as a phone held upright does.
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    data[header + 44 : header + 80] = quarter
    frame = load_video(bytes(data), 1)[0]
    assert frame.shape == (64, 32, 3)
    assert frame[:, 20:].mean() < 10  # the black upper half has come to the right
    assert frame[:, :12].mean() > 60


@pytest.mark.parametrize("kind", ["ffconcat version 1.0\nfile '{0}'\n", "#EXTM3U\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n"])
@pytest.mark.parametrize("as_path", [False, True])
def test_a_playlist_opens_no_other_file(tmp_path, monkeypatch, kind, as_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.ts").write_bytes(container("mpegts", "mpeg2video", fps=25))
    listed = kind.format("secret.ts").encode()
    (tmp_path / "a.m3u8").write_bytes(listed)
    with pytest.raises(MediaError, match="no media file that can be read"):
        load_video(tmp_path / "a.m3u8" if as_path else listed, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (PICTURE, r"\(12, 10, 3\) is no video"),
        (Image.fromarray(PICTURE), "give a path, bytes, an array, or a list of images"),
        (np.zeros((0, 4, 4, 3), np.uint8), "has no frames"),
        (container("mp4", "mpeg4")[:900], "cut off"),
        (sound_container("mp4", "aac"), "has no video stream"),
    ],
)
def test_more_bad_videos(value, message):
    with pytest.raises(MediaError, match=message):
        load_video(value, 2)


def test_num_frames_must_be_at_least_one():
    with pytest.raises(ValueError, match="num_frames=0 is not valid"):
        load_video([PICTURE], 0)


def test_open_files_are_read_whole_wherever_they_stand(tmp_path):
    frames = RNG.integers(0, 255, (5, 16, 18, 3), dtype=np.uint8)
    values = {load_image: encoded(Image.fromarray(PICTURE), "PNG"), load_audio: sound(), load_video: movie(frames)}
    for load, data in values.items():
        more = {load_image: (), load_audio: (16000,), load_video: (2,)}[load]
        written = io.BytesIO()
        written.write(data)
        (tmp_path / "file").write_bytes(data)
        with open(tmp_path / "file", "rb") as file:
            for value in (written, file, file, {"bytes": file, "path": "a"}):
                assert np.array_equal(np.asarray(load(value, *more)), np.asarray(load(data, *more)))
        with pytest.raises(MediaError, match=r"a file not open for reading: open\(path, 'rb'\) it"):
            load(file, *more)
        with open(tmp_path / "file", encoding="latin-1") as file, pytest.raises(MediaError, match="gives no bytes"):
            load(file, *more)
        with pytest.raises(MediaError, match="it has no bytes"):
            load(io.BytesIO(), *more)


def test_sound_with_its_rate_beside_it():
    wave = np.linspace(-0.5, 0.5, 100).astype(np.float32)
    for value in (wave, torch.from_numpy(wave), wave.tolist(), np.stack([wave, wave])):
        assert np.allclose(load_audio((value, 16000), 16000, 8000), wave)
    with pytest.raises(MediaError, match="at least 1 Hz"):
        load_audio((wave, -1), 16000)


@dataclass
class Samples:
    data: torch.Tensor
    sample_rate: int = 16000


class SoundDecoder:
    def get_all_samples(self):
        return Samples(torch.full((2, 100), 0.5))


class ClipDecoder:
    def __len__(self):
        return 10

    def get_frames_at(self, indices):
        return Samples(torch.stack([torch.full((3, 4, 5), i, dtype=torch.uint8) for i in indices]))


def test_decoders_of_datasets():
    """Stand-ins with the methods of torchcodec's decoders, which need a system's FFmpeg."""
    assert np.array_equal(load_audio(SoundDecoder(), 16000), np.full(100, 0.5, np.float32))
    assert load_video(ClipDecoder(), 2)[:, 0, 0, 0].tolist() == [2, 7]


def test_real_files(shared):
    spoken = shared / "data" / "flickr8k_spoken" / "test-00000-of-00001.parquet"
    if not spoken.is_file():
        pytest.skip("the spoken captions are not beside this checkout")
    batch = next(pq.ParquetFile(spoken).iter_batches(4, columns=["image", "audio"])).to_pylist()
    for row in batch:
        assert min(load_image(row["image"]).size) > 100
        assert 0.5 < len(load_audio(row["audio"], 16000)) / 16000 < 30


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_broken_metadata_lose_no_good_image(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, kind, exif=b"garbage!")
    assert load_image(buffer.getvalue()).size == (20, 10)


def test_images_read_in_threads_leave_warnings_as_they_are():
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "JPEG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: load_image(buffer.getvalue()), range(400)))
    assert warnings.filters == before
