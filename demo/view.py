"""What the demo shows, as HTML: the parts of a query with their compound, and the items found."""

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from modeling_cue import Cone

from .search import Found, Item, Part, apart, mean_apart

ONE = {"text": "text", "image": "image", "audio": "sound", "video": "clip"}
MANY = {"text": "Texts", "image": "Images", "audio": "Sounds", "video": "Clips"}

CSS = """
.cue-note { opacity: .75; margin: .4em 0; font-size: 14px; }
.cue-parts { width: 100%; border-collapse: collapse; font-size: 14px; }
.cue-parts th { text-align: left; font-weight: 600; opacity: .7; }
.cue-parts th, .cue-parts td { padding: 5px 6px; border-bottom: 1px solid var(--border-color-primary); }
.cue-parts .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.cue-parts .name { width: 100%; overflow-wrap: anywhere; }
.cue-parts img { height: 32px; width: 32px; object-fit: cover; border-radius: 4px; display: inline-block;
  vertical-align: middle; margin-right: 8px; }
.cue-parts .compound td { font-weight: 600; border-bottom: none; }
.cue-parts .mean td { opacity: .75; }
.cue-kind { display: flex; align-items: baseline; gap: 10px; margin: 18px 0 8px; font-size: 17px; font-weight: 600; }
.cue-kind:first-child { margin-top: 0; }
.cue-kind span { font-size: 14px; font-weight: 400; opacity: .75; }
.cue-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(190px, 42%), 1fr)); gap: 12px; }
.cue-card { border: 1px solid var(--border-color-primary); border-radius: 10px; overflow: hidden; display: flex;
  flex-direction: column; background: var(--background-fill-primary); }
.cue-card.inside { border-color: var(--color-accent); }
.cue-card img, .cue-card video { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #8882; }
.cue-card audio { width: 100%; height: 44px; padding: 6px 6px 0; box-sizing: border-box; }
.cue-card audio::-webkit-media-controls-mute-button, .cue-card audio::-webkit-media-controls-volume-slider {
  display: none; }
.cue-card .body { padding: 8px 10px 10px; display: flex; flex-direction: column; gap: 5px; flex: 1; }
.cue-card .caption { font-size: 14px; line-height: 1.35; overflow-wrap: anywhere; }
.cue-card .title { font-size: 12px; line-height: 1.35; opacity: .65; overflow-wrap: anywhere; }
.cue-card .line { display: flex; align-items: center; justify-content: space-between; gap: 4px; font-size: 12px;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.cue-card .scores { margin-top: auto; padding-top: 3px; }
.cue-card .bar { height: 4px; border-radius: 2px; background: var(--border-color-primary); }
.cue-card .bar div { height: 100%; border-radius: 2px; background: var(--color-accent); }
.cue-card button { border: 1px solid var(--border-color-primary); border-radius: 6px; font-size: 12px;
  padding: 1px 7px; cursor: pointer; }
.cue-card button:hover { border-color: var(--color-accent); }
.cue-card .yes { color: var(--color-accent); font-weight: 600; }
.cue-card .no { opacity: .6; }
"""

# The columns of the table of parts, with their alignment.
HEAD = {"part": "", "kind": "", "radius": "number", "off axis": "number"}
# Clicks on "+ query" reach Python with the name of the item.
ON_LOAD = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-item]');
  if (button) trigger('click', {item: button.dataset.item});
});
"""


def escape(text: str) -> str:
    """Text as HTML; braces and dollars too, which the page's template would read."""
    return html.escape(text).translate({ord(sign): f"&#{ord(sign)};" for sign in "{}$`\\"})


def degrees(radians: float) -> str:
    return f"{math.degrees(radians):.1f}°"


