#!/usr/bin/env python
"""Search by cones, to click: app.py [MODEL] [--data FOLDER_OR_DATASET]; without a model, that of the demo run.

python demo/app.py
python demo/app.py org/cue --data photos
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.media import PLAYED, Shelf
from demo.search import Part, Search, open_search, widened
from demo.view import CSS, MANY, ON_LOAD, ONE, parts_table, results

if TYPE_CHECKING:
    import gradio as gr

NEAREST, INSIDE = "nearest", "inside this concept"
CARDS = 24  # shared out among up to three kinds
LARGEST_FILE = "100mb"
EMPTY = '<p class="cue-note">Nothing is asked yet: write something, drop a file, or click an example.</p>'
TITLE = "CUE: search by cones"
INTRODUCTION = """# {title}
Everything is a cone: a direction that says *what*, a radius that says *how specific*. Put a query together out of
parts of any kind; they become one compound. Searching **{name}**: {counts}."""


def main(argv: Sequence[str]) -> None:
    options = parse(argv)
    # Before gradio is imported: nothing about its visitors is sent anywhere.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        sys.exit('the page needs gradio: pip install -e ".[demo]"')
    if not options.model and options.data != "scenes":
        print("the demo's model knows its scenes only: name a model of yours for other data", flush=True)
    try:
        search = open_search(options.model or demo_model(), options.data, options.split, options.max_rows)
    except (ValueError, OSError) as error:
        sys.exit(f"demo: {error}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the folder goes when a Space is stopped
    with TemporaryDirectory(prefix="cue-demo-") as folder:
        page = build(search, Shelf(Path(folder)))
        try:
            page.launch(
                server_name=options.host,
                server_port=options.port,
                share=options.share,
                allowed_paths=[folder, *played(search)],
                max_file_size=LARGEST_FILE,
                theme=gradio.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css=CSS,
                ssr_mode=False,
                footer_links=[],
            )
        except OSError as error:
            sys.exit(f"demo: cannot listen at port {options.port or 'from 7860 on'}, give another --port ({error})")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("app.py", description="A page to search a collection by cones.")
    parser.add_argument(
        "model",
        nargs="?",
        # A Space starts the file without arguments and sets variables instead.
        default=os.environ.get("CUE_MODEL"),
        help="a CUE: a folder or a Hub name. Default: the model of the demo run, trained first where it is not there.",
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("CUE_DATA", "scenes"),
        help="a folder of images, sounds, clips and text files, a table, or a data set. Default: the demo's scenes.",
    )
    parser.add_argument("--split", help="a split of the data set, or a sub-folder. Default: all of unsplit data.")
    parser.add_argument("--max_rows", type=int, help="reads no more rows than this.")
    parser.add_argument("--host", help="the address to listen at. Default: 127.0.0.1, this computer only.")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on.")
    parser.add_argument("--share", action="store_true", help="makes a public link by gradio's servers.")
    return parser.parse_args(argv)


def demo_model() -> str:
    """The folder of the demo run's model, which is trained where it is not there yet."""
    from modeling_cue.training.parsing import read_yaml
    from run_contrastive import DEMO
    from run_contrastive import main as train

    folder = Path(read_yaml(Path(DEMO))["output_dir"])
    if not (folder / "model.safetensors").is_file():
        print(f"There is no model in {folder} yet: it is trained now, once, in about five minutes.", flush=True)
        train([])
    return str(folder)


def played(search: Search) -> list[str]:
    """The collection's own files that the browser plays: these, and no others in their folders, may be read."""
    paths = []
    for kind, suffixes in PLAYED.items():
        for value in search.rows[kind] if kind in search.cones else ():
            if value and value["bytes"] is None and Path(value["path"]).suffix.lower() in suffixes:
                paths.append(value["path"])
    return paths


