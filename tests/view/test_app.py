"""`hlnet app` in a real browser, and what its server refuses. Nothing may be asked of another machine."""

import http.client
import importlib.util
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
from helpers.command_line import failing  # noqa: F401
from helpers.random_nets import TREE, build, plain
from PIL import Image

from hlnet.errors import UsageError
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
from hlnet.tree.class_tree import ClassTree
from hlnet.view.app import NAMES, app_page, create_app, serve
from hlnet.view.live import LiveNet, Question

for package in ("starlette", "uvicorn"):
    if not importlib.util.find_spec(package):
        pytest.skip(f"the extra 'app' is not installed: no {package}", allow_module_level=True)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def photo(seed=0):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("app") / "pets.safetensors"
    save_checkpoint(build(), path)
    return path


@pytest.fixture(scope="module")
def address(model):
    """The command, running; at the end it is interrupted and must go in good order."""
    command = [sys.executable, "-m", "hlnet", "app", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            found = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", found), process.stderr.read()
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not out and err.strip() == "the page is there until Ctrl-C"


@pytest.fixture
def at(tmp_path):
    save_checkpoint(plain(), tmp_path / "plain.safetensors")
    return {"plain": tmp_path / "plain.safetensors"}


@pytest.fixture(scope="module")
def live(model):
    return LiveNet(load_checkpoint(model))


def send(address, path, body=None, method="POST", **headers):
    """One request; status, content type and content."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    return reply.status, reply.headers.get("content-type"), reply.read()


# ---------------------------------------------------------------------- server


def test_requests_are_answered(address, live):
    status, kind, content = send(address, "/", method="GET")
    assert (status, kind) == (200, "text/html; charset=utf-8") and content.decode() == app_page(live, "hlnet: pets")
    status, kind, content = send(address, "/see", photo(), content_type="application/octet-stream")
    seen = json.loads(content)
    assert (status, kind, seen) == (200, "application/json", live.see(photo()).model_dump())
    question = Question(image=seen["image"], cues=["cat"], reliability=0.9, cut=["saw"])
    status, _, content = send(address, "/answer", question.model_dump_json(), content_type="application/json")
    expected = live.answer(question)
    assert status == 200
    for found, choice in zip(json.loads(content)["choices"], expected.choices, strict=True):
        assert found["name"] == choice.name and found["probability"] == pytest.approx(choice.probability, abs=1e-5)
    assert json.loads(content)["now"] == expected.now.model_dump(mode="json")


def test_the_page_is_for_no_other_page(address):
    """It cannot be framed, based elsewhere or made to send forms."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", "/")
    headers = connection.getresponse().headers
    assert headers["x-content-type-options"] == "nosniff"
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} == {
        *headers["content-security-policy"].split("; ")
    }


OCTETS, JSON = {"content_type": "application/octet-stream"}, {"content_type": "application/json"}


@pytest.mark.parametrize(
    "path, body, headers, status, said",
    [
        ("/see", b"no image", OCTETS, 400, "not an image"),
        ("/see", photo(), {"content_type": "text/plain"}, 415, "expected application/octet-stream"),
        ("/see", photo(), {}, 415, "expected application/octet-stream"),
        ("/answer", b"{}", {"content_type": "text/plain"}, 415, "expected application/json"),
        ("/answer", b"{", JSON, 400, "not understood"),
        ("/answer", b'{"image": "x", "more": 1}', JSON, 400, "not understood"),
        ("/answer", b'{"image": "x"}', JSON, 410, "not in memory any more"),
        ("/see", photo(), OCTETS | {"host": "example.org"}, 400, "Invalid host header"),
        ("/nothing", b"", OCTETS, 404, "Not Found"),
    ],
    ids=["no image", "form", "no kind", "text", "no JSON", "field", "forgotten", "other host", "no page"],
)
def test_what_is_no_request_is_refused(address, path, body, headers, status, said):
    found, _, content = send(address, path, body, **headers)
    assert found == status and said in content.decode() and b"Traceback" not in content


