"""tinyfcn page without a browser: the file, its policy and size, the command and its errors."""

import base64
import hashlib
import json
import re
import webbrowser
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers.package_copy import ROOT
from helpers.page import ALL_DESIGNS, random_model, random_network
from safetensors.numpy import save

from tinyfcn.cli import main
from tinyfcn.model import Model
from tinyfcn.networks import Design
from tinyfcn.runs import STATE
from tinyfcn.study import page as of_page
from tinyfcn.study.page import DIGIT, FOLDER, MODULES, examples, graph, packed, page, script

MAX_SIZE = 300_000  # bytes of a page for skip
VOID = {"meta", "link", "input", "br"}


class Parts(HTMLParser):
    """The elements of a page: their attributes, the texts of scripts and styles, and whether all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.texts:
            self.texts[self.open[-1]].append(data)


@pytest.fixture(scope="module")
def of_skip() -> str:
    """The page of a network of skip, whose name could break out of any element."""
    return page({'</script><b>"&amp;\udcff\u2028': random_model("skip")}).decode()


@pytest.fixture(scope="module")
def parts(of_skip: str) -> Parts:
    """Its parts."""
    return Parts(of_skip)


def test_a_page_for_skip_is_small(of_skip: str) -> None:
    assert len(of_skip.encode()) <= MAX_SIZE


def test_the_file_is_whole_and_a_name_breaks_nothing(of_skip: str, parts: Parts) -> None:
    assert parts.open == [] and "{{" not in of_skip.replace("{{\\", "")
    assert [tag for tag, _ in parts.attributes].count("b") == 0
    ids = [attributes["id"] for _, attributes in parts.attributes if "id" in attributes]
    assert len(ids) == len({*ids}) and {f"{name}.js" for name in MODULES} <= {*ids}


def test_the_policy_allows_just_the_scripts_that_are_there(parts: Parts) -> None:
    (policy,) = (a["content"] for _, a in parts.attributes if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    allowed = {name: sources for name, *sources in map(str.split, policy.split(";"))}
    assert allowed["default-src"] == ["'none'"] and allowed.keys() >= {"base-uri", "form-action"}
    assert not re.search("unsafe|http|\\*", policy)

    def hashes(texts: list[str]) -> list[str]:
        return [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in texts]

    data, *scripts = parts.texts["script"]
    assert data.startswith("{") and allowed["script-src"] == hashes(scripts)
    assert allowed["style-src"] == hashes(parts.texts["style"])
    for tag, attributes in parts.attributes:
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)


def test_no_address_leads_out_of_the_page(of_skip: str, parts: Parts) -> None:
    for tag, attributes in parts.attributes:
        for name in ("src", "href", "action", "srcset"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), (tag, address)
    text = of_skip.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which nobody fetches
    assert not re.search(r"(https?:)?//\w+\.\w+|@import|url\(|fetch\(|XMLHttp|WebSocket|importScripts|eval\(", text)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_a_script_once_imports_and_exports_are_out(module: str) -> None:
    text = script(module)
    assert not re.search(r"^\s*(import|export)\b", text, re.MULTILINE)
    imported = re.findall(r'from "\./(\w+)\.js"', (FOLDER / f"{module}.js").read_text())
    assert all(MODULES.index(other) < MODULES.index(module) for other in imported), "a module uses one that comes later"


def test_no_two_modules_give_different_things_one_name() -> None:
    """The scripts share one scope."""
    names = [
        name
        for module in MODULES
        for name in re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script(module), re.MULTILINE)
    ]
    assert sorted(names) == sorted({*names}) and len(names) > 60


def test_every_file_of_the_folder_is_used() -> None:
    used = {f"{name}.js" for name in MODULES} | {"style.css", "page.html"}
    assert {path.name for path in FOLDER.iterdir()} == used


@pytest.mark.parametrize("design", ALL_DESIGNS.values(), ids=ALL_DESIGNS)
def test_every_weight_is_found_where_the_graph_says(design: Design) -> None:
    network = random_network(design)
    found = graph(network)
    weights = np.frombuffer(base64.b64decode(found["weights"]), "<f4")
    layers = [layer["weight"] for layer in found["layers"] if "weight" in layer]
    assert {layer["start"] for layer in layers} | {layer["biasStart"] for layer in layers} == {
        int(start) for start in np.cumsum([0] + [value.size for value in network.parameter.values()])[:-1]
    }
    for layer in layers:
        values = weights[layer["start"] : layer["start"] + np.prod(layer["shape"])].reshape(layer["shape"])
        assert any(value.shape == values.shape and (value == values).all() for value in network.parameter.values())


@pytest.mark.parametrize("of_digits", [False, True])
def test_examples_come_back_from_base64(of_digits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[np.ndarray] = []
    monkeypatch.setattr(of_page, "packed", lambda image: (images.append(image), packed(image))[1])
    for text, image in zip(examples(of_digits), images, strict=True):
        data, found = base64.b64decode(text), bytearray()
        place = 0
        while place < len(data):
            is_run = data[place] == 0
            found += bytes(data[place + 1]) if is_run else data[place : place + 1]
            place += 1 + is_run
        assert bytes(found) == image.tobytes() and image.any()
        assert image.shape == (DIGIT if of_digits else (64, 84))


def write_run(folder: Path, model: Model) -> Path:
    """A run folder with the state alone, as one would copy it."""
    folder.mkdir()
    tensors = model.network.numpy_parameters()
    metadata = {"format": "tinyfcn 1", "design": json.dumps(model.design.as_dict())}
    (folder / STATE).write_bytes(save(tensors, metadata))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Run folders."""
    return {name: write_run(tmp_path / name, random_model(name)) for name in ("skip", "early", "classifier")}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["page", *map(str, arguments)])


