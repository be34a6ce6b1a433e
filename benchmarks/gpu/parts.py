"""Runs the parts of `run.sh` one after the other, each in a process of its own, within a limit in all.

A part that fails, or takes longer than the parts after it can spare, is named, and the others go on. After each part
what it has measured is written, with all that was before, to one JSON file, and what it printed to one log. The time
that a part does not use is the next one's.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.goals import lines_of  # of the package itself nothing can be imported: it is built below

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 585.0  # seconds in all
RESERVE = 10.0  # of them, to end processes, and to write and print at the end
END = 5.0  # of a part's seconds, for it to end by itself
LEAST = 20.0  # with less time left a part is not begun


@dataclass(frozen=True)
class Part:
    """A command, with {python}, {here}, {root}, {source}, {package}, {out}, {go}, {seconds}, {processes} and
    {workers} filled in.

    Attributes:
        limit: the seconds that are kept for it.
        lines: how many of the last lines that it prints are printed here; the log has all.
        begun_at: the part with which it is begun already; it then waits for the file {go} before it times anything.
        needed: whether the parts after it make no sense without it.
    """

    name: str
    limit: float
    command: Sequence[str]
    lines: int = 8
    begun_at: str = ""
    needed: bool = False


def script(name: str, *more: str) -> list[str]:
    return ["{python}", f"{{here}}/{name}.py", "--out", "{out}", "--seconds", "{seconds}", *more]


PYTEST = ["{python}", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu.at_once"]
PYTEST += ["-c", "{root}/pyproject.toml", "--rootdir", "{root}"]
OPS = "{root}/tests/ops"
SMALL = [f"{OPS}/test_tiling.py", f"{OPS}/test_frobenius.py", f"{OPS}/test_channel_moments.py", "-k"]
SMALL += ["(triton-cuda or cuda-cuda) and (partial or by_hand or padded_matrix_itself or (against and 168))"]
TESTS = ["{root}/tests/gpu", OPS, "{root}/tests/test_backends.py", "-k", "cuda or gpu or library"]
SANITIZER = ["compute-sanitizer", "--error-exitcode", "3", "--target-processes", "all"]
PIP = ["{python}", "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--upgrade"]

EVERYTHING = (
    # Into a folder of its own, so that neither the source tree nor another installation is what is tested.
    Part("build", 150, [*PIP, "--target", "{package}", "{source}"], needed=True),
    Part("smoke", 40, script("smoke"), lines=20),
    Part("warm", 35, script("warm")),
    Part("tests", 70, [*PYTEST, "--tally", "{out}", "-n", "{workers}", *TESTS]),
    # Making programs keeps processors busy, and the GPU hardly: so do tests.
    Part("engines", 125, script("engines", "--go", "{go}"), lines=55, begun_at="tests"),
    Part("kernels", 100, script("kernels"), lines=25),
    Part("counters", 55, script("counters"), lines=25),
)
# Run where time is left, and by `run.sh sanitize`.
SANITIZE = tuple(
    Part(tool, 40, [*SANITIZER, "--tool", tool, *PYTEST, "-x", *SMALL]) for tool in ("memcheck", "racecheck")
)
COMMANDS = {part.name: (part,) for part in EVERYTHING[1:]} | {"everything": EVERYTHING[1:], "sanitize": SANITIZE}


def allowance(parts: Sequence[Part], index: int, spent: float, limit: float = LIMIT) -> float:
    """For how many seconds a part may go on, so much having been spent: what the limits of those after it leave."""
    return limit - RESERVE - spent - sum(part.limit for part in parts[index + 1 :])


class Running:
    """A part's process, and all that it starts: they are one group, and end together."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("ab") as out:
            self.start = out.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def wait(self, seconds: float) -> str:
        """Returns why it failed; nothing where it did not."""
        try:
            status = self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return f"ended after {seconds:.0f} s"
        return f"exit status {status}" if status else ""

    def end(self) -> None:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)

    def said(self) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(self.start)
            return log.read().decode(errors="replace").splitlines()


