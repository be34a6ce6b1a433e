"""The folder of parts: what is taken from an earlier run, and what is not."""

from pathlib import Path

import pytest

from gaia_fast.batch_scoring.chunks import Chunk, Part
from gaia_fast.batch_scoring.parts import PROGRAMS, parts_of
from gaia_fast.batch_scoring.request import Request
from gaia_fast.errors import ArgumentError
from gaia_fast.inspection.fingerprint import Fingerprint
from gaia_fast.models import digits_resnet

MODEL = Fingerprint.of(digits_resnet())


def request(method: str = "gaia-z") -> Request:
    return Request({"--method": method}, {"IMAGES": "0"}, MODEL, "", 4, 2)


def part(score: float) -> Part:
    return Part([{"image": str(each), "score": score} for each in range(2)])


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a run has left: one part of two, and a program."""
    with parts_of(tmp_path / "rows.csv", request(), resume=False) as (folder, earlier):
        assert not earlier
        folder.keep({})
        folder.write(Chunk(0, 2), part(1.0))
        (folder.path / PROGRAMS).mkdir()
        (folder.path / PROGRAMS / "program").write_text("")
    return folder.path


def missing(left: Path, asked: Request, resume: bool) -> list[Chunk]:
    with parts_of(left.with_suffix(""), asked, resume) as (folder, _):
        return folder.missing


def test_parts_of_the_same_request_are_gone_on_with(left: Path) -> None:
    assert missing(left, request(), resume=True) == [Chunk(2, 4)]


def test_parts_of_another_request_are_refused(left: Path) -> None:
    with pytest.raises(ArgumentError, match="holds the rows of another run"):
        missing(left, request("gaia-a"), resume=True)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("asked", [request(), request("gaia-a")], ids=["same", "other"])
def test_parts_without_a_manifest_are_nobodys(left: Path, asked: Request, resume: bool) -> None:
    (left / "manifest.json").unlink()
    assert missing(left, asked, resume) == [Chunk(0, 2), Chunk(2, 4)]
    assert [each.name for each in left.iterdir()] == ["lock"]


@pytest.mark.parametrize("deletions", range(3))
def test_a_removal_that_is_killed_leaves_no_part_without_its_manifest(
    left: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    right = Path.unlink
    counted: list[Path] = []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if len(counted) == deletions:
            raise KeyboardInterrupt
        counted.append(self)
        right(self, missing_ok)

    with parts_of(left.with_suffix(""), request(), resume=True) as (folder, _):
        folder.write(Chunk(2, 4), part(2.0))
        monkeypatch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            folder.remove()
        monkeypatch.undo()
    assert (left / "manifest.json").exists()
    assert (left / "lock").exists()
    with pytest.raises(ArgumentError, match="another run"):
        missing(left, request("gaia-a"), resume=True)


def test_a_run_that_begins_while_another_is_removed_is_left_alone(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds a lock of its own as soon as the other's is gone."""
    right = Path.rmdir

    def rmdir(self: Path) -> None:
        (left / "lock").write_text("")
        right(self)

    with parts_of(left.with_suffix(""), request(), resume=True) as (folder, _):
        monkeypatch.setattr(Path, "rmdir", rmdir)
        folder.remove()
    assert [each.name for each in left.iterdir()] == ["lock"]


def test_what_is_somebody_elses_stays(left: Path) -> None:
    (left / "notes.txt").write_text("mine")
    with parts_of(left.with_suffix(""), request(), resume=False) as (folder, earlier):
        assert earlier
        folder.remove()
    assert [each.name for each in left.iterdir()] == ["notes.txt"]
