"""One self-contained HTML page of a token dump: responses whose tokens are coloured by entropy.

Markup of a token is terse, as a page holds 100 000 and more: ``<i class="e7 a18 w16" title="...">``. The classes are
levels of the three colour scales, the title holds the values; a class that the response has already is left out. All
that a reader needs is in the markup; the script adds a better tooltip and shows one step at a time.
"""

import base64
import hashlib
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from markupsafe import Markup, escape

from aent_verl._util import printable
from aent_verl.runs.token_records import TokenRecord, read_records
from aent_verl.viewing.pages import number, template
from aent_verl.viewing.palette import DARK, DIVERGING_LEVELS, LEVELS, LIGHT, MIDDLE, Theme, variables

PAGE = "tokens.html"
# "Forking tokens" in the literature: the fifth of the tokens with the highest entropy.
TOP_SHARE = 0.2
TABLE_ROWS = 20
CAP = 0.99
# A scale ends here at the earliest, so that rounding errors of a constant do not fill it.
SMALLEST_ENTROPY_CAP, SMALLEST_ADVANTAGE_CAP, SMALLEST_WEIGHT_CAP = 0.01, 0.01, 0.1


@dataclass(frozen=True)
class Scales:
    """Ends of the colour scales; the ones of advantage and policy weight lie as far on the other side of 0 and 1."""

    entropy: float
    advantage: float
    policy_weight: float

    @classmethod
    def of(cls, records: Sequence[TokenRecord]) -> "Scales":
        """Take the 99th percentiles over a step's tokens in the loss, so that a few outliers do not pale the rest.

        The largest of all steps: where entropy collapses, the many small values of late steps do not saturate the
        early ones.
        """
        entropy, advantage, weight = [SMALLEST_ENTROPY_CAP], [SMALLEST_ADVANTAGE_CAP], [SMALLEST_WEIGHT_CAP]
        for _, step in _by_step(records):
            entropy.append(percentile((h for record in step for h in _kept(record.entropy, record)), CAP))
            advantage.append(percentile((abs(a) for record in step for a in _kept(record.advantage, record)), CAP))
            weight.append(percentile((abs(w - 1) for record in step for w in _kept(record.policy_weight, record)), CAP))
        return cls(entropy=max(entropy), advantage=max(advantage), policy_weight=max(weight))


@dataclass(frozen=True)
class Group:
    """Tokens taken together: all with the same text, or a part of all by entropy.

    Attributes:
        name: the tokens' text, or what the part is.
        count: how many tokens.
        share: their part of the entropy of all tokens; NaN if that is 0.
        mean_entropy: nats.
        policy_weight: mean over the tokens that have one, else None.
        bonus_weight: mean.
    """

    name: str
    count: int
    share: float
    mean_entropy: float
    policy_weight: float | None
    bonus_weight: float


_COLUMNS = attrgetter("tokens", "entropy", "log_prob", "advantage", "policy_weight", "bonus_weight", "in_loss")
# Text, entropy, policy weight and bonus weight of a token.
_Token = tuple[str, float, float | None, float]


def write_page(
    paths: Sequence[str | Path], output: str | Path | None = None, steps: Iterable[int] | None = None
) -> tuple[Path, int]:
    """Draw the token dumps of ``paths``, see `read_records`.

    Args:
        paths: files and folders.
        output: the file to write; ``tokens.html`` in the first folder, or alongside the first file, if not given.
        steps: only these training steps.

    Returns:
        The page's path and the number of responses on it.

    Raises:
        FileNotFoundError, ValueError: as `read_records`; no complete response; a step that the dump does not have.
    """
    records = read_records(paths)
    named = ", ".join(map(str, paths))
    if not records:
        raise ValueError(f"no complete response in {named}: the run ended before it wrote one")
    if steps is not None:
        steps, there = set(steps), sorted({record.step for record in records})
        if missing := sorted(steps.difference(there)):
            raise ValueError(f"no step {', '.join(map(str, missing))} in {named}: it has {', '.join(map(str, there))}")
        records = [record for record in records if record.step in steps]
    first = Path(paths[0])
    output = (first if first.is_dir() else first.parent) / PAGE if output is None else Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(records), encoding="utf-8", newline="\n")
    return output, len(records)


