"""Sends images to a service at random times (Poisson) and compares every answer; prints one line of JSON.

    python benchmarks/load.py http://127.0.0.1:8000 images/ expected.json --rate 100 --seconds 10

For `benchmarks/service_under_load.py`, in a process of its own: the load generator (locust) replaces Python's
sockets. A request is answered (200), overloaded (503), refused (4xx), failed (5xx) or lost (no answer at all). An
answer is wrong if its class is another one, or its score further than 1e-4 of it from what the detector itself says,
which is how far rounding moves GAIA-Z (a unit that is zero to rounding counts or not); inexact if a bit differs.
Latencies are of those that were answered, from the time at which the request was to be sent.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, task
from locust.env import Environment
from locust.exception import StopUser

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
    # As many as can wait for an answer at one time.
    users = 1 if asked.rate is None else max(16, min(512, round(2 * asked.rate)))
    begin = time.perf_counter() + 0.5

    def times() -> Iterator[float]:
        """When requests are to be sent; at once, where there is no rate."""
        draws, due = random.Random(1), begin
        while due < begin + asked.seconds:
            yield due
            due = max(due, time.perf_counter()) if asked.rate is None else due + draws.expovariate(asked.rate)

    due_times = times()
    counts = dict.fromkeys(("sent", "answered", "overloaded", "refused", "failed", "lost", "wrong", "inexact"), 0)
    latencies: list[float] = []
    differences = [0.0]
    failures: list[str] = []

    class Sender(FastHttpUser):  # type: ignore[misc, unused-ignore]
        host = asked.url
        connection_timeout = network_timeout = 60.0
        max_retries = 0

        @task  # type: ignore[untyped-decorator, unused-ignore]
        def score(self) -> None:
            due = next(due_times, None)
            if due is None:
                raise StopUser
            gevent.sleep(max(0.0, due - time.perf_counter()))
            name = next(names)
            counts["sent"] += 1
            with self.client.post("/score", data=bodies[name], catch_response=True) as response:
                seconds, status = time.perf_counter() - due, response.status_code
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

    runner = Environment(user_classes=[Sender]).create_local_runner()
    runner.start(users, spawn_rate=10_000)
    gevent.sleep(asked.seconds)
    while runner.user_count and time.perf_counter() < begin + asked.seconds + 90:  # what was sent is waited for
        gevent.sleep(0.05)
    taken = time.perf_counter() - begin
    runner.stop()
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
