"""`gaia-fast score --ray`, with workers and the command itself killed."""

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from gaia_fast.data.digits import held_out_pictures

from command_line import CHUNK, SLOW, parts_in, ray_workers, start, wait_for_parts

IMAGES = 10 * CHUNK - 3
ASKED = ("--preset", "digits", "--batch-size", 2, "--engine", "hooks")


def kill_a_worker(process: subprocess.Popen[str]) -> None:
    victim = ray_workers(process)[0]
    os.kill(victim, signal.SIGKILL)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "a minute has passed"
        time.sleep(0.05)


def test_whoever_is_killed_every_row_is_there_once(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr("gaia_fast.batch_scoring.chunks.IMAGES_IN_A_CHUNK", CHUNK)
    np.savez(tmp_path / "many.npz", x=np.repeat(held_out_pictures()[0][:IMAGES, ..., None], 3, axis=3))
    (tmp_path / "slow.py").write_text(SLOW)  # in the current folder, of which the workers must know
    images, whole = tmp_path / "many.npz", tmp_path / "whole.csv"
    assert run("score", images, "--arch", "digits_resnet", *ASKED, "--out", whole).exit_code == 0

    command = ("score", images, "--model", "slow:make", *ASKED, "--out", "rows.csv", "--ray", "--workers", "2")
    parts = tmp_path / "rows.csv.partial"
    process = start(*command, cwd=tmp_path)
    wait_for_parts(parts, 2, process)
    workers = ray_workers(process)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    done = parts_in(parts)
    assert 2 <= len(done) < 10
    wait_until(
        lambda: (
            not any(
                Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers
            )
        )
    )

    process = start(*command, "--resume", cwd=tmp_path)
    wait_for_parts(parts, len(done) + 1, process)
    kill_a_worker(process)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert out == ""  # where Ray says by itself that a worker has died
    assert f"resuming: the rows of {len(done) * CHUNK} of {IMAGES} images" in said
    assert "Ray of this process's own: 2 workers" in said
    with open(tmp_path / "rows.csv") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(index) for index in range(IMAGES)]
    assert (tmp_path / "rows.csv").read_bytes() == whole.read_bytes()
    assert not parts.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray",), "it needs --out"),
        (("--workers", "2", "--out", "rows.csv"), "it needs --ray"),
        (("--ray", "pictures/", "--out", "rows.csv"), "put IMAGES before --ray"),
        (("--ray", "ray://host:10001", "--out", "rows.csv"), "no HOST:PORT"),
    ],
    ids=str,
)
def test_wrong_usage_of_ray(
    run: Callable[..., Result], digits_npz: Path, options: tuple[str, ...], message: str
) -> None:
    found = run("score", digits_npz, "--arch", "digits_resnet", *options)
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.replace("│", " ").split())


def test_ray_that_is_not_installed(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    found = run("score", digits_npz, "--arch", "digits_resnet", "--out", "rows.csv", "--ray")
    assert found.exit_code == 1
    assert "pip install 'gaia-fast[ray]'" in found.stderr
    assert not list(Path().iterdir())
