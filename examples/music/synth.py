"""Synthesised songs of four stems (drums, bass, chords, melody), and where their beats and bars are."""

from dataclasses import dataclass

import numpy as np

RATE = 8000  # samples per second
HOP = 160
FRAMES_PER_SECOND = RATE / HOP
BANDS = 24
_WINDOW = 512


@dataclass
class Song:
    features: np.ndarray  # [4, frames, BANDS]: loudness of the stems, logarithmic
    beats: np.ndarray  # seconds
    bars: np.ndarray  # seconds; each is a beat too


def _add(stem: np.ndarray, start: float, sound: np.ndarray) -> None:
    first = int(start * RATE)
    if first < len(stem):
        stem[first : first + len(sound)] += sound[: len(stem) - first]


def _tone(frequency: float, seconds: float, overtones: int, decay: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    waves = sum(np.sin(2 * np.pi * frequency * n * time) / n for n in range(1, overtones + 1))
    return waves * np.exp(-decay * time) * np.minimum(1, time * 200)


def make_song(rng: np.random.Generator, seconds: float = 8.0) -> Song:
    """A song in four-four time of a random tempo, key, chords and melody, that begins somewhere in a bar."""
    beat = 60 / rng.uniform(80, 150)
    times = np.arange(rng.uniform(-4 * beat, 0), seconds, beat)
    stems = np.zeros((4, int(seconds * RATE)))
    drums, bass, chords, melody = stems
    root = 55 * 2 ** (rng.integers(0, 12) / 12)
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    swing = rng.uniform(0.5, 0.62)
    degree = 0
    for number, time in enumerate(times):
        if number % 4 == 0:
            degree = rng.choice([0, 3, 4, 5])
            for note in (0, 2, 4):
                step = degree + note
                pitch = 4 * root * 2 ** ((scale[step % 7] + 12 * (step // 7)) / 12)
                _add(chords, max(time, 0), 0.2 * _tone(pitch, 4 * beat, 3, 0.8 / beat))
        kick = number % 2 == 0 or rng.random() < 0.1
        sound = (
            _tone(60, 0.2, 1, 20) if kick else rng.normal(size=int(0.12 * RATE)) * np.linspace(0.4, 0, int(0.12 * RATE))
        )
        for place in (time, time + swing * beat):
            _add(drums, max(place, 0), 0.1 * rng.normal(size=300) * np.linspace(1, 0, 300))
        if time >= 0:
            _add(drums, time, sound)
            _add(bass, time, 0.5 * _tone(root * 2 ** (scale[degree] / 12), 0.9 * beat, 5, 2))
        for place in (time, time + swing * beat):
            if place >= 0 and rng.random() < 0.6:
                pitch = 8 * root * 2 ** (scale[rng.integers(0, 7)] / 12)
                _add(melody, place, 0.3 * _tone(pitch, 0.5 * beat, 4, 4))
    beats = times[times >= 0]
    bars = times[::4][times[::4] >= 0]
    return Song(_features(stems), beats, bars)


def _features(stems: np.ndarray) -> np.ndarray:
    padded = np.pad(stems, ((0, 0), (_WINDOW // 2, _WINDOW // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=1)[:, : stems.shape[1] : HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW))) ** 2
    edges = np.unique(np.geomspace(2, _WINDOW // 2, BANDS + 8).astype(int))[: BANDS + 1]
    bands = np.add.reduceat(power, edges[:-1], axis=-1)[..., :BANDS]
    return np.log1p(bands).astype(np.float32)
