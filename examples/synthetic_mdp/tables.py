"""The tables of the README, made from the results file."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from examples.synthetic_mdp.experiment import CLAMPS, COEFFICIENTS, METHODS, STARTS, STEP_SIZES, SWEEP_SEEDS
from examples.synthetic_mdp.mdp import ACTIONS, largest_useful_coefficient

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
# Read off the authors' figure; with 5 optimal actions it shows only what the bonuses add to "none".
PAPER = {
    "15": ".24 / .36 / .80",
    "10": ".20 / .32 / .60",
    "5": "x / x + .00 / x + .24",
    "1": ".20 / .20 / .44",
}


def interval(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs and half the width of its 95% t-interval; ``[S, ...] -> [...]`` twice, NaN for a single run."""
    count = len(runs)
    if count < 2:
        return runs.mean(0), np.full(runs.shape[1:], np.nan)
    return runs.mean(0), t.ppf(0.975, count - 1) * runs.std(0, ddof=1) / np.sqrt(count)


def tables(results: dict[str, Any]) -> str:
    """All tables as Markdown."""
    return "\n\n".join([_final(results), _grid(results), _step_sizes(results), _starts(results)])


def put_into_readme(readme: Path, results: dict[str, Any]) -> None:
    """Replace what is between the markers of ``readme``; nothing if there is no such file.

    Raises:
        ValueError: the file has no markers.
    """
    if not readme.is_file():
        return
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme}: no place for the tables; expected the lines {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{tables(results)}\n{END}{after}")


def _final(results: dict[str, Any]) -> str:
    made = results["made"]
    title = f"Reward after {made['steps']:,} steps, mean and 95% t-interval over {len(made['seeds'])} seeds"
    rows = []
    for optimal, lines in results["curves"].items():
        cells = []
        for name in METHODS:
            mean, half = interval(np.array(lines[name]["reward"])[:, -1])
            cells.append(f"{_number(mean)} ± {_number(half)}")
        rows.append([optimal, *cells, PAPER.get(optimal, "")])
    header = ["optimal actions", *METHODS, "paper: none / full / clamped"]
    return _table(title, header, _descending(rows))


def _grid(results: dict[str, Any]) -> str:
    title = f"A sweep over the coefficient and p (seeds {_seeds()}; the best of each row in bold)"
    rows = []
    for optimal, by_clamp in results["grid"].items():
        for clamp_p in CLAMPS:
            values = by_clamp[str(clamp_p)]
            best = max(values)
            cells = [f"**{_number(v)}**" if _number(v) == _number(best) else _number(v) for v in values]
            kept = ACTIONS - int(ACTIONS * clamp_p)
            limit = largest_useful_coefficient(int(optimal), kept)
            name = f"clamped, p = {clamp_p:g}" if clamp_p else "full"
            rows.append([optimal, name, *cells, _number(limit, 3)])
    header = ["optimal actions", "entropy", *(f"λ = {c:g}" for c in COEFFICIENTS), "theory: half lost at λ ="]
    return _table(title, header, _descending(rows))


def _step_sizes(results: dict[str, Any]) -> str:
    title = f"No bonus, other step sizes (seeds {_seeds()})"
    rows = [[optimal, *map(_number, values)] for optimal, values in results["step size"].items()]
    return _table(title, ["optimal actions", *(f"η = {s:g}" for s in STEP_SIZES)], _descending(rows))


def _starts(results: dict[str, Any]) -> str:
    title = f"Other initial policies (seeds {_seeds()})"
    rows = [
        [name, optimal, *(_number(values[method]) for method in METHODS)]
        for name in STARTS
        for optimal, values in sorted(results[name].items(), key=lambda item: -int(item[0]))
    ]
    return _table(title, ["initial policy", "optimal actions", *METHODS], rows)


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return f"{title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _descending(rows: list[list[str]]) -> list[list[str]]:
    """Most optimal actions first; the sort is stable."""
    return sorted(rows, key=lambda row: -int(row[0]))


def _number(value: Any, digits: int = 2) -> str:
    """``.24``, as the paper's figure is quoted."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def _seeds() -> str:
    return " and ".join(map(str, SWEEP_SEEDS))