def test_files_that_are_too_large_are_refused(address, monkeypatch):
    status, _, content = send(address, "/see", bytes(65 * 2**20), **OCTETS)
    assert status == 400 and json.loads(content) == {"error": "the file is larger than 64 MB"}


def test_a_taken_port_is_named(address, live):
    taken = urlsplit(address).port
    with pytest.raises(UsageError, match=rf"port {taken} cannot be used .*another one, or 0 for any free port"):
        serve(create_app(live), taken)


def test_plain_networks_have_no_page(failing, at):  # noqa: F811
    code, out, err = failing("app {plain}")
    assert code == 2 and not out and err.startswith("hlnet: a plain network has no branches")


def test_missing_packages_are_named(monkeypatch, live):
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(UsageError, match=r"needs the package starlette: pip install 'hlnet\[app\]'"):
        create_app(live)


def test_page_escapes_names_and_needs_nothing():
    page = app_page(LiveNet(build(tree=ClassTree.from_nested({"<b>x": ["<i>y", '"z']}))), "<u>")
    assert "<b>x" not in page and "<i>y" not in page and "<u>" not in page and "&lt;b&gt;x" in page
    assert 'data-path="&lt;b&gt;x/&#34;z"' in page
    assert not re.search(r"https?:|src=\"[^d]|<link(?! rel=\"icon\" href=\"data:,\")|@import|url\(", page)
    assert NAMES == ["127.0.0.1", "localhost"]


# ---------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, tmp_path):
    """The page with an image on it; no request may leave loopback, and nothing may go wrong in it."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(30_000)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    refused = re.compile(
        r"Failed to load resource: the server responded with a status of 4(00|10) "
    )  # told on the page
    page.goto(address)
    (tmp_path / "photo.png").write_bytes(photo())
    with page.expect_response("**/answer"):
        page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("#choices tr")
    yield page
    page.close()
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert not [message for message in wrong if not refused.match(message)]


def press(page, *selectors):
    for selector in selectors:
        with page.expect_response("**/answer"):
            page.click(selector)


def rows(page):
    """The table of answers: class -> its four figures."""
    found = {}
    for row in page.query_selector_all("#choices tr"):
        name = row.query_selector("td span").inner_text()
        found[name] = [cell.inner_text() for cell in row.query_selector_all("td.number")]
    return found


def cost(page):
    return {
        row.query_selector("th").inner_text(): [cell.inner_text() for cell in row.query_selector_all("td")]
        for row in page.query_selector_all("#cost tr")
    }


def shown(page):
    return {figure.get_attribute("data-path"): figure for figure in page.query_selector_all("#maps figure")}


def agree(page, answer, patience=100):
    """The page tells what the library says, once what came is shown."""
    for _ in range(patience):
        try:
            return same(page, answer)
        except (AssertionError, playwright_error()):  # the table was being made anew
            page.wait_for_timeout(100)
    return same(page, answer)


def playwright_error():
    from playwright.sync_api import Error

    return Error


def same(page, answer):
    found = rows(page)
    assert list(found) == [choice.name for choice in answer.choices]
    for choice in answer.choices:
        before, now, logit, logit_now = found[choice.name]
        assert before == f"{100 * choice.probability:.1f} %" and logit == f"{choice.logit:.2f}"
        if choice.probability_now is None:
            assert (now, logit_now) == ("–", "–")
        else:
            assert now == f"{100 * choice.probability_now:.1f} %" and logit_now == f"{choice.logit_now:.2f}"
    table = cost(page)
    assert table["classes"][:2] == [str(answer.full.classes), str(answer.now.classes)]
    assert table["GMACs"][:2] == [f"{answer.full.gmacs:.3f}", f"{answer.now.gmacs:.3f}"]
    assert table["nodes per level"][1] == ", ".join(map(str, answer.now.nodes))
    assert list(shown(page)) == [found.path for found in answer.maps]
    for found in answer.maps:
        pictures = [image.get_attribute("src") for image in shown(page)[found.path].query_selector_all("img")]
        assert pictures == [uri for uri in (found.before, found.after) if uri is not None]


def test_cues_cuts_and_looks_change_the_page(page, live):
    image = live.see(photo()).image
    agree(page, live.answer(Question(image=image, reliability=0.9)))
    assert page.get_attribute("#picture", "src") == live.see(photo()).picture and page.is_visible("#picture")

    press(page, "[aria-label='cue cat']")
    question = Question(image=image, cues=["cat"], reliability=0.9)
    agree(page, live.answer(question))
    assert page.get_attribute("[aria-label='cue cat']", "aria-pressed") == "true"

    press(page, "[aria-label='cut dog/boxer']", "li[data-path='saw'] .name")
    agree(page, live.answer(question.model_copy(update={"cut": ["dog/boxer"], "looked_at": ["saw"]})))
    assert cost(page)["parameters, M"][2].startswith("-") and "saw" in shown(page)

    press(page, "#reset")
    agree(page, live.answer(Question(image=image, reliability=0.9)))
    assert not page.query_selector_all("[aria-pressed=true]")


def test_a_gain_changes_maps(page, live):
    press(page, "[aria-label='cue saw']")
    with page.expect_response("**/answer"):
        page.select_option("#mode", "gain")
    with page.expect_response("**/answer"):
        page.fill("#strength", "5")
    question = Question(image=live.see(photo()).image, cues=["saw"], mode="gain", strength=5)
    agree(page, live.answer(question))
    assert len(shown(page)["saw"].query_selector_all("img")) == 2 and page.inner_text("#strength-told") == "5"
    assert page.is_visible("#strong") and page.is_hidden("#reliable")


def test_cutting_all_is_explained(page):
    press(page, "[aria-label='cut cat']", "[aria-label='cut dog']", "[aria-label='cut saw']")
    page.wait_for_selector("#told:has-text('every class is cut away')")
    press(page, "[aria-label='cut dog']")
    page.wait_for_function("document.querySelector('#told').textContent === ''")
    assert cost(page)["classes"][1] == "2"


def test_an_image_can_be_dropped_and_nonsense_too(page, live):
    drop = """content => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(content)], "x"));
      document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(drop, list(photo(7)))
    agree(page, live.answer(Question(image=live.see(photo(7)).image, reliability=0.9)))
    page.evaluate(drop, list(b"no image"))
    page.wait_for_selector("#told:has-text('not an image')")


