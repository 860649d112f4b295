"""The demo: what it finds, what it shows, what it says of bad input. The page itself is in test_demo_page.py."""

import math
import re
import shutil
import subprocess
import sys
import types
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from samples import png, wav
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo import app
from demo.media import EDGE, Shelf, thumbnail
from demo.search import Item, Part, Search, apart, mean_apart, open_search, widened
from demo.view import escape, parts_table, results
from modeling_cue import Cone, CUEModel, CUEProcessor, angle, containment_margin, contains
from modeling_cue.media_files import MediaError
from modeling_cue.training.rows import DataError
from modeling_cue.training.scenes import make_scenes
from modeling_cue.training.scenes_render import FRAMES

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("a red circle", "a blue square", "a dog runs")


@pytest.fixture(scope="module")
def text_checkpoint(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    CUEModel.from_encoders(text=names["text"], projection_dim=16).save_pretrained(folder)
    CUEProcessor.from_encoders(text=names["text"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four images of which one is broken, three sounds, two clips and three lines of text."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for number in range(3):
        (folder / f"photo {number}.png").write_bytes(png(rng))
        (folder / f"sound-{number}.wav").write_bytes(wav(rng))
    (folder / "broken.png").write_bytes(png(rng)[:60])
    (folder / "notes.txt").write_text("\n".join(TEXTS))
    for number, row in enumerate(make_scenes("test", 2, modalities=["video"])):
        (folder / f"clip-{number}.avi").write_bytes(row["video"]["bytes"])
    return folder


@pytest.fixture(scope="module")
def search(checkpoint, files):
    return open_search(str(checkpoint), str(files))


@pytest.fixture(scope="module")
def parts(search, files):
    return [search.text("a red circle"), search.file(files / "photo 1.png"), search.file(files / "sound-2.wav")]


# ---------------------------------------------------------------- the collection


def test_a_folder_is_embedded_and_what_is_broken_left_out(search, files, caplog):
    assert {kind: len(found.radius) for kind, found in search.cones.items()} == {
        "text": 3, "image": 3, "audio": 3, "video": 2,
    }  # fmt: skip
    assert search.phrases() == list(TEXTS)
    assert {".png", ".wav", ".mp4"} <= set(search.suffixes)
    assert ".txt" not in search.suffixes


def test_scenes_are_the_default_collection(checkpoint):
    search = open_search(str(checkpoint), "scenes", max_rows=3)
    assert {kind: len(found.radius) for kind, found in search.cones.items()} == {
        "text": 15, "image": 3, "audio": 3, "video": 3,
    }  # fmt: skip
    assert "a red circle" in search.phrases()
    assert Path(app.parse([]).data).name == "scenes"


def test_what_cannot_be_searched_is_said(checkpoint, files, tmp_path):
    with pytest.raises(DataError, match="is empty: it holds no table and no file of"):
        open_search(str(checkpoint), str(tmp_path))
    with pytest.raises(DataError, match="there is no file or folder"):
        open_search(str(checkpoint), str(tmp_path / "nowhere"))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of its 1 rows could be read"):
        open_search(str(checkpoint), str(tmp_path))
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(ValueError, match="is no CUE: give a folder or repo"):
        open_search(str(tmp_path / "bert"), str(files))


# ---------------------------------------------------------------- parts and compounds


def test_a_file_as_a_part_is_the_item_that_it_is(search, files):
    for name, kind, position in (("photo 1.png", "image", 1), ("sound-2.wav", "audio", 2), ("clip-0.avi", "video", 0)):
        part, item = search.file(files / name), search.item(kind, position)
        assert part.kind == item.kind == kind
        assert part.name == item.name == name
        torch.testing.assert_close(part.cone.axis, item.cone.axis, atol=1e-5, rtol=0)
        torch.testing.assert_close(part.cone.radius, item.cone.radius, atol=1e-5, rtol=0)
        assert part.picture.startswith("data:image/jpeg;base64,") is (kind != "audio")


def test_bad_parts_are_refused_by_name_and_reason(search, text_checkpoint, files, tmp_path):
    with pytest.raises(MediaError, match=r"^the image 'broken.png' is no image that can be read, or is cut off"):
        search.file(files / "broken.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(MediaError, match=r"^the image 'bomb.png' .*(too large|over 80,000,000)"):
        search.file(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"'notes.txt' is of no kind that this model takes: give \.jpg"):
        search.file(files / "notes.txt")
    with pytest.raises(ValueError, match="There are no words"):
        search.text("  \n")
    words = open_search(str(text_checkpoint), str(files))
    assert list(words.cones) == ["text"]
    assert words.suffixes == []
    with pytest.raises(ValueError, match="of no kind that this model takes"):
        words.file(files / "photo 1.png")


def test_words_that_the_model_does_not_know_are_noticed(search):
    assert search.knows("a red circle")
    assert not search.knows("a red 円")


def test_a_compound_is_the_models_and_one_part_is_itself(search, parts):
    one = search.compound(parts[:1])
    assert torch.equal(one.axis, parts[0].cone.axis)
    assert torch.equal(one.radius, parts[0].cone.radius)
    with torch.no_grad():
        all_three = search.model.compose(Cone.stack([part.cone for part in parts], dim=1).to(search.model.device))
    found = search.compound(parts)
    torch.testing.assert_close(found.axis, all_three.axis.cpu())
    expected = [math.degrees(float(angle(part.cone.axis, found.axis))) for part in parts]
    assert apart(parts, found) == pytest.approx(expected)
    assert mean_apart(parts[:1], one) == pytest.approx(0, abs=1e-4)


def test_wider_and_narrower_end_at_a_point_and_at_the_whole_sphere():
    cone = Cone(torch.eye(3)[:1], torch.tensor([0.5]), torch.tensor([True]))
    assert torch.equal(widened(cone, 0).radius, cone.radius)
    assert widened(cone, 0).empty is None
    assert float(widened(cone, 10).radius) == pytest.approx(0.5 + math.radians(10))
    assert float(widened(cone, -120).radius) == 0
    assert float(widened(cone, 400).radius) == pytest.approx(math.pi)


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("turn", [-120, -20, 0, 20, 60])
def test_what_is_found_is_what_the_algebra_says(search, parts, turn):
    query = widened(search.compound(parts), turn)
    scale, bias = (number.detach().cpu() for number in search.model.scales()[1:])
    for kind, cones in search.cones.items():
        items = Cone(torch.from_numpy(cones.axis), torch.from_numpy(cones.radius))
        inside = contains(query, items)
        chance = torch.sigmoid(scale * (containment_margin(query, items) + bias))
        order = angle(query.axis, items.axis).argsort(stable=True).tolist()
        found = search.find(query, kind, 2, only_inside=False)
        assert [item.position for item in found.items] == order[:2]
        assert (found.inside, found.total) == (int(inside.sum()), len(inside))
        for item in found.items:
            assert item.score == pytest.approx(float(query.axis[0] @ items.axis[item.position]), abs=1e-5)
            assert item.inside is bool(inside[item.position])
            assert item.probability == pytest.approx(float(chance[item.position]), abs=1e-5)
        within = search.find(query, kind, 2, only_inside=True)
        assert [item.position for item in within.items] == [at for at in order if inside[at]][:2]
        assert all(item.inside for item in within.items)


def test_a_text_of_the_collection_contains_itself_whatever_it_was_embedded_with(search):
    for at, caption in enumerate(search.cones["text"].texts):
        query = search.text(caption).cone
        cone = Cone(query.axis, query.radius - 1e-6)  # as rounding may have it
        (own,) = (item for item in search.find(cone, "text", 99, only_inside=False).items if item.position == at)
        assert own.inside


def test_items_are_called_by_their_captions_and_ids(search):
    query = search.text("a dog runs").cone
    (text,) = search.find(query, "text", 1, only_inside=False).items
    assert (text.caption, text.title) == ("a dog runs", "notes.txt")
    assert {item.title for item in search.find(query, "video", 9, only_inside=False).items} == {
        "clip-0.avi", "clip-1.avi",
    }  # fmt: skip


# ---------------------------------------------------------------- what is shown


def test_media_are_shown_as_browsers_can(search, tmp_path):
    shelf = Shelf(tmp_path)
    with Image.open(shelf.file("image-0", "image", search.medium("image", 0))) as picture:
        assert max(picture.size) == EDGE // 40 * 40  # 40 x 36 grown by a whole factor
    sound = search.medium("audio", 0)
    assert shelf.file("audio-0", "audio", sound) == Path(sound["path"])
    as_bytes = {"bytes": Path(sound["path"]).read_bytes(), "path": None}
    converted = shelf.file("audio-1", "audio", as_bytes)
    assert soundfile.info(converted).duration == pytest.approx(soundfile.info(sound["path"]).duration, abs=0.01)
    with Image.open(shelf.file("video-0", "video", search.medium("video", 0))) as clip:
        assert clip.n_frames >= FRAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio-1.wav", "image-0.jpg", "video-0.webp"]
    assert shelf.file("video-0", "video", {"bytes": b"", "path": None}).name == "video-0.webp"  # made once
    assert shelf.file("image-9", "image", {"bytes": b"nothing", "path": None}) is None
    assert shelf.file("audio-9", "audio", {"bytes": None, "path": str(tmp_path / "gone.wav")}) is None


def test_a_large_picture_is_shrunk(tmp_path):
    Image.new("RGB", (900, 600), "red").save(tmp_path / "red.png")
    value = {"bytes": None, "path": str(tmp_path / "red.png")}
    with Image.open(Shelf(tmp_path).file("red", "image", value)) as shown:
        assert shown.size == (320, 213)
    assert len(thumbnail("image", value)) < 3000


def test_only_files_that_are_played_are_served(search, files):
    assert sorted(app.played(search)) == [str(files / f"sound-{number}.wav") for number in range(3)]


def test_text_of_the_data_is_text_on_the_page():
    assert escape("<b> {{x}} ${1} \"'") == "&lt;b&gt; &#123;&#123;x&#125;&#125; &#36;&#123;1&#125; &quot;&#x27;"
    hostile = "<img src=x onerror=alert(1)> {{value}}"
    part = Part("text", hostile, Cone(torch.eye(3)[:1], torch.tensor([0.5])))
    shown = parts_table([part], part.cone, part.cone, 0.01)
    item = Item("image", 0, hostile, hostile, 0.5, True, 0.5)
    shown += results([types.SimpleNamespace(kind="image", items=[item], inside=1, total=1)], False, lambda _: None)
    assert "<img" not in shown
    assert "{{" not in shown
    assert "cannot be shown" in shown


def test_the_table_tells_of_parts_and_compound(search, parts):
    compound = search.compound(parts)
    shown = parts_table(parts, compound, widened(compound, 30), search.model.config.min_radius)
    for part in parts:
        assert f"{math.degrees(float(part.cone.radius)):.1f}°" in shown
    for away in (*apart(parts, compound), mean_apart(parts, compound)):
        assert f"{away:.1f}°" in shown
    radius = math.degrees(float(compound.radius))
    assert f"{radius:.1f}° → {radius + 30:.1f}°" in shown
    alone = parts_table(parts[:1], parts[0].cone, parts[0].cone, 0.01)
    assert "→" not in alone
    assert "mean of the axes" not in alone


def test_the_table_says_when_nothing_is_inside_all_parts():
    axes = torch.eye(3)
    two = [
        Part("text", "this", Cone(axes[:1], torch.tensor([0.1]))),
        Part("text", "that", Cone(axes[1:2], torch.ones(1))),
    ]
    far = Cone(axes[2:], torch.tensor([0.01]), torch.tensor([True]))
    assert "Some of these parts lie apart" in parts_table(two, far, far, 0.01)
    least = Cone(axes[2:], torch.tensor([0.01]), torch.tensor([False]))
    assert "its radius is the least" in parts_table(two, least, least, 0.01)


def test_the_cards_tell_score_and_containment(search, parts, tmp_path):
    shelf = Shelf(tmp_path)
    query = widened(search.compound(parts), 60)
    found = [search.find(query, kind, 2, only_inside=False) for kind in search.cones]
    shown = results(
        found, False, lambda i: shelf.file(f"{i.kind}-{i.position}", i.kind, search.medium(i.kind, i.position))
    )
    assert shown.count("cue-card") == 8
    for kind in found:
        assert f"{kind.inside} of {kind.total} inside" in shown
        for item in kind.items:
            assert f"score {item.score:.3f}" in shown
            assert f'data-item="{item.kind} {item.position}"' in shown
    assert shown.count("<audio controls") == 2
    assert shown.count("<img") == 4  # clips that no browser plays among them
    nothing = search.find(widened(query, -180), "image", 2, only_inside=True)
    assert "None: try a wider radius" in results([nothing], True, lambda _: None)


# ---------------------------------------------------------------- how it starts


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r'pip install -e "\.\[demo\]"'):
        app.main(["anything"])


def test_it_ends_with_a_reason_where_there_is_nothing_to_search(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    with pytest.raises(SystemExit, match=r"^demo: there is no file or folder"):
        app.main([str(checkpoint), "--data", str(tmp_path / "nowhere")])


def test_the_demo_model_is_trained_once(monkeypatch, tmp_path, capsys):
    import run_contrastive

    calls = []
    monkeypatch.setattr(run_contrastive, "main", calls.append)
    monkeypatch.chdir(tmp_path)
    assert app.demo_model() == str(Path("runs/demo"))
    assert calls == [[]]
    assert "about five minutes" in capsys.readouterr().out
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/model.safetensors").touch()
    app.demo_model()
    assert calls == [[]]


def test_the_variables_of_a_space_name_model_and_data(monkeypatch):
    monkeypatch.setenv("CUE_MODEL", "org/cue")
    monkeypatch.setenv("CUE_DATA", "org/data")
    options = app.parse([])
    assert (options.model, options.data, options.host, options.share) == ("org/cue", "org/data", None, False)
    assert app.parse(["mine", "--data", "photos"]).model == "mine"


def test_a_space_has_what_it_needs(tmp_path):
    """The files that the page on Spaces uploads start by themselves, with the packages that it names."""
    page = (ROOT / "demo" / "README.md").read_text()
    settings = yaml.safe_load(page.split("---")[1])
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"].split() + setup["options.extras_require"]["demo"].split()
    assert (ROOT / "demo" / "requirements.txt").read_text().split() == needed
    assert f"gradio>={settings['sdk_version'].removesuffix('.0')}" in needed
    patterns = re.findall(r'--include "(.*?)"', page)
    listed = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    for name in filter_repo_objects(listed, allow_patterns=patterns):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for command in ([settings["app_file"], "--help"], ["-c", "import run_contrastive as r; open(r.DEMO); print(r)"]):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert str(tmp_path) in done.stdout


def test_a_search_needs_something_to_search(search):
    with pytest.raises(DataError, match="none of its 0 rows could be read"):
        Search(search.model, search.processor, "nothing", [], {})
