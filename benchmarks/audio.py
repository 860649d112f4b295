"""Short sounds through Whisper's encoder: over the real frames, as CUE runs it, beside over 30 seconds of padding.

python benchmarks/audio.py [--seconds 1 3 5 10 30] [--batch 4] [--rounds 5] [--threads 1] [--tower FOLDER] [--data DIR]

The tower has the shape of whisper-base, with fresh weights, or is the one in FOLDER. Sounds are noise with a voice's
spectrum, or, from DIR, the sounds of a data set that `run_contrastive.py` reads, cut to the seconds asked for. Both
ways take turns; printed are the median (smallest, largest) of how many times faster the real frames alone are, forward
and forward with backward, and how the two ways' mean over the real frames differs: the cosine between them, and, where
there are several sounds, their median distance as a share of that between the means of two different sounds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modeling_cue.encoders import run_tower
from modeling_cue.media_audio import load_audio

RATE = 16_000


def sounds(seconds: float, count: int, folder: str | None) -> list[np.ndarray]:
    """`count` mono sounds of so many seconds."""
    size = int(seconds * RATE)
    if folder is not None:
        from modeling_cue.training.data import load_rows

        rows = load_rows(folder, "test", modalities=("audio",), paired=False)
        found = [load_audio(row["audio"], RATE) for row in rows.select(range(min(len(rows), 8 * count)))]
        long_enough = [sound[:size] for sound in found if len(sound) >= size][:count]
        if len(long_enough) < count:
            raise SystemExit(f"audio.py: only {len(long_enough)} sounds of {seconds} s in {folder}: ask for less")
        return long_enough
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        spectrum = np.fft.rfft(rng.standard_normal(size))
        spectrum /= 1 + np.arange(len(spectrum)) / (300 * seconds)  # falls from 300 Hz on
        sound = np.fft.irfft(spectrum, size)
        made.append((sound / np.abs(sound).max()).astype(np.float32))
    return made


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 3, 5, 10, 30])
    for name, default in (("batch", 4), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tower", help="folder of a Whisper checkpoint")
    parser.add_argument("--data", help="data set with sounds")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.tower:
        tower = AutoModel.from_pretrained(given.tower).encoder
        extract = WhisperFeatureExtractor.from_pretrained(given.tower)
    else:
        tower = WhisperEncoder(
            WhisperConfig(d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048)
        )
        extract = WhisperFeatureExtractor()
    tower.eval()
    shape = "the tower given" if given.tower else "a tower of the shape of whisper-base"
    print(f"{shape}, batches of {given.batch}, {given.threads} threads")
    print("seconds  forward             forward, backward   cosine  distance / between sounds")
    for seconds in given.seconds:
        clips = sounds(seconds, given.batch, given.data)
        options = {"sampling_rate": RATE, "return_attention_mask": True, "return_tensors": "pt"}
        whole = extract(clips, padding="max_length", **options)
        values, mask = whole["input_features"], whole["attention_mask"][..., : whole["input_features"].shape[-1]]

        def pooled(crop: bool, values: torch.Tensor = values, mask: torch.Tensor = mask) -> torch.Tensor:
            output = run_tower(tower, "audio", values, mask, crop_audio=crop)
            weight = output.mask[..., None].float()
            return (output.tokens * weight).sum(1) / weight.sum(1)

        def forward(crop: bool, pooled: Callable[..., torch.Tensor] = pooled) -> None:
            with torch.no_grad():
                pooled(crop)

        times: dict[tuple[str, bool], list[float]] = {}
        for _ in range(given.rounds):
            for crop in (True, False):
                times.setdefault(("forward", crop), []).append(timed(lambda c=crop: forward(c)))
                times.setdefault(("both", crop), []).append(timed(lambda c=crop: pooled(c).sum().backward()))
        cells = []
        for what in ("forward", "both"):
            ratios = [a / b for a, b in zip(times[what, False], times[what, True], strict=True)]
            cells.append(f"{statistics.median(ratios):.1f}x ({min(ratios):.1f}, {max(ratios):.1f})")
        with torch.no_grad():
            ours, theirs = pooled(True), pooled(False)
        cosine = torch.nn.functional.cosine_similarity(ours, theirs).median().item()
        between = torch.cdist(theirs, theirs)[~torch.eye(len(clips), dtype=torch.bool)]
        apart = ((ours - theirs).norm(dim=1).median() / between.median()).item() if len(clips) > 1 else float("nan")
        print(f"{seconds:7g}  {cells[0]:18s}  {cells[1]:18s}  {cosine:.4f}  {apart:.3f}", flush=True)


if __name__ == "__main__":
    main()
