"""What stands in the README of a data set of cones."""

import json

from .embed_store import ConeStore, Totals

README = """\
---
tags:
- embeddings
- cue
---

# Cones of {data}

Embedded by `run_embed.py` of CUE, the Universal Compositional Embedder: every caption, image, sound and clip is a
spherical cone in one space, an axis that says what and an angular radius that says how specific.

| modality | cones |
|---|---|
{counts}

Rows of the source that were broken and left out: {left_out}.

## Use it

```python
from datasets import load_dataset

cones = load_dataset({folder!r}, split={split!r}).with_format("numpy")
images = load_dataset({folder!r}, split={split!r}, filters=[("modality", "==", "image")])  # reads no others
```

## Columns

| column | type | what |
|---|---|---|
| `id` | string | the sample; all its captions and media share it |
| `modality` | string | text, image, audio or video |
| `caption` | int32 | number of the caption among those of its id (streamed: in one file), from 0; null for media |
| `text` | string | the caption itself; null for media |
| `axis` | {dtype}, list of {dim} | unit vector; the dot product of two is the cosine of their angle |
| `radius` | float32 | angular radius in radians, in (0, pi) |

Each file holds a piece of the source, first its captions, then its media, in the order of the source; each modality
has row groups of its own.

## Model and settings

- model: `{model}`, fingerprint `{fingerprint}` (weights, configuration and processor)
- data: `{data}`, split `{source_split}`

```json
{settings}
```
"""


def readme(store: ConeStore, totals: Totals) -> str:
    """The text: schema, counts, model, data and settings of a finished folder."""
    settings = store.settings
    return README.format(
        data=settings["names"]["data"],
        counts="\n".join(f"| {modality} | {count:,} |" for modality, count in totals.cones.items()),
        left_out=totals.left_out,
        folder=store.folder.name,
        split=store.split,
        dtype=settings["axis_dtype"],
        dim=settings["dimension"],
        model=settings["names"]["model"],
        fingerprint=settings["model"]["fingerprint"],
        source_split=settings["data"]["split"] or "all",
        settings=json.dumps(settings, indent=2),
    )
