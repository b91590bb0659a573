"""A WAV file as an array whose slices are read when they are asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bptt.data.spool import needed

EXACT = {"PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
"""Encodings in which each sample stands alone, so that reading may begin anywhere."""


class Sound:
    """Samples of a WAV file, (N, channels) in float32, whole numbers scaled to [-1, 1).

    path: the file, which stays open. `rate` is its number of samples per second.
    """

    def __init__(self, path: Path) -> None:
        soundfile = needed("soundfile", "a .wav file")
        try:
            self._file: Any = soundfile.SoundFile(os.fspath(path))
        except soundfile.LibsndfileError as error:
            raise ValueError(f"this isn't a WAV file that can be read ({error.error_string}).") from None
        sound = self._file
        if sound.format not in ("WAV", "WAVEX", "RF64", "W64") or sound.subtype not in EXACT:
            raise ValueError(
                f"holds sound as {sound.format_info}, {sound.subtype_info}: convert it to a WAV file of plain "
                f"samples, such as 16-bit PCM."
            )
        with path.open("rb") as file:
            kind, size = file.read(4), int.from_bytes(file.read(4), "little") + 8
        if kind == b"RIFF" and path.stat().st_size < size < 0xFFFFFF00:  # above: the writer didn't know the size
            raise ValueError(f"the file is cut off: it declares {size:,} bytes and has {path.stat().st_size:,}.")
        self._path, self.rate = path, int(sound.samplerate)
        self.shape, self.dtype = (sound.frames, sound.channels), needed("numpy", "a .wav file").dtype("float32")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Any:
        """A slice of step 1, as an array (n, channels)."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"{self._path}: samples are read in their order, not in steps of {step}.")
        self._file.seek(start)
        samples = self._file.read(max(stop - start, 0), dtype="float32", always_2d=True)
        if len(samples) != max(stop - start, 0):
            raise ValueError(f"{self._path}: ends at sample {start + len(samples)}, of {len(self)} that it declares.")
        return samples