def render(records: Sequence[TokenRecord]) -> str:
    """Render the page of one or more records, in the order of their steps."""
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    scales = Scales.of(records)
    underline = any(len(set(_kept(record.bonus_weight, record))) > 1 for record in records)
    page = template(__package__, number, visible, _spread, _pieces)
    parts, texts = summarise(records)
    return page.render(
        methods=sorted({record.method for record in records}),
        functionals=sorted({record.functional for record in records}),
        steps=_by_step(records),
        several_ranks=len({record.rank for record in records}) > 1,
        count=len(records),
        scales=scales,
        underline=underline,
        parts=parts,
        texts=texts,
        tokens=lambda record: Markup("".join(_token_spans(record, scales, underline))),
        kept=_kept,
        mean=mean,
        advantage_level=lambda record: _common_level(record, scales),
        themes={"light": _variables(LIGHT), "dark": _variables(DARK)},
        levels=LEVELS,
        diverging_levels=DIVERGING_LEVELS,
        middle=MIDDLE,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def visible(text: str) -> str:
    """Make invisible characters visible; a newline or a tab is kept after its sign."""
    if not text:
        return "∅"
    text = printable(text)
    if all(unicodedata.category(character) == "Cf" for character in text):
        return "".join(f"⟨U+{ord(character):04X}⟩" for character in text)
    return text.replace("\n", "↵\n").replace("\t", "⇥\t")


def summarise(records: Iterable[TokenRecord]) -> tuple[list[Group], list[Group]]:
    """Group the tokens in the loss that have a finite entropy, by entropy and by text.

    Returns:
        The tokens with the highest entropy, and the others; and texts in the order of the entropy that they carry, at
        most TABLE_ROWS.
    """
    tokens = sorted((token for record in records for token in _in_loss(record)), key=lambda token: -token[1])
    total = sum(entropy for _, entropy, _, _ in tokens)
    by_text: dict[str, list[_Token]] = defaultdict(list)
    for token in tokens:
        by_text[token[0]].append(token)
    texts = [_group(text, same, total) for text, same in by_text.items()]
    top = max(1, round(TOP_SHARE * len(tokens)))
    parts = {f"{TOP_SHARE:.0%} with the highest entropy": tokens[:top], "the others": tokens[top:]}
    return (
        [_group(name, part, total) for name, part in parts.items() if part],
        sorted(texts, key=lambda group: -group.count * group.mean_entropy)[:TABLE_ROWS],
    )


def mean(values: Sequence[float]) -> float:
    """Average the values; NaN of nothing. Sums of infinities of both signs are NaN, not an error."""
    return sum(values) / len(values) if values else math.nan


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that this share of the finite values does not exceed (nearest rank); 0 of nothing."""
    ordered = sorted(value for value in values if math.isfinite(value))
    # Less what rounding may add to a product that should be an integer: .07 of 100 is 7.000000000000001.
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)] if ordered else 0.0


def _token_spans(record: TokenRecord, scales: Scales, underline: bool) -> Iterable[str]:
    common = _common_level(record, scales)
    for text, entropy, log_prob, advantage, weight, bonus, in_loss in zip(*_COLUMNS(record), strict=True):
        classes = []
        if (level := _level(entropy / scales.entropy)) != 0:
            classes.append(f"e{level}")
        if (level := _diverging_level(advantage / scales.advantage)) != common:
            classes.append(f"a{level}")
        if weight is not None and (level := _diverging_level((weight - 1) / scales.policy_weight)) != MIDDLE:
            classes.append(f"w{level}")
        if not in_loss:
            classes.append("o")
        elif underline and bonus > 0:
            classes.append("b")
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        # Rounding may leave a log-probability above 0; min keeps a NaN that comes first.
        probability = math.exp(min(log_prob, 0.0))
        yield (
            f'<i{attribute} title="H {number(entropy)} p {number(probability)} logp {number(log_prob)}'
            f' A {number(advantage, signed=True)} w {number(weight)} b {number(bonus)}">{escape(visible(text))}</i>'
        )


def _level(share: float) -> int | str:
    """Return the level of a share of the scale: 0 is paper, the last is the cap and all beyond; x is not finite."""
    return round(min(max(share, 0.0), 1.0) * (LEVELS - 1)) if math.isfinite(share) else "x"


def _diverging_level(share: float) -> int | str:
    return MIDDLE + round(min(max(share, -1.0), 1.0) * MIDDLE) if math.isfinite(share) else "x"


def _common_level(record: TokenRecord, scales: Scales) -> int | str:
    """Return the response's level of advantage: group-relative advantages are the same for all its tokens."""
    return _diverging_level(record.advantage[0] / scales.advantage) if record.tokens else MIDDLE


def _kept(values: Sequence[float | None], record: TokenRecord) -> list[float]:
    """Return the values of the tokens in the loss, without missing ones."""
    return [value for value, inside in zip(values, record.in_loss, strict=True) if inside and value is not None]


def _spread(values: Sequence[float], signed: bool = False) -> str:
    """Write the number, if it is the same for all, else the range, and whether there is a NaN."""
    ordered = sorted(value for value in values if not math.isnan(value))
    ends = dict.fromkeys(number(end, signed) for end in (ordered[:1] + ordered[-1:]))
    parts = [" to ".join(ends)] if ends else []
    return " and ".join(parts + ["NaN"] * (len(ordered) < len(values))) or number(None)


def _in_loss(record: TokenRecord) -> list[_Token]:
    columns = zip(record.tokens, record.entropy, record.policy_weight, record.bonus_weight, record.in_loss, strict=True)
    return [(text, h, weight, bonus) for text, h, weight, bonus, inside in columns if inside and math.isfinite(h)]


def _group(name: str, tokens: Sequence[_Token], total: float) -> Group:
    entropy = sum(h for _, h, _, _ in tokens)
    weights = [weight for _, _, weight, _ in tokens if weight is not None]
    return Group(
        name=name,
        count=len(tokens),
        share=entropy / total if total > 0 else math.nan,
        mean_entropy=entropy / len(tokens),
        policy_weight=mean(weights) if weights else None,
        bonus_weight=mean([bonus for _, _, _, bonus in tokens]),
    )


def _by_step(records: Iterable[TokenRecord]) -> list[tuple[int, list[TokenRecord]]]:
    return [(step, list(group)) for step, group in groupby(records, key=lambda record: record.step)]


def _variables(theme: Theme) -> dict[str, str]:
    """Return the page's CSS variables: a theme's colours, and the levels s0, ... and d0, ... of its scales."""
    scales = {"s": theme.sequential(), "d": theme.diverging()}
    return variables(theme) | {f"{name}{i}": colour for name, scale in scales.items() for i, colour in enumerate(scale)}


def _pieces(text: str) -> str:
    """Write a token's text on one line, with its spaces."""
    return visible(text).replace("\n", "").replace("\t", "").replace(" ", "␣")
