"""The HTTP interface over a detector in this process: answers, refusals, overload, probes, metrics, drift."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gaia_fast import Gaia, GaiaZ
from gaia_fast.calibration import decide
from gaia_fast.data import PRESETS, Preset
from gaia_fast.data.digits import held_out_digits, noise_pictures
from gaia_fast.models import digits_resnet
from gaia_fast.serving import decoding, pool, receiving
from gaia_fast.serving.app import make_app
from gaia_fast.serving.errors import ReplicaError
from gaia_fast.serving.pictures import prepared
from gaia_fast.serving.replica import Answer, ImageScores

from served import Client, InProcess, digit, digits_detector, file_of, service_of, serving

LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def digits() -> Iterator[Client]:
    detector = digits_detector()
    with serving(service_of(detector, labels=LABELS, max_bytes=100_000), InProcess(detector)) as client:
        yield client


def quick_detector() -> GaiaZ:
    """One for which nothing is compiled, where what answers does not matter."""
    return digits_detector(engine="hooks")


@pytest.fixture
def held_up() -> Iterator[tuple[Client, InProcess]]:
    """A service whose scorers wait, with room for three images, two of them in a batch."""
    detector = quick_detector()
    scorers = InProcess(detector)
    scorers.gate.clear()
    with serving(service_of(detector, max_images=3, max_batch=2, batches_a_replica=1), scorers) as client:
        yield client, scorers
        scorers.gate.set()


def in_threads(client: Client, bodies: Sequence[bytes]) -> tuple[list[threading.Thread], dict[int, tuple[int, Any]]]:
    """Sends each in a thread of its own; the answers come into the mapping."""
    answers: dict[int, tuple[int, Any]] = {}

    def send(place: int, body: bytes) -> None:
        answers[place] = client.score(body)

    threads = [threading.Thread(target=send, args=each) for each in enumerate(bodies)]
    for thread in threads:
        thread.start()
    return threads, answers


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_class_score_and_decision(digits: Client) -> None:
    detector = digits_detector()
    images = torch.stack(
        [*held_out_digits()[0][300:306], PRESETS["digits"](np.repeat(noise_pictures()[0][..., None], 3, 2))]
    )
    out = detector.score(images)
    files = [*map(digit, range(300, 306)), file_of(noise_pictures()[0])]
    found = [digits.score(each) for each in files]
    assert out.is_ood is not None
    assert len(set(out.is_ood.tolist())) == 2
    for place, (status, answer) in enumerate(found):
        predicted = int(out.logits[place].argmax())
        assert status == 200
        assert answer["score"] == pytest.approx(float(out.score[place]), rel=1e-5)
        assert {key: answer[key] for key in ("predicted", "label", "is_ood")} == {
            "predicted": predicted,
            "label": LABELS[predicted],
            "is_ood": bool(out.is_ood[place]),
        }


def test_several_scores() -> None:
    detector = Gaia(digits_resnet(pretrained=True), scores=("gaia-z", "msp"))
    detector.thresholds = {"gaia-z": 9.0}
    with serving(service_of(detector), InProcess(detector)) as client:
        status, answer = client.score(digit(0))
        _, about = client.get("/about")
        _, drift = client.get("/drift")
    scores = detector.predict(held_out_digits()[0][:1])
    assert status == 200
    assert answer["scores"] == pytest.approx({name: float(score) for name, score in scores.items()}, rel=1e-5)
    assert answer["is_ood"] == {"gaia-z": bool(scores["gaia-z"] > 9.0), "msp": None}
    assert answer["label"] is None
    assert about["scores"]["msp"] == {"threshold": None, "images": None, "quantiles": None}
    assert list(drift) == ["gaia-z"]  # of the other there is nothing to tell


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"", {}, 400, "empty"),
        (b"GIF89a", {}, 415, "no PNG"),
        (digit(0)[:80], {}, 422, "damaged"),
        (b"x" * 100_001, {}, 413, "100000 bytes"),
        (b"x" * 8_000_000, {"Connection": "close"}, 413, "100000 bytes"),
        (digit(0), {"Content_Type": "multipart/form-data; boundary=x"}, 415, "form"),
    ],
    ids=["empty", "gif", "truncated", "long", "longer", "form"],
)
def test_bad_requests_get_a_reason(
    digits: Client, body: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    found, answer = digits.score(body, **headers)
    assert found == status
    assert list(answer) == ["error"]
    assert reason in answer["error"]
    assert digits.score(digit(0))[0] == 200


def test_a_body_whose_length_is_not_said(digits: Client) -> None:
    chunks = (b"x" * 1000 for _ in range(101))
    assert digits.ask("POST", "/score", chunks)[0] == 413
    assert digits.ask("POST", "/score", iter([digit(0)[:50], digit(0)[50:]]))[0] == 200


def test_a_picture_that_does_not_arrive(digits: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "_SECONDS", 0.2)

    def slow() -> Iterator[bytes]:
        yield digit(0)[:50]
        time.sleep(0.6)
        yield digit(0)[50:]

    assert digits.ask("POST", "/score", slow())[0] == 408


def test_a_picture_that_comes_too_slowly(digits: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "_FIRST_SECONDS", 0.3)
    monkeypatch.setattr(receiving, "_RATE", 1000)
    body = file_of(Image.new("RGB", (32, 32)), "BMP")
    assert len(body) > 3000

    def steady(pause: float) -> Iterator[bytes]:
        for start in range(0, len(body), 300):
            yield body[start : start + 300]
            time.sleep(pause)

    # Longer than the first seconds, but at the rate.
    assert digits.ask("POST", "/score", steady(0.05))[0] == 200
    monkeypatch.setattr(receiving, "_RATE", 1_000_000)
    status, _, answer = digits.ask("POST", "/score", steady(0.05))
    assert status == 408
    assert "did not arrive within 0.3" in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/score", 405),
        ("POST", "/", 405),
        ("GET", "/no", 404),
        ("GET", "/page/no.js", 404),
        ("POST", "/score/", 404),
    ],
)
def test_what_is_not_there(digits: Client, method: str, path: str, status: int) -> None:
    found, headers, answer = digits.ask(method, path)
    assert found == status
    assert list(answer) == ["error"]
    assert ("Allow" in headers) == (status == 405)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://{host}"}, 200),
        ({"Origin": "https://{host}"}, 200),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_may_not_send(digits: Client, headers: dict[str, str], status: int) -> None:
    named = {name: value.format(host=f"127.0.0.1:{digits.port}") for name, value in headers.items()}
    found, answer = digits.score(digit(0), **named)
    assert found == status
    assert status == 200 or "this service" in answer["error"]


def test_an_upload_that_there_is_no_room_for_is_not_read(held_up: tuple[Client, InProcess]) -> None:
    client, scorers = held_up
    threads, _ = in_threads(client, [digit(k) for k in range(3)])
    until(lambda: "gaia_fast_images_in_service 3.0" in client.get("/metrics")[1])
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 503")  # and nothing of a body was sent
    # One that sends all before it reads, on a connection that is closed then.
    assert client.score(bytes(5_000_000), Connection="close")[0] == 503
    scorers.gate.set()
    for thread in threads:
        thread.join()


def test_an_upload_has_a_place_and_gives_it_back(held_up: tuple[Client, InProcess]) -> None:
    client, _ = held_up
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n1")
            until(lambda: "gaia_fast_images_in_service 1.0" in client.get("/metrics")[1])
        until(lambda: "gaia_fast_images_in_service 0.0" in client.get("/metrics")[1])
    until(lambda: 'gaia_fast_requests_total{status="400"} 5.0' in client.get("/metrics")[1])


def test_more_images_than_there_is_room_for(held_up: tuple[Client, InProcess]) -> None:
    client, scorers = held_up
    threads, answers = in_threads(client, [digit(k) for k in range(3)])
    until(lambda: "gaia_fast_images_in_service 3.0" in client.get("/metrics")[1])
    status, headers, answer = client.ask("POST", "/score", digit(3))
    assert status == 503
    assert headers["Retry-After"] == "1"
    assert "3 images are in service" in answer["error"]
    # Whatever is held up, the probes answer.
    assert client.get("/healthz")[0] == client.get("/readyz")[0] == 200
    scorers.gate.set()
    for thread in threads:
        thread.join()
    assert [answers[k][0] for k in range(3)] == [200, 200, 200]
    assert scorers.batches == [1, 2]
    assert client.score(digit(3))[0] == 200


def test_an_image_that_nobody_scores_in_time() -> None:
    detector = quick_detector()
    scorers = InProcess(detector)
    scorers.gate.clear()
    with serving(service_of(detector, timeout=0.3, max_images=1), scorers) as client:
        status, answer = client.score(digit(0))
        scorers.gate.set()
        until(lambda: "gaia_fast_images_in_service 0.0" in client.get("/metrics")[1])
        assert client.score(digit(0))[0] == 200
    assert status == 503
    assert "within 0.3 seconds" in answer["error"]


def test_small_pictures_do_not_wait_for_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, decoded = threading.Event(), threading.Event()

    def slow(image: Image.Image, preset: Preset, max_pixels: int) -> np.ndarray:
        if image.width > 32:
            begun.set()
            assert decoded.wait(30)
        return prepared(image, preset, max_pixels)

    monkeypatch.setattr(decoding, "_LARGE", 1024)
    monkeypatch.setattr(decoding, "prepared", slow)
    detector, large = quick_detector(), file_of(Image.new("RGB", (40, 40)))
    with serving(service_of(detector), InProcess(detector)) as client:
        threads, answers = in_threads(client, [large] * 4)
        assert begun.wait(30)
        assert client.score(digit(0))[0] == 200
        assert not answers
        decoded.set()
        for thread in threads:
            thread.join()
        assert [answers[k][0] for k in range(4)] == [200] * 4


def test_large_pictures_do_not_take_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, decoded = threading.Event(), threading.Event()

    def slow(image: Image.Image, preset: Preset, max_pixels: int) -> np.ndarray:
        if image.width > 32:
            begun.set()
            assert decoded.wait(30)
        return prepared(image, preset, max_pixels)

    monkeypatch.setattr(decoding, "_LARGE", 1024)
    monkeypatch.setattr(decoding, "prepared", slow)
    detector, large = quick_detector(), file_of(Image.new("RGB", (40, 40)))
    with serving(service_of(detector, max_images=9), InProcess(detector)) as client:
        threads, answers = in_threads(client, [large])
        assert begun.wait(30)
        status, answer = client.score(large)
        assert status == 503
        assert "1 pictures of more than 1024 pixels wait already" in answer["error"]
        assert client.score(digit(0))[0] == 200
        decoded.set()
        for thread in threads:
            thread.join()
        assert answers[0][0] == 200
        assert client.score(large)[0] == 200


def test_a_place_is_taken_until_its_thread_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = threading.Event()

    def slow(image: Image.Image, preset: Preset, max_pixels: int) -> np.ndarray:
        assert decoded.wait(30)
        return prepared(image, preset, max_pixels)

    monkeypatch.setattr(decoding, "prepared", slow)
    detector = quick_detector()
    scorers = InProcess(detector)
    with serving(service_of(detector, timeout=0.2, max_images=2), scorers) as client:
        assert client.score(digit(0))[0] == 503
        assert client.score(digit(0))[0] == 503
        assert "2 images are in service" in client.score(digit(0))[1]["error"]
        assert "gaia_fast_images_in_service 2.0" in client.get("/metrics")[1]
        decoded.set()
        until(lambda: "gaia_fast_images_in_service 0.0" in client.get("/metrics")[1])
        assert client.score(digit(0))[0] == 200
    assert scorers.batches == [1]  # those that nobody waited for were not scored


def test_a_service_that_decodes_can_end(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended, finished = threading.Event(), threading.Event(), threading.Event()
    in_time: list[bool] = []

    def slow(image: Image.Image, preset: Preset, max_pixels: int) -> np.ndarray:
        begun.set()
        in_time.append(ended.wait(20))
        finished.set()
        return prepared(image, preset, max_pixels)

    monkeypatch.setattr(decoding, "prepared", slow)
    detector = quick_detector()
    with serving(service_of(detector, timeout=0.2), InProcess(detector)) as client:
        assert client.score(digit(0))[0] == 503
        assert begun.is_set()
    ended.set()  # the service has, and its thread has not finished yet
    assert finished.wait(30)
    assert in_time == [True]


def test_replicas_that_fail_are_not_the_requests_fault() -> None:
    class Failing(InProcess):
        async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
            raise ReplicaError("the replica failed: no memory")

    detector = quick_detector()
    with serving(service_of(detector), Failing(detector)) as client:
        assert client.score(digit(0)) == (500, {"error": "the replica failed: no memory"})


def test_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_EVERY", 0.0)
    detector = quick_detector()
    scorers = InProcess(detector)
    with serving(service_of(detector, replicas=2), scorers) as client:
        assert client.get("/healthz")[0] == 200
        assert client.get("/readyz") == (200, {"replicas": 1, "of": 2})
        scorers.ready = 0
        assert client.get("/readyz") == (503, {"replicas": 0, "of": 2})
        assert client.get("/healthz")[0] == 200


def test_a_pool_that_does_not_say_how_many_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Silent(InProcess):
        async def running(self) -> int:
            asked.append(1)
            await asyncio.sleep(30 if self.ready else 0)
            raise RuntimeError("Ray is gone")

    monkeypatch.setattr(pool, "_PATIENCE", 0.05)
    monkeypatch.setattr(pool, "_EVERY", 0.0)
    detector = quick_detector()
    silent, failing = Silent(detector), Silent(detector)
    failing.ready = 0
    for scorers, most in ((silent, 1), (failing, 3)):
        asked.clear()
        with serving(service_of(detector), scorers) as client:
            for _ in range(2):
                assert client.get("/readyz") == (503, {"replicas": 0, "of": 1})
            assert "gaia_fast_replicas_ready 0.0" in client.get("/metrics")[1]
            assert client.get("/healthz")[0] == 200
        assert len(asked) == most


def test_what_nobody_expects_is_an_answer_too() -> None:
    class Broken(InProcess):
        async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
            return []

    detector = quick_detector()
    with serving(service_of(detector), Broken(detector)) as client:
        status, answer = client.score(digit(0))
        text = client.get("/metrics")[1]
    assert status == 500
    assert "ValueError" in answer["error"]
    assert 'gaia_fast_requests_total{status="500"} 1.0' in text
    assert "gaia_fast_images_in_service 0.0" in text


def test_an_answer_that_comes_too_late_is_not_counted() -> None:
    detector = quick_detector()
    scorers = InProcess(detector)
    scorers.gate.clear()
    with serving(service_of(detector, timeout=0.2), scorers) as client:
        assert client.score(digit(0))[0] == 503
        scorers.gate.set()
        assert client.score(digit(0))[0] == 200  # sent again, counted once
        assert client.get("/drift")[1]["gaia-z"]["total"] == 1


@pytest.mark.parametrize("score", [np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(1))])
def test_a_score_that_equals_the_threshold_is_decided_as_by_the_detector(score: np.float32) -> None:
    class Fixed(InProcess):
        async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
            return [ImageScores(0, {"gaia-z": float(score)}) for _ in images]

    detector = quick_detector()
    detector.threshold = 0.1
    expected = bool(decide(torch.tensor([score]), 0.1))
    with serving(service_of(detector), Fixed(detector)) as client:
        status, answer = client.score(digit(0))
        assert status == 200
        assert answer["is_ood"] == expected == (score > np.float32(0.1))
        assert client.get("/drift")[1]["gaia-z"]["ood_share"] == expected


def test_a_server_that_tells_nothing_of_its_begin() -> None:
    """ASGI alone, without the events of its lifespan."""
    detector = quick_detector()
    served = make_app(service_of(detector), InProcess(detector))
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": digit(0), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/score", "headers": [], "query_string": b""}
    asyncio.run(asyncio.wait_for(served(scope, receive, send), 30))
    assert sent[0]["status"] == 200


def test_metrics_and_drift() -> None:
    detector = quick_detector()
    with serving(service_of(detector, max_images=64), InProcess(detector)) as client:
        for k in range(400, 410):
            client.score(digit(k))
        client.score(b"")
        text = client.get("/metrics")[1]
        _, calm = client.get("/drift")
        for picture in noise_pictures()[:60]:
            client.score(file_of(picture))
        noisy = client.get("/metrics")[1]
        _, drift = client.get("/drift")
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['gaia_fast_requests_total{status="200"}'] == "10.0"
    assert lines['gaia_fast_requests_total{status="400"}'] == "1.0"
    assert lines["gaia_fast_request_seconds_count"] == "10.0"
    assert lines["gaia_fast_batch_images_count"] == "10.0"
    assert lines["gaia_fast_replicas_ready"] == "1.0"
    assert lines['gaia_fast_window_images{score="gaia-z"}'] == "10.0"
    quantile = 'gaia_fast_score_quantile{of="calibration",quantile="0.5",score="gaia-z"}'
    assert detector.calibration is not None
    assert float(lines[quantile]) == pytest.approx(float(detector.calibration.quantiles[500]))
    assert not calm["gaia-z"]["drifted"]
    assert 'gaia_fast_drifted{score="gaia-z"} 1.0' in noisy
    assert drift["gaia-z"]["drifted"]
    assert drift["gaia-z"]["total"] == 70
    assert drift["gaia-z"]["ood_share"] > 0.5


def test_about(digits: Client) -> None:
    detector = quick_detector()
    _, about = digits.get("/about")
    assert detector.calibration is not None
    assert about["labels"] == LABELS
    assert about["input_size"] == [32, 32]
    assert about["scores"]["gaia-z"]["threshold"] == detector.threshold
    assert about["scores"]["gaia-z"]["images"] == 300
    assert about["scores"]["gaia-z"]["quantiles"] == detector.calibration.quantiles.tolist()


def test_another_detector_is_seen_by_any_answer(digits: Client) -> None:
    def seen(client: Client) -> str:
        headers = [client.ask("GET", "/drift")[1], client.ask("POST", "/score", digit(0))[1]]
        (found,) = {each["Gaia-Fast-About"] for each in headers}
        assert client.get("/about")[1]["id"] == found
        return str(found)

    detector = quick_detector()
    first = seen(digits)
    assert first == seen(digits)
    detector.threshold = 3.0
    with serving(service_of(detector, labels=LABELS, max_bytes=100_000), InProcess(detector)) as client:
        assert seen(client) != first