def build(search: Search, shelf: Shelf) -> "gr.Blocks":
    """The page."""
    import gradio as gr

    kinds = [kind for kind in MANY if kind in search.cones]
    counts = ", ".join(f"{search.cones[kind].radius.size:,} {MANY[kind].lower()}" for kind in kinds)
    media = [kind for kind in search.modalities if kind != "text"]

    def added(parts: list[Part], chosen: list[int], new: list[Part]) -> Any:
        parts = [*parts, *new]
        labels = [(f"{ONE[part.kind]}: {part.name}", number) for number, part in enumerate(parts)]
        chosen = [*chosen, *range(len(parts) - len(new), len(parts))]
        return parts, gr.CheckboxGroup(choices=labels, value=chosen, visible=True)

    def add_text(text: str, parts: list[Part], chosen: list[int]) -> Any:
        try:
            part = search.text(text)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if not search.knows(part.name):
            gr.Warning("The model does not know every word of this: what it does not know says nothing to it.")
        return "", *added(parts, chosen, [part])

    def add_files(paths: list[str], parts: list[Part], chosen: list[int]) -> Any:
        new = []
        for path in paths:
            try:
                new.append(search.file(path))
            except ValueError as error:
                gr.Warning(f"Left out: {error}", duration=20)
        return None, *added(parts, chosen, new)

    def add_item(parts: list[Part], chosen: list[int], event: gr.EventData) -> Any:
        kind, position = event.item.split()
        return added(parts, chosen, [search.item(kind, int(position))])

    def clear() -> Any:
        return [], gr.CheckboxGroup(choices=[], value=[], visible=False), 0, NEAREST

    def show(parts: list[Part], chosen: list[int], degrees: float, mode: str, shown: list[str]) -> Any:
        parts = [parts[number] for number in sorted(chosen)]
        if not parts:
            return "", EMPTY
        compound = search.compound(parts)
        query = widened(compound, degrees)
        shown = [kind for kind in kinds if kind in shown]
        found = [search.find(query, kind, CARDS // min(len(shown), 3), mode == INSIDE) for kind in shown]
        page = results(
            found,
            mode == INSIDE,
            lambda item: shelf.file(
                f"{item.kind}-{item.position}", item.kind, search.medium(item.kind, item.position)
            ),
        )
        return parts_table(
            parts, compound, query, search.model.config.min_radius
        ), page or '<p class="cue-note">Choose what to show.</p>'

    def find(parts: list[Part], chosen: list[int], *settings: Any) -> Any:
        if not chosen:
            gr.Warning("There is no part to search by: write something, drop a file, or tick a part.")
        return show(parts, chosen, *settings)

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as page:
        parts = gr.State([])
        # Of a folder its name alone: where it lies is nothing for visitors.
        name = Path(search.name).name if Path(search.name).exists() else search.name
        gr.Markdown(INTRODUCTION.format(title=TITLE, name=name, counts=counts))
        with gr.Row():
            with gr.Column(scale=3, min_width=380):
                text = gr.Textbox(
                    label="Words", placeholder=next(iter(search.phrases()), "what you look for"),
                    submit_btn="Add", visible="text" in search.modalities,
                )  # fmt: skip
                with gr.Row(visible=bool(search.phrases())):
                    examples = [gr.Button(phrase, size="sm", min_width=120) for phrase in search.phrases()]
                drop = gr.File(
                    label=" or ".join(f"a {ONE[kind]}" if kind != "image" else "an image" for kind in media),
                    file_count="multiple", file_types=search.suffixes, height=165, visible=bool(media),
                )  # fmt: skip
                chosen = gr.CheckboxGroup(
                    [], label="Parts", info="Untick one to see the query without it.", visible=False
                )
                table = gr.HTML(apply_default_css=False)
                degrees = gr.Slider(-120, 120, 0, step=1, label="Radius", info="degrees: narrower ← → wider")
                mode = gr.Radio([NEAREST, INSIDE], value=NEAREST, label="Find what is")
                shown = gr.CheckboxGroup(
                    [(MANY[kind], kind) for kind in kinds], label="Show", visible=len(kinds) > 1,
                    value=[kind for kind in kinds if kind != "text"] or kinds,
                )  # fmt: skip
                with gr.Row():
                    search_button = gr.Button("Search", variant="primary")
                    clear_button = gr.Button("Start over")
            with gr.Column(scale=8, min_width=480):
                cards = gr.HTML(EMPTY, apply_default_css=False, js_on_load=ON_LOAD, elem_id="results")

        asked, seen = [parts, chosen, degrees, mode, shown], [table, cards]
        quick: dict[str, Any] = {"show_progress": "hidden"}
        added_to = [parts, chosen]
        text.submit(add_text, [text, *added_to], [text, *added_to]).success(show, asked, seen, **quick)
        for example in examples:
            example.click(add_text, [example, *added_to], [text, *added_to]).success(show, asked, seen, **quick)
        drop.upload(add_files, [drop, *added_to], [drop, *added_to]).success(show, asked, seen, **quick)
        cards.click(add_item, added_to, added_to, **quick).success(show, asked, seen, **quick)
        degrees.change(show, asked, seen, trigger_mode="always_last", **quick)
        for choice in (chosen, mode, shown):
            choice.input(show, asked, seen, trigger_mode="always_last", **quick)
        search_button.click(find, asked, seen, **quick)
        clear_button.click(clear, None, [*added_to, degrees, mode]).success(show, asked, seen, **quick)
    return page


if __name__ == "__main__":
    main(sys.argv[1:])
