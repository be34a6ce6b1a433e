"""What was timed is kept in memory and in a file, for each processor and build."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gaia_fast import timing_cache
from gaia_fast.timing_cache import TimingCache

CPUINFO = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu family\t: {}\nmodel\t\t: 17\nflags\t: a b\n\nprocessor\t: 1\n"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TimingCache:
    monkeypatch.setenv("GAIA_FAST_CACHE", str(tmp_path))
    return TimingCache("things", lambda value: isinstance(value, int))


@pytest.fixture
def machine() -> Iterator[None]:
    timing_cache.machine.cache_clear()
    yield
    timing_cache.machine.cache_clear()


def test_a_value_is_measured_once(cache: TimingCache) -> None:
    assert cache.find("a") is None
    assert cache.get("a", lambda: 1) == cache.get("a", lambda: 2) == cache.find("a") == 1
    cache.forget()
    assert cache.get("a", lambda: 3) == 1  # from the file


def test_a_value_may_be_replaced(cache: TimingCache) -> None:
    cache.put("a", 1)
    cache.put("b", 2)
    cache.put("a", 3)
    cache.forget()
    assert (cache.find("a"), cache.find("b")) == (3, 2)


def test_processes_keep_each_others_values(cache: TimingCache) -> None:
    other = TimingCache("things", lambda value: isinstance(value, int))
    assert other.find("a") is None
    cache.put("a", 1)
    other.put("b", 2)
    cache.forget()
    assert (cache.find("a"), cache.find("b")) == (1, 2)


def test_values_that_mean_nothing_are_not_read(cache: TimingCache) -> None:
    path = cache.file()
    assert path is not None
    path.write_text('{"a": "fast", "b": 2}')
    assert cache.find("a") is None
    assert cache.find("b") == 2


@pytest.mark.usefixtures("machine")
def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    found = []
    for family in (25, 26, 25):

        def read_text(path: Path, *args: str, family: int = family) -> str:
            return CPUINFO.format(family) if path == Path("/proc/cpuinfo") else read(path, *args)

        monkeypatch.setattr(Path, "read_text", read_text)
        timing_cache.machine.cache_clear()
        found.append(timing_cache.machine())
    assert found[0] == found[2] != found[1]
