"""Decoding: every form of input, and a clear error for everything that cannot be read."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image
from samples import gif

from modeling_cue.media import MediaError, frame_places, load_audio, load_image, load_video

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
    import av

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
    with pytest.raises(MediaError, match=r"too large to be decoded safely|over 100000000"):
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
    assert np.allclose(load_audio(np.stack([wave, -wave]), 16000, 16000), 0)
    assert np.allclose(load_audio((wave * 32768).astype(np.int16), 16000, 16000), wave, atol=1e-4)
    assert len(load_audio(wave, 16000, 8000)) == pytest.approx(200, abs=40)
    assert np.array_equal(load_audio(np.zeros(50), 16000, 16000), np.zeros(50))  # silence is a sound


@pytest.mark.parametrize(
    ("value", "rate", "message"),
    [
        (np.zeros(10), None, "pass sampling_rate="),
        (np.zeros(0), 16000, "is empty"),
        (np.array([0.0, np.nan]), 16000, "NaN or infinite"),
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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no clip", "no media file that can be read"),
        (sound(), "has no video stream"),
        ([], "has no frames"),
        ("nowhere.mp4", "there is no video file"),
        ([PICTURE, PICTURE[:4]], "differ in size"),
    ],
)
def test_bad_videos(value, message):
    with pytest.raises(MediaError, match=message):
        load_video(value, 2)
