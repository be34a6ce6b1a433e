"""The page in a real browser: Debian's Chromium, on a service that runs in this process."""

import base64
import contextlib
import importlib.resources
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gaia_fast import Gaia, GaiaZ
from gaia_fast.calibration import Calibration
from gaia_fast.data.digits import held_out_digits, held_out_pictures, noise_pictures, prepare
from gaia_fast.models import digits_resnet
from gaia_fast.serving.app import make_app
from gaia_fast.serving.errors import OverloadedError
from gaia_fast.serving.replica import Answer

from served import InProcess, file_of, listening, service_of

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not here")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path (apt install chromium)")

ROOT = Path(__file__).parents[2]
OPTIONS: Any = {"engine": "hooks"}  # nothing is compiled: what the page shows is the same
DIGITS, LABELS = held_out_pictures()
NOISE = noise_pictures()
PHOTOGRAPHS = importlib.resources.files("sklearn.datasets.images")
BROKEN = b"\x89PNG\r\n\x1a\n and no more"


class Scorers(InProcess):
    """Turns away as many images as `full` says, each of them once."""

    full = 0

    async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
        if self.full > 0:
            self.full -= 1
            return [OverloadedError("all places are taken; try again later") for _ in images]
        return await super().score(images)


@contextlib.contextmanager
def serving(detector: Gaia | GaiaZ, scorers: Scorers, **changes: Any) -> Iterator[str]:
    """The address of a service."""
    with listening(make_app(service_of(detector, **changes), scorers)) as port:
        yield f"http://127.0.0.1:{port}/"


def named(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


@pytest.fixture(scope="module")
def detector() -> GaiaZ:
    return GaiaZ(digits_resnet(pretrained=True), **OPTIONS).calibrate(held_out_digits()[0])


@pytest.fixture(scope="module")
def scorers(detector: GaiaZ) -> Scorers:
    return Scorers(detector)


@pytest.fixture(scope="module")
def service(detector: GaiaZ, scorers: Scorers) -> Iterator[str]:
    with serving(detector, scorers) as url:
        yield url


@pytest.fixture
def serve(detector: GaiaZ, scorers: Scorers) -> Iterator[Callable[..., str]]:
    """Starts a service that differs from the others' in what is given; returns its address."""
    with contextlib.ExitStack() as stack:

        def serve(detector: Gaia | GaiaZ = detector, scorers: Scorers = scorers, **changes: Any) -> str:
            return stack.enter_context(serving(detector, scorers, **changes))

        yield serve


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api.expect.set_options(timeout=20_000)  # other tests run beside this
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any, serve: Callable[..., str]) -> Iterator[Callable[..., Any]]:
    """Opens a service's page, and closes it while `serve` still serves. In the end no script failed, nothing was
    complained of but what may be (a pattern), and nothing was asked of anything but the service.
    """
    with contextlib.ExitStack() as stack:

        def visit(url: str, *, complaints: str = "(?!)", **options: Any) -> Any:
            context = stack.enter_context(contextlib.closing(browser.new_context(**options)))
            page = context.new_page()
            wrong: list[str] = []
            asked: list[str] = []

            def dismiss(dialog: Any) -> None:
                wrong.append(f"a dialog opened: {dialog.message}")
                dialog.dismiss()

            page.on("pageerror", lambda error: wrong.append(f"a script raised {error}"))
            page.on("console", lambda said: wrong.append(said.text))
            page.on("dialog", dismiss)
            page.on("request", lambda request: asked.append(request.url))

            def check() -> None:
                assert [each for each in wrong if not re.search(complaints, each)] == []
                assert [each for each in asked if not each.startswith((url, "blob:", "data:"))] == []

            stack.callback(check)
            page.goto(url)
            return page

        yield visit


def choose(page: Any, *files: dict[str, Any]) -> Any:
    """Chooses files by the input; returns their cards, once all are answered."""
    page.set_input_files("#files", list(files))
    return answered(page, len(files))


def choose_more(page: Any, count: int, *files: dict[str, Any]) -> Any:
    """Chooses files by the input; returns the newest card, once so many are answered."""
    page.set_input_files("#files", list(files))
    return answered(page, count).first


def answered(page: Any, count: int) -> Any:
    cards = page.locator(".card:is([data-state=scored], [data-state=failed])")
    sync_api.expect(cards).to_have_count(count)
    return cards


