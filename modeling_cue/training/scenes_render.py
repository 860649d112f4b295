"""Scenes as pictures, sounds and clips, with everything that does not matter drawn at random.

Picture and clip: the two things stand side by side or one above the other on a shaded, noisy ground; place, radius,
tilt and tint vary. In a clip they drift and turn, never so far that the relation changes.

Sound: the things are played one after the other, in reading order, as notes of a simple voice. The *colour* is the
vowel (where a resonance lies between 550 and 5500 Hz), the *shape* is the gesture (steady, plucked, two blocks, a
glide up, taps), a *large* thing is longer and louder, and height is pitch: side by side both notes lie in the middle,
of two things above one another the upper one is high and the lower one low.
The pitch and the throat of the voice, tempo, loudness, pauses, phases and noise vary.
"""

import io
import wave
from collections.abc import Callable
from typing import Any

import av
import numpy as np
from PIL import Image

from .scenes_language import ABOVE, COLOURS, Claim, Thing

PIXELS = 48
FRAMES = 6
FRAME_RATE = 6
SAMPLING_RATE = 16_000

_RGB = {
    "purple": (125, 45, 175),
    "blue": (40, 75, 235),
    "teal": (0, 125, 125),
    "green": (40, 170, 50),
    "cyan": (60, 215, 230),
    "white": (245, 245, 245),
    "pink": (250, 150, 190),
    "magenta": (235, 40, 215),
    "red": (215, 30, 35),
    "brown": (135, 80, 35),
    "orange": (248, 140, 15),
    "yellow": (245, 228, 50),
    "lime": (165, 240, 80),
}
_RADIUS = {"small": 7.2, "large": 11.2}  # pixels
_RESONANCE = dict(zip(COLOURS, np.geomspace(550.0, 5500.0, len(COLOURS)), strict=True))  # Hz
_SECONDS = {"small": 0.34, "large": 0.55}
_LOUDNESS = {"small": 0.4, "large": 1.0}
_LOW, _MIDDLE, _HIGH = 125.0, 190.0, 290.0  # Hz
_GRID = np.arange(PIXELS, dtype=np.float32)


# Pictures


# Distance to the outline, negative inside, in units of the radius; u points right, v down.
_OUTLINE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.95,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.24,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.82,
    "triangle": lambda u, v: np.maximum(v - 0.75, 0.87 * np.abs(u) - 0.49 * (v + 1.1)),
    "cross": lambda u, v: np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.3, np.maximum(np.abs(u), np.abs(v)) - 1.0),
}