def test_the_command_writes_a_page_of_one_run_or_two(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "one.html"
    result = invoke(runs["skip"], "-o", out)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"{runs['skip']}: skip, 34,275 parameters\nwritten: {out}, \d+ KB\n", result.output)
    both = invoke(runs["early"], runs["skip"] / STATE, "-o", out)  # replaces its own page
    assert both.exit_code == 0 and '"name":"early"' in out.read_text() and '"name":"skip"' in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["one.html"]


def test_two_runs_of_one_name_are_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = write_run(tmp_path / "other" / "skip", random_model("skip"))
    out = tmp_path / "page.html"
    assert invoke(runs["skip"], twin, "-o", out).exit_code == 0
    assert f'"name":"{twin}"' in out.read_text() and f'"name":"{runs["skip"]}"' in out.read_text()
    same = invoke(runs["skip"], runs["skip"], "-o", out)
    assert same.exit_code == 2 and "the two runs are one and the same" in same.output


@pytest.mark.parametrize("opens", [True, False])
def test_open_opens_the_browser_and_says_so(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: (asked.append(address), opens)[1])
    out = tmp_path / "a page.html"
    result = invoke(runs["classifier"], "-o", out, "--open")
    assert result.exit_code == 0 and asked == [out.as_uri()]
    says = f"opened in the browser: {out.as_uri()}" if opens else f"no browser was found: open {out.as_uri()} yourself"
    assert result.output.splitlines()[-1] == says


def test_bad_input_gets_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    def says(*arguments: object) -> tuple[int, str]:
        result = invoke(*arguments)
        assert isinstance(result.exception, SystemExit)
        return result.exit_code, result.output.splitlines()[-1]

    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "letter.html"
    foreign.write_text("<p>Dear")
    assert says(tmp_path / "nowhere")[0] == 1 and "nowhere" in says(tmp_path / "nowhere")[1]
    code, line = says(tmp_path / "empty", "-o", tmp_path / "x.html")
    assert code == 1 and "empty" in line and not (tmp_path / "x.html").exists()
    why = "is there already, is no page of tinyfcn and is not overwritten: name another file with -o"
    assert says(runs["skip"], "-o", foreign) == (1, f"Error: {foreign} {why}")
    assert foreign.read_text() == "<p>Dear"
    assert says(*runs.values()) == (2, "Error: a page shows one run, or two side by side; 3 are named")
    assert says()[0] == 2
    assert says(runs["skip"], "-o", "/dev/null", "--open") == (2, "Error: --open opens a file, and /dev/null is none")
    assert says(runs["skip"], "-o", tmp_path)[0] == 2
    assert says(runs["skip"], "-o", foreign / "page.html")[0] == 1


def test_the_gallery_is_a_page_of_today() -> None:
    """docs/gallery.html has the scripts that the command writes now: else make it again, as docs/page.md says."""
    text = (ROOT / "docs" / "gallery.html").read_text(encoding="utf-8")
    assert all(script(module) in text for module in MODULES)
