"""What the project aims at, with what was measured: in the worst case, and in which cases it is missed."""

from typing import Any

Goal = dict[str, Any]


def goal(what: str, sign: str, limit: float, cases: dict[str, float]) -> Goal:
    """Holds what was measured in some cases, by name, to a limit; `sign` is ">=" or "<="."""
    worst = (min if sign == ">=" else max)(cases, key=lambda name: cases[name], default=None)
    missed = {name: value for name, value in cases.items() if not (value >= limit if sign == ">=" else value <= limit)}
    return {
        "goal": what,
        "sign": sign,
        "limit": limit,
        "measured": None if worst is None else cases[worst],
        "where": worst,
        "cases": len(cases),
        "missed": missed,
    }


def lines_of(goals: list[Goal], most: int = 6) -> list[str]:
    """The goals as they are printed, of each that is missed the worst cases."""
    lines = []
    for each in goals:
        limit = f"{each['sign']} {each['limit']:g}"
        if each["measured"] is None:
            lines.append(f"NOT MEASURED  {each['goal']} {limit}")
            continue
        missed = sorted(each["missed"].items(), key=lambda case: case[1], reverse=each["sign"] == "<=")
        lines.append(
            f"{'missed' if missed else 'met':<7} {each['goal']} {limit}, measured {each['measured']:.2f} at worst "
            f"({each['where']}); missed in {len(missed)} of {each['cases']} cases"
        )
        lines += [f"          {value:.2f} {name}" for name, value in missed[:most]]
    return lines