def drag(page: Any, *events: str, files: Sequence[Path]) -> None:
    """Drags files from outside over the page, as a mouse does: events are dragEnter, dragOver, drop."""
    browser = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in files], "dragOperationsMask": 1}
    for event in events:
        browser.send("Input.dispatchDragEvent", {"type": event, "x": 200, "y": 500, "data": data})


PASTE = """({name, content}) => {
    const clipboardData = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    clipboardData.items.add(new File([bytes], name, {type: "image/png"}));
    document.body.dispatchEvent(new ClipboardEvent("paste", {bubbles: true, clipboardData}));
}"""


def expected(detector: GaiaZ, pictures: np.ndarray) -> list[tuple[str, Any, str]]:
    """Class, score and decision of the detector itself."""
    out = detector.score(prepare(pictures))
    assert out.is_ood is not None
    decisions = ["out of distribution" if each else "in distribution" for each in out.is_ood.tolist()]
    classes = [f"class {each}" for each in out.logits.argmax(1).tolist()]
    scores = [pytest.approx(each, rel=1e-5) for each in out.score.tolist()]
    return list(zip(classes, scores, decisions, strict=True))


def shown(card: Any) -> tuple[str, float, str]:
    """Class, score and decision on a card with one score."""
    score = float(card.locator("data").get_attribute("value"))
    assert float(card.locator("data").inner_text()) == pytest.approx(score, rel=1e-3)
    return card.locator(".class").inner_text(), score, card.locator(".decision").inner_text()


