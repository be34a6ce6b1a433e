"""Sends images to a service at a constant rate, and compares every answer; prints one line of JSON.

    python benchmarks/load.py http://127.0.0.1:8000 images/ expected.json --rate 100 --seconds 10

For `benchmarks/serving.py`, in a process of its own: the load generator (locust) replaces Python's sockets. A request
is answered (200), overloaded (503), refused (4xx), failed (5xx) or lost (no answer at all). An answer is wrong if its
class is another one, or its score further than 1e-4 of it from what the detector itself says, which is how far rounding
moves GAIA-Z (a unit that is zero to rounding counts or not); inexact if a bit differs.
Latencies are of those that were answered, from when the request is sent.
"""

import argparse
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant_throughput, task
from locust.env import Environment

CLOSE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("images", type=Path)
    parser.add_argument("expected", type=Path, help="JSON: by the file's name, class and score.")
    parser.add_argument("--rate", type=float, help="Requests a second; without it one after the other.")
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    expected = json.loads(asked.expected.read_text())
    bodies = {name: (asked.images / name).read_bytes() for name in expected}
    names = itertools.cycle(random.Random(0).sample(sorted(bodies), len(bodies)))
    users = 1 if asked.rate is None else max(8, min(256, round(asked.rate)))
    counts = dict.fromkeys(("sent", "answered", "overloaded", "refused", "failed", "lost", "wrong", "inexact"), 0)
    latencies: list[float] = []
    differences = [0.0]
    failures: list[str] = []

    class Sender(FastHttpUser):
        host = asked.url
        wait_time = constant_throughput(1000 if asked.rate is None else asked.rate / users)
        connection_timeout = network_timeout = 60.0
        max_retries = 0

        def on_start(self) -> None:
            if asked.rate is not None:  # not all at the same time
                gevent.sleep(random.random() * users / asked.rate)

        @task
        def score(self) -> None:
            name = next(names)
            counts["sent"] += 1
            start = time.perf_counter()
            with self.client.post("/score", data=bodies[name], catch_response=True) as response:
                seconds, status = time.perf_counter() - start, response.status_code
                response.success()
                kind = {200: "answered", 503: "overloaded", 0: "lost"}.get(status) or (
                    "refused" if status < 500 else "failed"
                )
                counts[kind] += 1
                if kind in ("failed", "refused", "lost"):
                    failures.append(f"{status} {response.error or response.text}")
                if kind != "answered":
                    return
                latencies.append(seconds)
                found: dict[str, Any] = response.json()
            predicted, score = expected[name]
            counts["inexact"] += found["score"] != score
            differences.append(abs(found["score"] - score) / abs(score))
            counts["wrong"] += found["predicted"] != predicted or differences[-1] > CLOSE

    runner = Environment(user_classes=[Sender], stop_timeout=90).create_local_runner()  # what was sent is waited for
    start = time.perf_counter()
    runner.start(users, spawn_rate=10_000)
    gevent.sleep(asked.seconds)
    runner.stop()
    taken = time.perf_counter() - start
    latencies.sort()
    quantiles = {
        f"p{share}": latencies[min(len(latencies) - 1, len(latencies) * share // 100)] for share in (50, 90, 99)
    } if latencies else {}  # fmt: skip
    counts["lost"] += counts["sent"] - sum(
        counts[kind] for kind in ("answered", "overloaded", "refused", "failed", "lost")
    )
    rest = {"largest_difference": max(differences), "failures": failures[:5]}
    print(json.dumps({**counts, **quantiles, "a_second": counts["answered"] / taken, **rest}))


if __name__ == "__main__":
    main()