def parts_table(parts: Sequence[Part], compound: Cone, query: Cone, min_radius: float) -> str:
    """The parts of a query, their compound (1,), and the radius at which it is asked, that of `query` (1,).

    `min_radius`, in radians, is the smallest that a compound of several parts can have.
    """
    lines = [
        f'<tr><td class="name">{_picture(part)}{escape(part.name)}</td><td>{ONE[part.kind]}</td>'
        f'<td class="number">{degrees(float(part.cone.radius))}</td><td class="number">{away:.1f}°</td></tr>'
        for part, away in zip(parts, apart(parts, compound), strict=True)
    ]
    radius = degrees(float(compound.radius))
    if float(query.radius) != float(compound.radius):
        radius = f"{radius} → {degrees(float(query.radius))}"
    if len(parts) > 1:
        lines.append(
            '<tr class="mean"><td colspan="3">mean of the axes, for comparison</td>'
            f'<td class="number">{mean_apart(parts, compound):.1f}°</td></tr>'
        )
    name = "compound" if len(parts) > 1 else "query"
    lines.append(f'<tr class="compound"><td colspan="2">{name}</td><td class="number">{radius}</td><td></td></tr>')
    note = ""
    if compound.empty is not None and bool(compound.empty):
        note = "Some of these parts lie apart: nothing is inside all of them. The search goes by the compound's axis."
    elif len(parts) > 1 and float(query.radius) <= min_radius * 1.001:
        note = (
            "No cone round the compound's axis lies inside every part: its radius is the least. Widen it to see more."
        )
    head = "".join(f'<th class="{side}">{name}</th>' for name, side in HEAD.items())
    return f'<table class="cue-parts"><tr>{head}</tr>{"".join(lines)}</table><p class="cue-note">{note}</p>'


def results(found: Sequence[Found], only_inside: bool, file: Callable[[Item], Path | None]) -> str:
    """The items found, kind by kind; `file` gives the file that shows a medium."""
    sections = []
    for kind in found:
        shown = f", {len(kind.items)} shown" if len(kind.items) < (kind.inside if only_inside else kind.total) else ""
        heading = f"{MANY[kind.kind]}<span>{kind.inside:,} of {kind.total:,} inside the query's cone{shown}</span>"
        cards = "".join(_card(item, file) for item in kind.items)
        body = f'<div class="cue-grid">{cards}</div>' if cards else '<p class="cue-note">None: try a wider radius.</p>'
        sections.append(f'<div class="cue-kind">{heading}</div>{body}')
    return "".join(sections)


def _picture(part: Part) -> str:
    return f'<img src="{part.picture}" alt="">' if part.picture else ""


def _card(item: Item, file: Callable[[Item], Path | None]) -> str:
    within = '<span class="yes">inside</span>' if item.inside else '<span class="no">outside</span>'
    title = f'<div class="title">{escape(item.title)}</div>' if item.title != item.caption else ""
    return (
        f'<div class="cue-card{" inside" if item.inside else ""}">{_medium(item, file)}<div class="body">'
        f'<div class="caption">{escape(item.caption)}</div>{title}'
        f'<div class="line scores"><span title="cosine between the axes">score {item.score:.3f}</span>{within}</div>'
        f'<div class="bar"><div style="width: {100 * item.probability:.1f}%"></div></div>'
        f'<div class="line"><span title="containment probability">contained {_percent(item.probability)}</span>'
        f'<button data-item="{item.kind} {item.position}" title="Add this to the query">+ query</button></div>'
        "</div></div>"
    )


def _percent(probability: float) -> str:
    """In whole percent, but never a certainty that is none."""
    return "&gt; 99 %" if probability > 0.995 else "&lt; 1 %" if probability < 0.005 else f"{100 * probability:.0f} %"


def _medium(item: Item, file: Callable[[Item], Path | None]) -> str:
    if item.kind == "text":
        return ""
    path = file(item)
    if path is None:
        return '<p class="cue-note">cannot be shown</p>'
    name = escape(item.caption or item.title)
    source = f'src="/gradio_api/file={quote(path.as_posix())}"'
    if item.kind == "audio":
        hidden = 'controlslist="nodownload noplaybackrate"'  # the menu of these would not fit into the card
        return f'<audio controls {hidden} preload="metadata" {source} aria-label="{name}"></audio>'
    if item.kind == "video" and path.suffix != ".webp":
        return f'<video controls preload="metadata" {source} aria-label="{name}"></video>'
    return f'<img loading="lazy" {source} alt="{name}">'