def test_dropped_images_are_answered_as_the_detector_does(
    visit: Callable[..., Any], service: str, detector: GaiaZ, tmp_path: Path
) -> None:
    pictures = np.concatenate([DIGITS[:3], NOISE[:2]])
    page = visit(service)
    files = [tmp_path / f"{place}.png" for place in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(file_of(picture))
    drag(page, "dragEnter", "dragOver", files=files)
    sync_api.expect(page.locator("body")).to_have_class("dragging")
    page.dispatch_event("body", "dragleave")
    sync_api.expect(page.locator("body")).to_have_class("")
    drag(page, "dragEnter", "dragOver", "drop", files=files)
    cards = answered(page, len(pictures))
    found = [shown(card) for card in cards.all()]
    assert found == expected(detector, pictures)
    assert {decision for _, _, decision in found} == {"in distribution", "out of distribution"}
    assert cards.locator(".file").all_inner_texts() == [each.name for each in files]
    sync_api.expect(page.locator("body")).to_have_class("")
    # The noise lies right of the threshold, and the digit left of it.
    for card, (_, _, decision) in zip(cards.all(), found, strict=True):
        threshold = card.locator("line.threshold").bounding_box()["x"]
        marker = card.locator(".marker line").bounding_box()["x"]
        assert (marker > threshold) == (decision == "out of distribution")


def test_chosen_and_pasted_images_and_the_newest_on_top(
    visit: Callable[..., Any], service: str, detector: GaiaZ
) -> None:
    page = visit(service)
    chosen = choose(page, named("chosen.png", file_of(DIGITS[5])))
    assert shown(chosen) == expected(detector, DIGITS[5:6])[0]
    page.evaluate(PASTE, {"name": "pasted.png", "content": base64.b64encode(file_of(NOISE[5])).decode()})
    cards = answered(page, 2)
    assert cards.locator(".file").all_inner_texts() == ["pasted.png", "chosen.png"]
    assert shown(cards.first) == expected(detector, NOISE[5:6])[0]
    sync_api.expect(page.get_by_role("status")).to_contain_text("pasted.png: class")
    sync_api.expect(page.locator("#scores")).to_contain_text(
        re.compile(r"gaia-z threshold 10\.\d+, calibrated on 540 images")
    )
    sync_api.expect(page.locator("#scores")).to_contain_text(
        re.compile(r"last hour: \d+ images, .* out of .*, 5\.0\s% expected")
    )
    page.get_by_role("button", name="Clear").click()
    sync_api.expect(page.locator(".card")).to_have_count(0)


def test_a_file_that_is_refused_says_why_and_harms_no_other(
    visit: Callable[..., Any], service: str, detector: GaiaZ
) -> None:
    page = visit(service, complaints="status of 4")  # the browser notes every 4xx
    cards = choose(
        page,
        named("cut-off.png", file_of(DIGITS[1])[:60]),
        named("digit.png", file_of(DIGITS[0])),
        named("empty.png", b""),
    )
    reasons = cards.locator(".reason").all_inner_texts()
    assert "The image cannot be read" in reasons[0]
    assert "The body is empty" in reasons[1]
    assert cards.locator(".decision").all_inner_texts() == ["not scored", "in distribution", "not scored"]
    assert shown(cards.nth(1)) == expected(detector, DIGITS[:1])[0]
    assert page.get_by_role("button", name="Try again").count() == 0


def test_names_of_files_are_text(visit: Callable[..., Any], service: str, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_bytes(file_of(DIGITS[0]))
    (tmp_path / f"no {name}").write_bytes(BROKEN)
    page = visit(service, complaints="status of 4")
    drag(page, "dragEnter", "dragOver", "drop", files=[tmp_path / name, tmp_path / f"no {name}"])
    cards = answered(page, 2)
    assert cards.locator(".file").all_inner_texts() == [name, f"no {name}"]
    sync_api.expect(page.locator("img")).to_have_count(1)  # the thumbnail of that which can be read
    assert page.locator("img").get_attribute("src").startswith("blob:")


def test_a_folder_that_is_dropped(visit: Callable[..., Any], service: str, tmp_path: Path) -> None:
    page = visit(service, complaints="ERR_ACCESS_DENIED|ERR_FILE_NOT_FOUND")
    drag(page, "dragEnter", "dragOver", "drop", files=[tmp_path])
    assert "is it a folder" in answered(page, 1).locator(".reason").inner_text()


def test_several_scores(visit: Callable[..., Any], serve: Callable[..., str]) -> None:
    several = Gaia(digits_resnet(pretrained=True), scores=("gaia-z", "msp", "energy"), **OPTIONS)
    several.calibrate(held_out_digits()[0])
    del several.thresholds["msp"], several.calibrations["energy"]
    labels = [f"<b>{digit}</b>" for digit in range(10)]
    url = serve(several, Scorers(several), labels=labels)
    page = visit(url)
    card = choose(page, named("noise.png", file_of(NOISE[0])))
    out = several.score(prepare(NOISE[:1]))
    assert card.locator(".class").inner_text() == labels[int(out.logits.argmax())]
    found = {
        each.get_attribute("data-score"): (
            float(each.locator("data").get_attribute("value")),
            each.locator(".decision").inner_text(),
        )
        for each in card.locator(".score").all()
    }
    assert list(found) == ["gaia-z", "msp", "energy"]
    for name, (value, decision) in found.items():
        assert value == pytest.approx(out.scores[name].item(), rel=1e-4)
        if name == "msp":
            assert decision == "no threshold"
        else:
            assert decision == ("out of distribution" if out.is_ood[name].item() else "in distribution")
    histograms = card.locator(".score:has(svg.histogram)")
    assert [each.get_attribute("data-score") for each in histograms.all()] == ["gaia-z", "msp"]
    assert "no calibration scores" in card.locator("[data-score=energy] .note").inner_text()
    sync_api.expect(page.locator("#scores")).to_contain_text("no threshold, calibrated on 540 images")


def test_without_calibration_the_score_alone(visit: Callable[..., Any], serve: Callable[..., str]) -> None:
    url = serve(thresholds={"gaia-z": None}, calibrations={})
    page = visit(url)
    card = choose(page, named("digit.png", file_of(DIGITS[0])))
    assert card.locator(".decision").inner_text() == "no threshold"
    assert card.locator("svg.histogram").count() == 0
    assert card.locator(".note").inner_text() == "no calibration scores to compare with"
    sync_api.expect(page.locator("#scores")).to_have_text("gaia-z no threshold, not calibrated")


def test_what_is_off_the_scale_is_at_its_edge(visit: Callable[..., Any], serve: Callable[..., str]) -> None:
    far = Calibration.of(np.linspace(1.0, 2.0, 500), id_tpr=0.95)
    url = serve(thresholds={"gaia-z": 1.95}, calibrations={"gaia-z": far})
    card = choose(visit(url), named("digit.png", file_of(DIGITS[0])))
    picture, marker = (card.locator(each).bounding_box() for each in ("svg.histogram", ".marker path"))
    right = picture["x"] + picture["width"]
    assert right - 20 < marker["x"] + marker["width"] <= right + 5
    assert card.locator(".marker text").text_content() == "this image, off the scale"
    assert card.locator(".note").inner_text() == "above all 500 calibration scores"


def test_drift_is_told(visit: Callable[..., Any], serve: Callable[..., str]) -> None:
    far = Calibration.of(np.linspace(1.0, 2.0, 500), id_tpr=0.95)
    url = serve(thresholds={"gaia-z": 1.95}, calibrations={"gaia-z": far}, window=600.0)
    page = visit(url)
    sync_api.expect(page.locator("#scores li")).to_contain_text("last 10 minutes: 0 images")
    choose(page, *(named("digit.png", file_of(picture)) for picture in DIGITS[:10]))
    told = re.compile(r"last 10 minutes: 10 images, 100\.0\s% out of .*; drifted since \d")
    sync_api.expect(page.locator("#scores li")).to_contain_text(told)
    sync_api.expect(page.locator("#scores li")).to_have_attribute("data-drifted", "true")


def test_when_the_service_is_busy_the_page_asks_again(
    visit: Callable[..., Any], service: str, scorers: Scorers
) -> None:
    page = visit(service, complaints="status of 503")
    page.clock.install()
    scorers.full = 2
    page.set_input_files("#files", [named("patient.png", file_of(DIGITS[0]))])
    for pause in (1, 2):
        sync_api.expect(page.locator(".progress")).to_have_text(f"the service is busy; trying again in {pause} s")
        page.clock.fast_forward(1000 * pause)
    assert answered(page, 1).get_attribute("data-state") == "scored"
    scorers.full = 4
    page.set_input_files("#files", [named("turned away.png", file_of(DIGITS[1]))])
    for pause in (1, 2, 4):
        sync_api.expect(page.locator(".progress")).to_have_text(f"the service is busy; trying again in {pause} s")
        page.clock.fast_forward(1000 * pause)
    card = answered(page, 2).first
    assert "All places are taken" in card.locator(".reason").inner_text()
    assert scorers.full == 0
    card.get_by_role("button", name="Try again").click()
    sync_api.expect(card.locator("data")).to_have_count(1)


def test_a_connection_that_is_lost(visit: Callable[..., Any], service: str) -> None:
    page = visit(service, complaints="net::ERR_")
    choose(page, named("before.png", file_of(DIGITS[0])))
    page.context.set_offline(True)
    page.set_input_files("#files", [named("after.png", file_of(DIGITS[1]))])
    card = answered(page, 2).first
    assert "The service cannot be reached" in card.locator(".reason").inner_text()
    sync_api.expect(page.locator("#service")).to_have_text("the service cannot be reached")
    page.context.set_offline(False)
    card.get_by_role("button", name="Try again").click()
    sync_api.expect(card.locator("data")).to_have_count(1)
    sync_api.expect(page.locator("#service")).to_contain_text("digits_resnet at 32")


def test_a_service_that_was_started_anew_with_another_detector(visit: Callable[..., Any], detector: GaiaZ) -> None:
    other = GaiaZ(detector.model, **OPTIONS).calibrate(held_out_digits()[0][:200])
    other.threshold = 3.0
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        port = first.enter_context(listening(make_app(service_of(detector), Scorers(detector))))
        page = visit(f"http://127.0.0.1:{port}/", complaints="net::ERR_")
        page.clock.install()  # no drift report is asked for meanwhile
        choose(page, named("before.png", file_of(NOISE[0])))
        first.close()
        stack.enter_context(listening(make_app(service_of(other), Scorers(other)), port))
        card = choose_more(page, 2, named("after.png", file_of(NOISE[0])))
        assert card.locator("svg.histogram").count() == 0
        assert card.locator(".note").inner_text() == "threshold 3.000; no calibration scores to compare with"
        sync_api.expect(page.locator("#scores")).to_contain_text("threshold 3.000, not calibrated")


def test_a_large_file_is_not_sent(visit: Callable[..., Any], serve: Callable[..., str]) -> None:
    url = serve(max_bytes=1024)
    page = visit(url)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    card = choose(page, named("large.png", bytes(1025)))
    assert card.locator(".reason").inner_text() == "The file has 2 KiB, and 1 KiB are the limit; take a smaller one"
    assert sent == []


def test_a_phone_needs_no_scrolling_sideways(visit: Callable[..., Any], service: str) -> None:
    page = visit(service, complaints="status of 4", viewport={"width": 320, "height": 640}, color_scheme="dark")
    choose(page, named(f"{'w' * 120}.png", file_of(NOISE[0])), named("broken.png", BROKEN))
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 25)"


def test_by_keyboard_alone(visit: Callable[..., Any], service: str) -> None:
    page = visit(service)
    page.on("filechooser", lambda _: None)  # in place before a key is pressed
    page.keyboard.press("Tab")
    sync_api.expect(page.locator("#files")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([named("digit.png", file_of(DIGITS[0]))])
    answered(page, 1)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".card")).to_have_count(0)
    assert page.evaluate("document.activeElement.id") == "files"


