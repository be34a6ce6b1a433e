import threading

from gaia_fast.recent import Recent


def test_what_was_used_least_recently_goes() -> None:
    kept: Recent[int, str] = Recent(3)
    for key in (1, 2, 3):
        kept.put(key, str(key))
    assert kept.get(1) == "1"
    kept.put(4, "4")
    assert [kept.get(key) for key in (1, 2, 3, 4)] == ["1", None, "3", "4"]
    kept.put(3, "three")
    assert len(kept) == 3
    kept.pop(1)
    kept.pop(1)
    assert kept.get(1) is None


def test_many_threads() -> None:
    kept: Recent[int, int] = Recent(4)
    failures: list[object] = []

    def work(begin: int) -> None:
        try:
            for key in range(begin, begin + 2000):
                kept.put(key % 7, key % 7)
                assert kept.get(key % 5) in (None, key % 5)
                kept.pop(key % 3)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(begin,)) for begin in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures
    assert len(kept) <= 4
