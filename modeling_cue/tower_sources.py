"""Where towers come from: what lets a light checkpoint name its towers in place of holding their weights.

A *source* is a dict: `name` (Hub repo, or the full path of a local folder), `revision` (the commit; None for a
folder), `dtype` that the tower was loaded in, and the `fingerprint` of the weights found there.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from .encoders import HUB_OPTIONS, load_tower

logger = logging.get_logger(__name__)
WAYS = ("whole", "reference")
# Arguments of `from_pretrained` that leave the weights as a light checkpoint fetches them.
PLAIN = {"dtype", "attn_implementation", "trust_remote_code", "device_map", *HUB_OPTIONS}
SCHEME = 1  # of fingerprints, their first part: a newer one cannot be compared


def fingerprint(weights: Iterable[Tensor]) -> str:
    """`1:` and 32 hex digits over the content of all tensors, in any order.

    Their names do not count: a version of `transformers` may rename what is still the same tower.
    """
    digests = []
    for tensor in weights:
        digest = hashlib.blake2b(f"{tuple(tensor.shape)}{tensor.dtype}".encode(), digest_size=16)
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digests.append(digest.digest())
    return f"{SCHEME}:{hashlib.blake2b(b''.join(sorted(digests)), digest_size=16).hexdigest()}"


def load_known_tower(name: str, modality: str, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The pretrained tower `name` and its source; arguments and errors as of `load_tower`."""
    source: dict[str, Any] = {"name": str(name), "revision": None}
    if Path(name).is_dir():
        source["name"] = str(Path(name).resolve())
    else:
        # What cannot be found is told by `load_tower`.
        with suppress(OSError):
            options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
            source["revision"] = extract_commit_hash(cached_file(name, "config.json", **options), None)
    if source["revision"]:
        kwargs["revision"] = source["revision"]
    tower = load_tower(name, modality, **kwargs)
    if kwargs.keys() - PLAIN:
        return tower, {}  # `variant`, say: what lies under the name alone has other weights
    source["dtype"] = str(tower.dtype).removeprefix("torch.")
    source["fingerprint"] = fingerprint(tower.state_dict().values())
    return tower, source


# ---------------------------------------------------------------------- saving


def tower_owners(config: Any) -> tuple[str, ...]:
    """The modalities with a tower of their own; one that image and video share is the image's."""
    return tuple(m for m in config.modalities if not (m == "video" and config.video_uses_image_tower))


def check_sources(config: Any, public: bool = False) -> None:
    """Checks that every tower can be named.

    Args:
        public: others will load the checkpoint, so that a folder of this machine names nothing.

    Raises:
        ValueError: a tower without a known origin or, with `public`, one that is not on the Hub.
    """
    for modality in tower_owners(config):
        source = config.tower_sources.get(modality)
        if source is None:
            raise ValueError(
                f"the {modality} tower cannot be saved by reference: it has no known origin; save with "
                "towers='whole', or build the model by CUEModel.from_encoders, which notes where its towers are"
            )
        if public and source["revision"] is None:
            raise ValueError(
                f"the {modality} tower cannot be shared by reference: it came from the folder {source['name']!r}, "
                "which nobody else has; push the tower to the Hub and build the model from its name there, or use "
                "towers='whole'"
            )


def on_the_hub(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the sources that others can reach."""
    return {modality: source for modality, source in sources.items() if source["revision"] is not None}


@contextmanager
def public_sources(config: Any, public: bool = True) -> Iterator[None]:
    """Within, the configuration names no folders of this machine: what others get to read."""
    sources = config.tower_sources
    if public:
        config.tower_sources = on_the_hub(sources)
    try:
        yield
    finally:
        config.tower_sources = sources


def leave_out_towers(config: Any, state_dict: dict[str, Tensor], trainable: Iterable[str] = ()) -> list[str]:
    """Takes the weights of towers that their sources hold out of `state_dict`, and returns their modalities.

    What was trained stays, with a warning; so do the towers of `trainable`.
    """
    left_out = []
    for modality in tower_owners(config):
        prefix, source = f"{modality}_tower.", config.tower_sources[modality]
        weights = {name: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        if any(tensor.is_meta for tensor in weights.values()):
            raise ValueError(
                f"the {modality} tower is offloaded by its device_map, so that its weights cannot be compared with "
                "those of its source: load the model without offloading, or save it whole, with towers='whole'"
            )
        if modality not in trainable and fingerprint(weights.values()) == source["fingerprint"]:
            for name in weights:
                del state_dict[name]
            left_out.append(modality)
        else:
            logger.warning_once(
                f"the {modality} tower is stored whole: it was trained (or loaded in another dtype), and what it "
                f"came from, {describe(source)}, has other weights"
            )
    return left_out


def describe(source: Mapping[str, Any]) -> str:
    """A source in words: the name, and the revision where there is one."""
    return repr(source["name"]) + (f" at revision {source['revision']}" if source["revision"] else "")


# ---------------------------------------------------------------------- loading


def light_state_dict(config: PreTrainedConfig, files: Iterable[str], **options: Any) -> dict[str, Tensor]:
    """All weights of a light checkpoint: those in its files, and those of the towers that it names.

    Args:
        options: how towers are fetched: `cache_dir`, `token`, `local_files_only` and the like.

    Raises:
        ValueError: a file is damaged, a tower cannot be fetched, or its weights are not those of the checkpoint.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_state_dict(file)
        except Exception as error:  # the library of the file format has errors of its own
            raise ValueError(
                f"{file} cannot be read: it is damaged or half-downloaded; download or copy the checkpoint again, on "
                f"the Hub with force_download=True ({error})"
            ) from error
    for modality in config.towers_by_reference:
        tower = fetch_tower(modality, config.tower_sources[modality], **options)
        weights |= {f"{modality}_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    return weights


def fetch_tower(modality: str, source: Mapping[str, Any], **options: Any) -> PreTrainedModel:
    """The tower that a light checkpoint names, with the weights that it had there.

    Raises:
        ValueError: it cannot be fetched, or its fingerprint differs or is of a newer version of CUE.
    """
    scheme, _, _ = source["fingerprint"].partition(":")
    if scheme != str(SCHEME):
        raise ValueError(
            f"this light checkpoint was saved by a newer CUE: the fingerprint of its {modality} tower is of version "
            f"{scheme}, and this CUE reads version {SCHEME}; update the package (or the code beside the checkpoint)"
        )
    # As it was loaded first: another dtype would round, and the fingerprint would say nothing.
    dtype = getattr(torch, source["dtype"])
    if source["revision"] is not None:
        options["revision"] = source["revision"]
    try:
        tower = load_tower(source["name"], modality, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"this is a light checkpoint, which needs its {modality} tower from {describe(source)}, and that could "
            "not be fetched: see below whether the name or revision is gone, the token lacks rights, or there is no "
            "connection and no copy in the cache; a checkpoint saved with towers='whole' needs none of these "
            f"({error})"
        ) from error
    found = fingerprint(tower.state_dict().values())
    if found != source["fingerprint"]:
        raise ValueError(
            f"the {modality} tower {describe(source)} is not the one that this light checkpoint was trained over: its "
            f"weights have the fingerprint {found}, not {source['fingerprint']}. If the copy in the cache is damaged, "
            "load with force_download=True; if the tower was changed there, put its former weights back, or use a "
            "checkpoint saved with towers='whole'"
        )
    return tower
