"""Captions and images embedded per second, beside the `encode` of sentence-transformers with the same towers.

pip install sentence-transformers
python benchmarks/embedding.py [--captions 1000] [--images 100] [--batch_size 32] [--rounds 5]
    [--texts FILE] [--text_tower FOLDER]

The towers are built from configurations (BERT of the size of MiniLM, 6 layers 384 wide; a CLIP of 6 layers 384 wide
over 224 x 224 pixels in patches of 32) and saved once; both sides load the same files and the same tokenizer and image
processor. Captions are of made-up words, or the lines of a file; images are JPEG files of 500 x 375 pixels
in memory, which both sides decode. CUE projects to 512 dimensions and adds the radius, which its peer does not.

One thread. Each side is a process of its own and runs as it would alone; they take turns within each round, timed by
their CPU seconds, which are wall seconds where nothing else runs. Printed are the median rate of both, and the median
(smallest, largest) over the rounds of their ratio. Before, it is checked that both get the same features out of their
towers.
"""

import argparse
import importlib.util
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from PIL import Image

from modeling_cue.training.demo import demo_tokenizer

SIZE = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}


def captions(count: int, file: str | None) -> list[str]:
    if file:
        lines = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()]
    else:
        lines = drawn_captions(count)
    if len(lines) < count:
        raise SystemExit(f"there are {len(lines)} captions, {count} are asked for: lower --captions")
    return lines[:count]


def drawn_captions(count: int) -> list[str]:
    """Captions of made-up words: the spread of words in a caption and of letters in a word are those of Flickr8k.

    There, captions have 12.0 words with a standard deviation of 4.0, and words 3.8 letters with one of 2.3.
    """
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    sizes = 1 + generator.negative_binomial(3.07, 0.526, 2500)
    words = ["".join(generator.choice(letters, size)) for size in sizes]
    counts = np.clip(generator.normal(12, 4, count).round().astype(int), 2, 32)
    return [" ".join(generator.choice(words, number)) for number in counts]


def jpegs(count: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        picture = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def save_towers(folder: Path, texts: list[str], own: str | None) -> None:
    torch.manual_seed(0)
    tokenizer = demo_tokenizer(texts)
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZE)
    if own:
        (folder / "text").symlink_to(Path(own).absolute())
    else:
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder / "text")
        tokenizer.save_pretrained(folder / "text")
    vision = SIZE | {"image_size": 224, "patch_size": 32}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    clip = transformers.CLIPConfig(text_config=text | special, vision_config=vision, projection_dim=384)
    transformers.CLIPModel(clip).save_pretrained(folder / "image")
    transformers.CLIPProcessor(transformers.CLIPImageProcessor(), tokenizer).save_pretrained(folder / "image")


def cue_side(folder: Path, texts: list[str], files: list[bytes], size: int) -> dict[str, Callable]:
    from modeling_cue import CUEModel, CUEProcessor
    from modeling_cue.training.embedder import Embedder
    from modeling_cue.training.rows import BadRows

    names = {"text": f"{folder}/text", "image": f"{folder}/image"}
    model, processor = CUEModel.from_encoders(**names), CUEProcessor.from_encoders(**names)
    embedder = Embedder(model, processor, ("text", "image"), batch_size=size)
    rows = [
        {"id": str(i), "caption": [], "first": 0, "media": ["image"], "image": {"bytes": file, "path": None}}
        for i, file in enumerate(files)
    ]
    return {"captions": lambda: embedder.texts(texts), "images": lambda: embedder.rows(rows, BadRows("raise"))}


def peer_side(folder: Path, texts: list[str], files: list[bytes], size: int) -> dict[str, Callable]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CLIPModel, Pooling, Transformer

    modules = [Transformer(str(folder / "text")), Pooling(SIZE["hidden_size"], "mean")]
    sentence = SentenceTransformer(modules=modules, device="cpu")
    clip = SentenceTransformer(modules=[CLIPModel(str(folder / "image"))], device="cpu")
    options = {"batch_size": size, "normalize_embeddings": True}
    return {
        "captions": lambda: sentence.encode(texts, **options),
        "images": lambda: clip.encode([Image.open(io.BytesIO(file)) for file in files], **options),
    }


