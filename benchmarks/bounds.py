"""What the op promises at one vocabulary, and what was measured."""

from benchmarks.methods import BASE
from benchmarks.report import MIB, Row, mebibytes

VOCABULARY = 151_936
TOKENS = 1024
COLUMNS = ["bound", "on", "measured", "holds"]


def on_cpu(seconds: dict[str, float], peak: int | None, itemsize: int) -> tuple[Row, list[Row]]:
    """Columns and rows.

    Args:
        seconds: medians of forward and backward by method; what was not run is not judged.
        peak: bytes that the clamped entropy needed at `TOKENS` tokens.
        itemsize: bytes per logit.
    """
    gradient = TOKENS * VOCABULARY * itemsize
    measured = "not measured" if peak is None else f"gradient {(peak - gradient) / MIB:+,.1f} MiB"
    return COLUMNS, [
        _ratio("at most 0.5 times verl's log-prob + full entropy", seconds, "ours-clamped", "stock-plain", most=0.5),
        _ratio("at least 4 times faster than the top-k form", seconds, "topk", "ours-clamped", least=4.0),
        [
            f"peak at most the gradient ({mebibytes(gradient)} MiB) + 64 MiB at N = {TOKENS:,}",
            "ours-clamped",
            measured,
            "" if peak is None else _word(peak <= gradient + 64 * MIB),
        ],
    ]


def on_cuda(seconds: dict[str, float], shares: dict[str, float], flash: bool) -> tuple[Row, list[Row]]:
    """Columns and rows.

    Args:
        seconds: medians of forward and backward by method.
        shares: of the copy bandwidth, by method.
        flash: whether verl's log-prob was flash-attn's kernel; else ours, without the entropy's gradient, stands in.
    """
    base, kernel = (BASE, "flash-attn's") if flash else ("ours-logprob", "our")
    rows = []
    for method in ("ours-full", "ours-clamped"):
        rows += [
            _ratio(f"at most 1.15 times {kernel} log-prob kernel", seconds, method, base, most=1.15),
            [
                "at least 60% of the copy bandwidth",
                method,
                f"{shares[method]:.0%}" if method in shares else "not measured",
                _word(shares[method] >= 0.6) if method in shares else "",
            ],
        ]
    rows.append(_ratio("at least 20 times faster than the top-k form", seconds, "topk", "ours-clamped", least=20.0))
    return COLUMNS, rows


def _ratio(
    text: str, seconds: dict[str, float], over: str, under: str, *, most: float = float("inf"), least: float = 0.0
) -> Row:
    if over not in seconds or under not in seconds:
        return [text, f"{over} / {under}", "not measured", ""]
    value = seconds[over] / seconds[under]
    return [text, f"{over} / {under}", f"{value:.2f}", _word(least <= value <= most)]


def _word(holds: bool) -> str:
    return "yes" if holds else "NO"
