import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import gaia_fast
from gaia_fast.errors import ArgumentError
from gaia_fast.files import held, kind, new_folder, replacing, target, write_text

pytestmark = pytest.mark.usefixtures("deadline")


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as written:
        assert written.name == "a.txt"
        with written.open("w") as file:
            file.write("half")
            file.flush()
            assert not (tmp_path / "a.txt").exists()
            file.write(" and half")
    assert (tmp_path / "a.txt").read_text() == "half and half"
    assert os.listdir(tmp_path) == ["a.txt"]


def fails_half_way(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as written:
        written.write_text("half")
        written.with_name("beside.data").write_text("weights")
        raise error


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("there", [True, False])
def test_what_goes_wrong_leaves_all_as_it_was(tmp_path: Path, error: type[BaseException], there: bool) -> None:
    if there:
        (tmp_path / "a.txt").write_text("good")
    before = os.listdir(tmp_path)
    with pytest.raises(error):
        fails_half_way(tmp_path / "a.txt", error)
    assert os.listdir(tmp_path) == before
    assert not there or (tmp_path / "a.txt").read_text() == "good"


def test_a_writer_that_writes_nothing_leaves_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good")
    with pytest.raises(ArgumentError, match=r"a\.txt cannot be written"), replacing(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "good"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "x")
        (tmp_path / "old").write_text("y")
        (tmp_path / "old").chmod(0o604)
        write_text(tmp_path / "old", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target").write_text("good")
    (tmp_path / "middle").symlink_to("far/target")
    (tmp_path / "link").symlink_to(tmp_path / "middle")
    (tmp_path / "dangling").symlink_to("far/new")
    write_text(tmp_path / "link", "better")
    write_text(tmp_path / "dangling", "new")
    assert (tmp_path / "far" / "target").read_text() == "better"
    assert (tmp_path / "far" / "new").read_text() == "new"
    assert all((tmp_path / name).is_symlink() for name in ("link", "middle", "dangling"))
    assert sorted(os.listdir(tmp_path / "far")) == ["new", "target"]


def test_through_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to("far")
    write_text(tmp_path / "near" / "a", "x")
    assert (tmp_path / "far" / "a").read_text() == "x"


def test_names_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x" * 255, "ä" * 127, " ", ".hidden", "a\nb"):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    monkeypatch.chdir(tmp_path)
    write_text(Path("relative"), "x")
    assert (tmp_path / "relative").read_text() == "x"


def test_a_named_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join()
    assert found == ["through"]
    assert os.listdir(tmp_path) == ["pipe"]


def test_devices_are_written_to() -> None:
    write_text(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_an_open_file_stays_the_one_that_is_open(tmp_path: Path, name: str) -> None:
    """As /dev/stdout is, once the shell has sent it to a file."""
    with open(tmp_path / "out", "w+") as file:
        path = Path(name.format(file.fileno()))
        if name == "link":
            path = tmp_path / "link"
            path.symlink_to(f"/dev/fd/{file.fileno()}")
        write_text(path, "x")
        assert file.read() == "x"
    assert sorted(os.listdir(tmp_path)) == (["link", "out"] if name == "link" else ["out"])


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "a", tmp_path / "file" / "a", Path("/proc/a")):
        (tmp_path / "file").touch()
        with pytest.raises(ArgumentError, match=r"is a folder|cannot be written"):
            write_text(path, "x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArgumentError, match="cannot be written"):
        write_text(tmp_path / "loop", "x")


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a").write_text("good")
    monkeypatch.setattr("tempfile.mkdtemp", refused)
    with pytest.raises(ArgumentError, match=r"a cannot be written \(Permission denied\); choose a folder"):
        write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "good"


def test_a_file_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    def hold_again() -> None:
        with held(tmp_path / "lock", "it is held"):
            pass

    with held(tmp_path / "lock", "it is held"), pytest.raises(ArgumentError, match="it is held"):
        hold_again()
    hold_again()


def test_a_file_that_its_holder_deletes_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its opening here, and its being held: else this one and the next would each hold one by that name."""
    right = fcntl.flock
    deleted: list[bool] = []

    def flock(file: int, how: int) -> None:
        if not deleted:
            deleted.append(True)
            (tmp_path / "lock").unlink()
        right(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path / "lock", "it is held"):
        assert (tmp_path / "lock").exists()
        with pytest.raises(ArgumentError, match="it is held"), held(tmp_path / "lock", "it is held"):
            pass


def test_a_folder_that_another_holder_deletes_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making here, and the opening of the file in it."""
    right = Path.mkdir
    deleted: list[bool] = []

    def mkdir(self: Path, *args: Any, **options: Any) -> None:
        right(self, *args, **options)
        if not deleted:
            deleted.append(True)
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with held(tmp_path / "folder" / "lock", "it is held"):
        assert (tmp_path / "folder" / "lock").exists()


def test_a_file_system_on_which_nothing_can_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(ArgumentError, match=rf"{tmp_path} is on a file system .*\(No locks available\)"),
        held(tmp_path / "lock", "it is held"),
    ):
        pass


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ArgumentError, match=r"rows\.csv cannot be written \(No space left on device\); make room"),
        replacing(tmp_path / "rows.csv"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_file_is_let_go_by_a_process_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from typing import Any
from gaia_fast.files import held
with held(Path({str(tmp_path / "lock")!r}), "it is held"):
    print("held", flush=True)
    time.sleep(60)
"""
    here = Path(gaia_fast.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=here) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ArgumentError, match="it is held"), held(tmp_path / "lock", "it is held"):
            pass
        process.kill()
    with held(tmp_path / "lock", "it is held"):
        pass


def test_what_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("far")
    os.mkfifo(tmp_path / "pipe")
    assert target(tmp_path / "link") == (tmp_path / "far").resolve()
    assert target(tmp_path / "pipe") is None
    with pytest.raises(ArgumentError, match="is a folder"):
        target(tmp_path)


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
        assert kind(tmp_path / "socket") == "a socket"
    assert kind(tmp_path / "file") == ""
    assert kind(tmp_path / "pipe") == kind(tmp_path / "link") == "a named pipe"
    assert kind(tmp_path) == "a folder"
    assert kind(Path("/dev/null")) == "a device"
    with pytest.raises(FileNotFoundError):
        kind(tmp_path / "absent")


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "a") as folder:
            assert folder.name == "a"
            (folder / "b").mkdir()
            (folder / "b" / "c.txt").write_text("c")
            assert not (tmp_path / "a").exists()
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "c"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750
    assert os.listdir(tmp_path) == ["a"]


def folder_fails_half_way(path: Path, error: type[BaseException]) -> None:
    with new_folder(path) as folder:
        (folder / "half").write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_that_is_not_filled_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        folder_fails_half_way(tmp_path / "a", error)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("there", ["file", "folder", "full folder"])
def test_what_has_a_folders_name_meanwhile_stays(tmp_path: Path, there: str) -> None:
    def comes_between(path: Path) -> None:
        with new_folder(path):
            path.write_text("kept") if there == "file" else path.mkdir()
            if there == "full folder":
                (path / "kept").write_text("kept")

    with pytest.raises(ArgumentError, match="is there already"):
        comes_between(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").is_file() is (there == "file")


def test_a_folder_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="cannot be written"), new_folder(tmp_path / "none" / "a"):
        pass