SIDES = {"cue": cue_side, "sentence-transformers": peer_side}


def serve(arguments: argparse.Namespace, texts: list[str], files: list[bytes]) -> None:
    """One side: runs what each line of standard input names, and answers with the CPU seconds that it took."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    work = SIDES[arguments.side](Path(arguments.towers), texts, files, arguments.batch_size)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.process_time()
        work[line.strip()]()
        print(time.process_time() - start, flush=True)


def same_features(folder: Path, texts: list[str], files: list[bytes]) -> None:
    """Both sides must get the same features out of the same towers.

    Raises:
        AssertionError: they do not.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CLIPModel, Pooling, Transformer

    from modeling_cue import CUEModel, CUEProcessor

    names = {"text": f"{folder}/text", "image": f"{folder}/image"}
    model, processor = CUEModel.from_encoders(**names).eval(), CUEProcessor.from_encoders(**names)
    modules = [Transformer(names["text"]), Pooling(SIZE["hidden_size"], "mean")]
    clip = SentenceTransformer(modules=[CLIPModel(names["image"])], device="cpu")
    pictures = [Image.open(io.BytesIO(file)) for file in files[:8]]
    with torch.inference_mode():
        text, _ = model.tower_features("text", *processor(text=texts[:8]).values())
        image, _ = model.tower_features("image", processor(images=pictures)["pixel_values"])
        image = clip[0].model.visual_projection(image)
    theirs = SentenceTransformer(modules=modules, device="cpu").encode(texts[:8], convert_to_tensor=True)
    torch.testing.assert_close(text, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(image, clip.encode(pictures, convert_to_tensor=True), atol=1e-4, rtol=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("captions", 1000), ("images", 100), ("batch_size", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--text_tower", help="folder of a BERT-like tower to use in place of the one built here")
    parser.add_argument("--texts", help="file of captions, one a line, in place of procedural ones")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--towers", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    texts, files = captions(arguments.captions, arguments.texts), jpegs(arguments.images)
    if arguments.side:
        return serve(arguments, texts, files)
    if importlib.util.find_spec("sentence_transformers") is None:
        raise SystemExit("sentence-transformers is not installed: pip install sentence-transformers")
    with tempfile.TemporaryDirectory() as folder:
        save_towers(Path(folder), texts, arguments.text_tower)
        same_features(Path(folder), texts, files)
        command = [sys.executable, "-W", "ignore", *sys.argv, "--towers", folder, "--side"]
        sides = {
            name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for name in SIDES
        }
        for side in sides.values():
            if side.stdout.readline() != "ready\n":
                raise SystemExit("a side did not start: see above")
        for what, count in (("captions", len(texts)), ("images", len(files))):
            report(what, count, measure(sides, what, arguments.rounds))
        for side in sides.values():
            side.stdin.close()
            side.wait()


def measure(sides: dict[str, subprocess.Popen], what: str, rounds: int) -> dict[str, list[float]]:
    """CPU seconds by side and round; who is first changes with the round, and a round before the first warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in sorted(sides, reverse=bool(number % 2)):
            sides[name].stdin.write(what + "\n")
            sides[name].stdin.flush()
            seconds[name].append(float(sides[name].stdout.readline()))
    return {name: found[1:] for name, found in seconds.items()}


def report(what: str, count: int, seconds: dict[str, list[float]]) -> None:
    rates = "  ".join(f"{name} {count / statistics.median(found):.1f}/s" for name, found in seconds.items())
    ratios = [peer / cue for cue, peer in zip(*seconds.values(), strict=True)]
    print(f"{what}: {rates}  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})", flush=True)


if __name__ == "__main__":
    main()