HISTOGRAM = """async ([quantiles, threshold]) => {
    const {histogramOf} = await import("/page/histogram.js");
    return histogramOf(quantiles, threshold);
}"""


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        (np.random.default_rng(0).normal(10, 1, 5000), "quantile"),
        (np.random.default_rng(0).integers(0, 3, 300), "quantile"),  # ties
        (np.append(np.random.default_rng(0).normal(10, 1, 5000), [1e6, -1e6]), "quantile"),  # outliers
        (np.full(100, -1.0), -1.0),  # all the same, and the threshold
        (np.zeros(1), None),
        (np.linspace(0, 1, 10), 50.0),  # a threshold that was not taken from them
        (np.linspace(0, 1, 10), -50.0),
    ],
    ids=["normal", "ties", "outliers", "equal", "zero", "far above", "far below"],
)
def test_the_histogram_counts_every_score_on_its_side_of_the_threshold(
    visit: Callable[..., Any], service: str, scores: np.ndarray, threshold: float | str | None
) -> None:
    calibration = Calibration.of(scores, id_tpr=0.95)
    quantiles = calibration.quantiles.numpy()
    if threshold == "quantile":
        threshold = float(quantiles[950])
    found = visit(service).evaluate(HISTOGRAM, [quantiles.tolist(), threshold])
    bars = found["bars"]
    assert sum(bar["share"] for bar in bars) == pytest.approx(1)
    edges = [bars[0]["from"], *(bar["to"] for bar in bars)]
    assert (found["from"], found["to"]) == (edges[0], edges[-1])
    assert np.all(np.diff(edges) > 0)
    # The bulk fills a good part of the scale; there is room for scores that are larger.
    middle = quantiles[100:901]
    assert edges[0] <= middle[0] <= middle[-1] < edges[-1]
    if threshold is not None:
        assert isinstance(threshold, float)
        out = sum(bar["share"] for bar in bars if bar["isOod"])
        assert out == pytest.approx(np.mean(quantiles[1:] > threshold))
        assert min(abs(np.array(edges) - threshold)) < 1e-9 * max(1, abs(threshold))
    if np.ptp(middle) > 0 and abs(float(threshold or 0)) < 50:
        assert np.ptp(middle) > 0.15 * (edges[-1] - edges[0])


