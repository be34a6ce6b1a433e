"""Dockerfile: what it copies is there, and what it runs exists. It is built where there are containers."""

import json
import re
from pathlib import Path

import pytest

from gaia_fast.cli import main
from gaia_fast.serving import app

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """The instructions with their arguments, in order; lines that go on joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def arguments(instruction: str) -> list[str]:
    """Those of an instruction that is there once."""
    (found,) = (rest for name, rest in instructions() if name == instruction)
    return list(json.loads(found))


def copied() -> list[str]:
    """What is copied from the checkout."""
    found = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and not rest.startswith("--from=")]
    return [source for sources in found for source in sources]


def test_what_is_copied_is_there_and_not_left_out() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"
    let_in = {line.removeprefix("!") for line in patterns if line.startswith("!")}
    assert set(copied()) == let_in
    for source in copied():
        assert (ROOT / source).exists(), source


def test_what_the_package_is_built_of_is_copied() -> None:
    built = {"pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE", "cmake", "csrc", "gaia_fast"}
    assert built <= set(copied())


def test_the_command_is_one_that_there_is() -> None:
    assert arguments("ENTRYPOINT") == ["gaia-fast"]
    name, *options = arguments("CMD")
    with main.commands[name].make_context(name, options) as context:
        host, port = context.params["host"], context.params["port"]
    assert host == "0.0.0.0"
    (exposed,) = (rest for instruction, rest in instructions() if instruction == "EXPOSE")
    (health,) = (rest for instruction, rest in instructions() if instruction == "HEALTHCHECK")
    assert exposed == str(port)
    path = re.search(rf"http://127\.0\.0\.1:{port}(/\w+)", health)
    assert path is not None
    assert f'"{path[1]}"' in Path(app.__file__).read_text()
    compile(json.loads(health[health.index("[") :])[-1], "HEALTHCHECK", "exec")


def test_the_examples_of_its_comment_are_commands_too() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n#", "")
    commands = re.findall(r"^#   docker run .* gaia-fast (serve .*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        name, *options = command.split()
        with main.commands[name].make_context(name, options) as context:
            assert context.params["host"] == "0.0.0.0"


def test_the_extras_that_it_installs_are_declared() -> None:
    tomllib = pytest.importorskip("tomllib", reason="there is no tomllib before Python 3.11")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extras,) = re.findall(r"\.whl\)\[([\w,-]+)\]", (ROOT / "Dockerfile").read_text())
    assert set(extras.split(",")) <= set(declared)
    assert "serve" in extras.split(",")


def test_nobody_is_root_in_it() -> None:
    last_run = max(place for place, (name, _) in enumerate(instructions()) if name == "RUN")
    (user,) = (
        place for place, (name, rest) in enumerate(instructions()) if name == "USER" and rest not in ("0", "root")
    )
    assert user > last_run
