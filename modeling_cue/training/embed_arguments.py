"""The arguments of run_embed.py."""

from dataclasses import dataclass

from .arguments import SourceArguments, flag


@dataclass
class EmbedArguments(SourceArguments):
    """What `run_embed.py` embeds, by which model, and what it writes."""

    dataset_name: str = flag(
        "", "Hub data set, local folder (also of loose files), table or text file; 'scenes' is the demo data."
    )
    model_name_or_path: str = flag("", "The CUE checkpoint: Hub name or folder.")
    output_dir: str = flag("", "Folder of the data set of cones; a run that was cut off there goes on.")
    split: str | None = flag(None, "Split to embed, of loose files a sub-folder; default: all, of unsplit data.")
    modalities: list[str] = flag([], "Modalities to embed; default: all that the model and the data have.")
    max_samples: int | None = flag(None, "Read only so many rows.")
    shard_size: int = flag(2048, "Rows of the source that go into one file: what a cut-off run may lose.")
    axis_dtype: str = flag("float32", "float32 or float16: how axes are stored.")
    batch_size: int = flag(32, "Captions, images, sounds or clips per device and step.")
    num_workers: int = flag(0, "Processes beside each process that load and decode media.")
    bf16: bool = flag(False, "Towers run in bfloat16 (autocast).")
    fp16: bool = flag(False, "Towers run in float16 (autocast).")
    use_cpu: bool = flag(False, "Leave accelerators alone.")

    def __post_init__(self) -> None:
        for name in ("model_name_or_path", "dataset_name", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name} is needed: run_embed.py --{name} ... (or in the YAML file)")
        for name in ("shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not valid; it must be 1 or more")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers} is not valid; it must be zero or more")
        if self.axis_dtype not in ("float32", "float16"):
            raise ValueError(f"axis_dtype={self.axis_dtype!r} is not valid; it must be float32 or float16")
        if self.on_bad_row not in ("raise", "skip"):
            raise ValueError(f"on_bad_row={self.on_bad_row!r} is not valid; it must be raise or skip")
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 exclude one another: choose one")