def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_that_stands_in_it(browser: Any, service: str) -> None:
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(service)
        tried = page.evaluate(
            """async () => {
                const blocked = [];
                document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
                const image = "<img src='http://127.0.0.2:9/x.png' onerror='document.title = 1'>";
                document.body.insertAdjacentHTML("beforeend", image);
                await fetch("http://127.0.0.2:9/").catch(() => null);
                await new Promise((resolve) => setTimeout(resolve, 200));
                return {blocked, title: document.title};
            }"""
        )
    assert {"img-src", "connect-src", "script-src-attr"} <= set(tried["blocked"])
    assert tried["title"] == "gaia_fast"


def test_the_picture_of_the_docs(visit: Callable[..., Any], serve: Callable[..., str]) -> None:
    """A digit, a photograph, and half a photograph; GAIA_FAST_WRITE_DOCS=1 takes the picture anew."""
    flower, china = (PHOTOGRAPHS.joinpath(name).read_bytes() for name in ("flower.jpg", "china.jpg"))
    url = serve(model="ResNet on digits")
    page = visit(url, complaints="status of 4", viewport={"width": 1200, "height": 800})
    choose(page, *(named(f"{place}.png", file_of(picture)) for place, picture in enumerate(DIGITS[:40])))
    page.get_by_role("button", name="Clear").click()
    cards = choose(
        page,
        named("three.png", file_of(DIGITS[LABELS == 3][0])),
        named("flower.jpg", flower),
        named("cut-off.jpg", china[: len(china) // 2]),
    )
    assert cards.locator(".class").all_inner_texts()[0] == "class 3"
    decisions = ["in distribution", "out of distribution", "not scored"]
    assert cards.locator(".decision").all_inner_texts() == decisions
    sync_api.expect(page.locator("#scores")).to_contain_text("last hour: 42 images")
    page.mouse.move(0, 0)
    taken = page.screenshot(full_page=True)
    with Image.open(io.BytesIO(taken)) as picture:
        assert picture.width == 1200
    if os.environ.get("GAIA_FAST_WRITE_DOCS"):
        (ROOT / "docs" / "serve.png").write_bytes(taken)