def draw(scene: Claim, rng: np.random.Generator, frames: int = 1) -> np.ndarray:
    """Frames of a scene, uint8 (frames, PIXELS, PIXELS, 3); with more than one frame, things move."""
    shade = rng.uniform(25, 115) + rng.uniform(-8, 8, 3)
    slope = rng.uniform(-0.4, 0.4, 2)
    ramp = slope[0] * (_GRID[:, None] - PIXELS / 2) + slope[1] * (_GRID - PIXELS / 2)
    still = (shade + ramp[..., None]).astype(np.float32)
    flicker = rng.uniform(-5, 5, (frames, 1, 1, 1)).astype(np.float32)
    picture = (still + flicker) if frames > 1 else still[None].copy()
    time = np.linspace(-1, 1, frames) if frames > 1 else np.zeros(1)
    for thing, centre in zip(scene.things, _centres(scene, time, rng), strict=True):
        _paint(picture, thing, centre, time, rng)
    # Flat noise from raw bytes: a third of the time that a bell would take.
    noise = np.frombuffer(rng.bytes(picture.size), np.uint8).reshape(picture.shape)
    grain = np.float32(rng.uniform(4, 18) / 255)
    picture += noise * grain
    picture -= 127.5 * grain
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _centres(scene: Claim, time: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Where each thing is over `time`: (frames, 2) pixels as (x, y).

    Two things keep at least 19 pixels along the axis of their relation and at most 12 across.
    """
    if scene.second is None:
        start, drift = rng.uniform(PIXELS * 0.3, PIXELS * 0.7, 2), rng.uniform(-3, 3, 2)
        return [start + time[:, None] * drift]
    centres = []
    for place in (-12, 12):
        start = np.array([place + rng.uniform(-1, 1), rng.uniform(-3, 3)])
        drift = np.array([rng.uniform(-1.5, 1.5), rng.uniform(-3, 3)])
        path = PIXELS / 2 - 0.5 + start + time[:, None] * drift
        centres.append(path[:, ::-1] if scene.relation == ABOVE else path)
    return centres


def _paint(picture: np.ndarray, thing: Thing, centre: np.ndarray, time: np.ndarray, rng: np.random.Generator) -> None:
    """Lays one thing over `picture`, float32 (frames, PIXELS, PIXELS, 3), in place, its edge one pixel soft."""
    radius = _RADIUS[str(thing.size)] * rng.uniform(0.92, 1.08)
    tilt = (rng.uniform(-0.17, 0.17) + rng.uniform(-0.12, 0.12) * time)[:, None, None].astype(np.float32)
    colour = (np.array(_RGB[str(thing.colour)]) + rng.uniform(-14, 14, 3)).astype(np.float32)
    # No outline passes 1.2 radii: only the window that holds the thing in all frames is computed.
    left, top = np.clip(np.floor(centre.min(0) - 1.2 * radius - 1), 0, PIXELS).astype(int)
    right, bottom = np.clip(np.ceil(centre.max(0) + 1.2 * radius + 2), 0, PIXELS).astype(int)
    x = ((_GRID[left:right] - centre[:, :1]) / radius).astype(np.float32)[:, None, :]
    y = ((_GRID[top:bottom] - centre[:, 1:]) / radius).astype(np.float32)[:, :, None]
    cos, sin = np.cos(tilt), np.sin(tilt)
    distance = _OUTLINE[str(thing.shape)](x * cos + y * sin, y * cos - x * sin)
    cover = np.clip(0.5 - np.float32(radius) * distance, 0, 1)[..., None].astype(np.float32)
    window = picture[:, top:bottom, left:right]
    window += cover * (colour - window)


# Sound

# The gesture of a shape: loudness and pitch (octaves) as functions of u, the time within the note from 0 to 1.
_LOUD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ring": lambda u: np.exp(-4.5 * u),
    "square": lambda u: np.clip(8 * (np.abs(2 * u - 1) - 0.25), 0, 1),
    "cross": lambda u: np.clip(2 * np.sin(8 * np.pi * u), 0, 1),
}
_GLIDE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "triangle": lambda u: 0.9 * u - 0.45,
}


def play(scene: Claim, rng: np.random.Generator) -> np.ndarray:
    """A scene as sound: float32 (samples,) in (-1, 1) at `SAMPLING_RATE`, 0.35 to 1.7 seconds."""
    if scene.second is None:
        pitches = [rng.choice([_LOW, _MIDDLE, _HIGH])]
    else:
        pitches = [_HIGH, _LOW] if scene.relation == ABOVE else [_MIDDLE, _MIDDLE]
    tempo, voice, throat = rng.uniform(0.9, 1.1), 2 ** rng.uniform(-0.06, 0.06), 2 ** rng.uniform(-0.08, 0.08)
    sound = [np.zeros(int(rng.uniform(0.02, 0.12) * SAMPLING_RATE), np.float32)]
    for thing, pitch in zip(scene.things, pitches, strict=True):
        samples = int(_SECONDS[str(thing.size)] * tempo * rng.uniform(0.95, 1.05) * SAMPLING_RATE)
        sound += [
            _note(thing, pitch * voice, _RESONANCE[str(thing.colour)] * throat, samples, rng),
            np.zeros(int(rng.uniform(0.06, 0.14) * SAMPLING_RATE), np.float32),
        ]
    wave_form = np.concatenate(sound)
    wave_form += rng.standard_normal(len(wave_form), dtype=np.float32) * np.float32(10 ** rng.uniform(-2.6, -1.8))
    return wave_form * np.float32(rng.uniform(0.25, 0.95) / np.abs(wave_form).max())


def _note(thing: Thing, pitch: float, resonance: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """A voiced tone at `pitch` with one resonance (both Hz).

    The resonance is a carrier whose loudness pulses with the pitch: exp(k (cos p - 1)) cos c, harmonics of the pitch
    under a bell around the carrier (modified frequency modulation; Lazzarini and Timoney, J. AES 58(6), 2010).
    """
    shape, size = str(thing.shape), str(thing.size)
    u = np.arange(samples, dtype=np.float32) / samples
    glide = _GLIDE[shape](u) if shape in _GLIDE else np.zeros(1, np.float32)
    loud = _LOUD[shape](u) if shape in _LOUD else np.ones(1, np.float32)
    fade = np.minimum(1, np.minimum(u, 1 - u) * samples / (0.01 * SAMPLING_RATE))
    voice = _phase(pitch * np.exp2(glide), samples, rng)
    # The throat follows the pitch a little; more would turn one vowel into the next.
    carrier = _phase(resonance * np.exp2(0.55 * glide), samples, rng)
    sin, cos = np.sin(voice), np.cos(voice)
    tone = (0.5 + 0.4 * cos) * sin + np.exp(3 * (cos - 1)) * np.cos(carrier)
    return np.float32(_LOUDNESS[size] * rng.uniform(0.9, 1.1)) * loud * fade * tone


def _phase(frequency: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """The phase of a tone whose frequency is given in Hz: float32 (samples,), radians, in [0, 2 pi), random start."""
    turns = rng.random() + np.cumsum(np.broadcast_to(frequency / SAMPLING_RATE, samples), dtype=np.float64)
    return (2 * np.pi * (turns - np.floor(turns))).astype(np.float32)


# Files


def image_file(scene: Claim, rng: np.random.Generator) -> dict[str, Any]:
    """The scene as a PNG file, as `datasets` keeps an undecoded image."""
    buffer = io.BytesIO()
    Image.fromarray(draw(scene, rng)[0]).save(buffer, format="png", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def audio_file(scene: Claim, rng: np.random.Generator) -> dict[str, Any]:
    """The scene as a WAV file of 16 bits, one channel."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes((play(scene, rng) * 32767).astype("<i2").tobytes())
    return {"bytes": buffer.getvalue(), "path": None}


def video_file(scene: Claim, rng: np.random.Generator) -> dict[str, Any]:
    """The scene as an AVI file of `FRAMES` raw frames, which read the fastest: noise would not compress anyway."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("rawvideo", rate=FRAME_RATE)
        stream.width, stream.height, stream.pix_fmt = PIXELS, PIXELS, "bgr24"
        for frame in draw(scene, rng, FRAMES):
            frame = np.ascontiguousarray(frame[..., ::-1])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())
    return {"bytes": buffer.getvalue(), "path": None}


RENDER: dict[str, Callable[[Claim, np.random.Generator], dict[str, Any]]] = {
    "image": image_file,
    "audio": audio_file,
    "video": video_file,
}