class Session:
    """Runs parts, and keeps what comes out: `results.json` and `log.txt` in a folder, and the JSON in a second one."""

    def __init__(self, out: Path, values: Mapping[str, str], limit: float = LIMIT) -> None:
        self.out, self.limit = out, limit
        self.begin = time.monotonic()
        self.work = Path(mkdtemp(prefix="gaia_fast_gpu_"))
        self.values = {"python": sys.executable, "here": str(HERE), "root": str(ROOT), **values}
        processors = min(16, os.cpu_count() or 1)
        self.values |= {"package": str(self.work / "package")}
        self.values |= {"processes": str(processors), "workers": str(max(1, processors // 2))}
        self.failed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self._early: dict[str, Running | str] = {}
        self._results: dict[str, Any] = {}
        self.log = out / "log.txt"
        self.log.write_text("")

    def spent(self) -> float:
        return time.monotonic() - self.begin

    def run(self, parts: Sequence[Part]) -> None:
        for index, part in enumerate(parts):
            seconds = allowance(parts, index, self.spent(), self.limit)
            for other in parts[index:]:
                if other.begun_at == part.name and other is not part:
                    in_all = allowance(parts, parts.index(other), self.spent(), self.limit)
                    self._early[other.name] = self._start(other, in_all)
            if not self._run(part, seconds) and part.needed:
                self.failed |= {each.name: f"not without {part.name}" for each in parts[index + 1 :]}
                break

    def run_where_time_is_left(self, parts: Sequence[Part]) -> None:
        """In equal shares; one for which there is none is said to be left out, and has not failed."""
        for index, part in enumerate(parts):
            seconds = (self.limit - RESERVE - self.spent()) / (len(parts) - index)
            if seconds >= part.limit:
                self._run(part, seconds)
            else:
                self._say(f"== {part.name} left out: {seconds:.0f} s left")

    def _run(self, part: Part, seconds: float) -> bool:
        if seconds < min(LEAST, part.limit):
            self.failed[part.name] = f"left out: {seconds:.0f} s left"
            self._say(f"== {part.name} {self.failed[part.name]}")
            return False
        self._say(f"== {part.name}, at most {seconds:.0f} s")
        begin = time.monotonic()
        running = self._early.pop(part.name, None) or self._start(part, seconds)
        self._go(part).write_text(f"{seconds - END:.1f}")
        if isinstance(running, Running):
            try:
                why = running.wait(seconds)
            finally:
                running.end()
            said = running.said()
            with self.log.open("a") as log:
                print(*said, sep="\n", file=log)
            print(*said[-part.lines :], sep="\n", flush=True)
        else:
            why = running
        self.seconds[part.name] = time.monotonic() - begin
        if why:
            self.failed[part.name] = why
        self._say(f"== {part.name} took {self.seconds[part.name]:.0f} s" + (f": FAILED: {why}" if why else ""))
        self._take(part.name)
        self._write()
        return not why

    def _start(self, part: Part, seconds: float) -> "Running | str":
        values = {**self.values, "out": str(self._file(part.name)), "go": str(self._go(part))}
        values["seconds"] = f"{seconds - END:.1f}"
        command = [word.format(**values) for word in part.command]
        if "-n" in command and not _is_installed(self.values["python"], "xdist"):
            at = command.index("-n")
            del command[at : at + 2]
        environment = {}
        if not part.needed:  # before what is inherited, so that the package is the one that was built
            paths = (self.values["package"], str(HERE.parent), os.environ.get("PYTHONPATH"))
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment |= {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment |= {"TRITON_CACHE_DIR": str(self.work / "triton")}
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        if part in SANITIZE:  # else an access beside a tensor meets another's memory
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        if shutil.which(command[0]) is None:
            return f"{command[0]} is not on the path"
        return Running(command, self.work / f"{part.name}.log", environment)

    def _file(self, name: str) -> Path:
        return self.work / f"{name}.json"

    def _go(self, part: Part) -> Path:
        return self.work / f"{part.name}.go"

    def _say(self, line: str) -> None:
        print(line, flush=True)
        with self.log.open("a") as log:
            print(line, file=log)

    def _take(self, name: str) -> None:
        """Takes up what a part has measured."""
        try:
            if self._file(name).exists():
                self._results[name] = json.loads(self._file(name).read_text())
        except ValueError as error:
            self.failed[name] = f"{self.failed.get(name, '')} its figures are no JSON: {error}".strip()

    def _write(self) -> None:
        """All that there is so far: the time may end here."""
        text = written(self.record()) + "\n"
        for folder in (self.out, *self._folder()):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "results.json").write_text(text)

    def record(self) -> dict[str, Any]:
        goals = [goal for part in self._results.values() for goal in part.get("goals", [])]
        return {
            "commit": os.environ.get("COMMIT", ""),
            "seconds": self.seconds,
            "failed": self.failed,
            "goals": goals,
            "parts": self._results,
        }

    def _folder(self) -> list[Path]:
        """benchmarks/results/<gpu>, once a part has said which GPU it is."""
        names = [part["device"] for part in self._results.values() if "device" in part]
        return [ROOT / "benchmarks" / "results" / names[0].lower().replace(" ", "-")] if names else []

    def finish(self) -> int:
        for each in self._early.values():
            if isinstance(each, Running):
                each.end()
        shutil.rmtree(self.work, ignore_errors=True)
        self._write()
        self._say("\n".join(["", "goals", *lines_of(self.record()["goals"], most=0)]))
        if self.failed:
            self._say("FAILED: " + "; ".join(f"{name}: {why}" for name, why in self.failed.items()))
        else:
            self._say(f"everything passed in {self.spent():.0f} s")
        return 1 if self.failed else 0


def written(value: Any, depth: int = 0) -> str:
    """JSON with a line for each row of a table, and figures as precise as they are."""
    if depth == 4 or not (isinstance(value, dict | list) and value):
        return json.dumps(_rounded(value))
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {written(each, depth + 1)}" for name, each in value.items()]
    else:
        parts = [written(each, depth + 1) for each in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    inside = "\n" + " " * (depth + 1)
    return begin + inside + ("," + inside).join(parts) + "\n" + " " * depth + end


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _is_installed(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(COMMANDS)}; everything by default")
    parser.add_argument("--out", type=Path, required=True, help="a folder, for results.json and log.txt")
    parser.add_argument("--source", default=str(ROOT), help="what is installed: the tree, or a wheel")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds in all")
    arguments = parser.parse_args()
    wanted: list[str] = arguments.parts or ["everything"]
    if unknown := [name for name in wanted if name not in COMMANDS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    parts = [EVERYTHING[0], *(part for name in wanted for part in COMMANDS[name])]
    arguments.out.mkdir(parents=True, exist_ok=True)
    session = Session(arguments.out.resolve(), {"source": arguments.source}, arguments.limit)
    try:
        session.run(parts)
        if wanted == ["everything"] and shutil.which("compute-sanitizer") and "build" not in session.failed:
            session.run_where_time_is_left(SANITIZE)
    finally:
        status = session.finish()
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