def test_a_forgotten_image_is_sent_again(page, address, live):
    for seed in range(100, 108):
        assert send(address, "/see", photo(seed), **OCTETS)[0] == 200
    with page.expect_response(lambda reply: reply.url.endswith("/answer") and reply.ok):
        page.click("[aria-label='cue cat']")
    agree(page, live.answer(Question(image=live.see(photo()).image, cues=["cat"], reliability=0.9)))


def test_the_tree_is_searched(page):
    page.fill("#query", "box")
    visible = [item.get_attribute("data-path") for item in page.query_selector_all("#tree li") if item.is_visible()]
    assert visible == ["dog", "dog/boxer"]
    page.fill("#query", "")
    assert all(item.is_visible() for item in page.query_selector_all("#tree li"))  # unfolded as before
    assert len(page.query_selector_all("#tree li")) == len({node.path for row in TREE.levels for node in row})


@pytest.mark.parametrize("width", [360, 375, 412])
def test_nothing_is_cut_off_on_a_phone(page, width):
    press(page, "[aria-label='cue cat']", "[aria-label='cut dog/boxer']")
    page.set_viewport_size({"width": width, "height": 800})
    cells = page.query_selector_all("th, td, label, figure, .panel, #drop, button")
    places = [cell.bounding_box() for cell in cells if cell.is_visible()]
    assert len(places) > 30 and all(place["x"] >= 0 and place["x"] + place["width"] <= width for place in places)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = "[...document.querySelectorAll('.panel')].filter(panel => panel.scrollWidth > panel.clientWidth).length"
    assert page.evaluate(cut) == 0
