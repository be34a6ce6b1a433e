"""The long run, `make fuzz N=5000`: counts what is right, refused and wrong, and says how to see each wrong one again.

make fuzz N=1 SEED=17                       # one draw
make fuzz N=2000 SUBJECTS=eager,onnx        # some subjects alone; "inductor" and "pt2" are left out unless asked for
"""

import argparse
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import torch

from fuzz.draws import DTYPES, draw
from fuzz.subjects import SUBJECTS, USUAL, Verdict, silence, verdicts


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first draw")
    parser.add_argument("--subjects", default=",".join(USUAL), help=f"among {', '.join(SUBJECTS)}")
    parser.add_argument("--dtypes", default="", help="such as float64,float32; all four unless given")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 for one a core")
    given = parser.parse_args()
    subjects = tuple(given.subjects.split(","))
    if unknown := set(subjects) - set(SUBJECTS):
        parser.error(f"no subject is called {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    dtypes = tuple(getattr(torch, each) for each in given.dtypes.split(",") if each) or DTYPES
    tasks = [(seed, subjects, dtypes) for seed in range(given.seed, given.seed + given.draws)]

    begin = time.perf_counter()
    outcomes: Counter[tuple[str, str]] = Counter()
    refusals: Counter[str] = Counter()
    wrong = 0
    jobs = given.jobs or multiprocessing.cpu_count()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin) as pool:
        for (seed, *_), (words, found) in zip(tasks, pool.map(_judge, tasks), strict=True):
            for each in found:
                outcomes[each.subject, each.outcome] += 1
                if each.outcome == "refused":
                    refusals[f"{each.subject}: {each.kind}"] += 1
                elif each.outcome == "wrong":
                    wrong += 1
                    print(
                        f"WRONG {each.subject} on {each.batch!r}: {each.why.splitlines()[0]}\n      {words}", flush=True
                    )
                    print(f"      again: make fuzz SEED={seed} N=1 SUBJECTS={each.subject} DTYPES={given.dtypes}")
            if (seed - given.seed + 1) % 100 == 0:
                print(f"{seed - given.seed + 1} draws: {_table(outcomes, subjects)}", file=sys.stderr, flush=True)
    print(_table(outcomes, subjects).replace("; ", "\n"))
    for kind, count in refusals.most_common():
        print(f"{count:6}  {kind}")
    seconds = time.perf_counter() - begin
    print(f"{given.draws} draws from seed {given.seed} in {seconds:.0f} s, {given.draws / seconds:.2f} a second")
    return int(wrong > 0)


def _table(outcomes: Counter[tuple[str, str]], subjects: tuple[str, ...]) -> str:
    """How many batches each subject scored, refused, and scored wrong."""
    kinds = ("right", "refused", "wrong")
    return "; ".join(f"{s} " + ", ".join(f"{outcomes[s, kind]} {kind}" for kind in kinds) for s in subjects)


def _begin() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    silence()


def _judge(task: tuple[int, tuple[str, ...], tuple[torch.dtype, ...]]) -> tuple[str, list[Verdict]]:
    seed, subjects, dtypes = task
    drawn = draw(seed, dtypes)
    return str(drawn), list(verdicts(drawn, subjects))


if __name__ == "__main__":
    sys.exit(main())
