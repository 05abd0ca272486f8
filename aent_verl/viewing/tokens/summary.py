"""Which tokens carry the entropy, and what the method does to them: the tables at the top of the page."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aent_verl.runs.token_records import TokenRecord

# "Forking tokens" in the literature: the fifth of the tokens with the highest entropy.
TOP_SHARE = 0.2
TABLE_ROWS = 20


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


@dataclass(frozen=True)
class Summary:
    """Tokens in the loss with a finite entropy, by entropy and by text.

    Attributes:
        parts: the tokens with the highest entropy, and the others.
        texts: texts in the order of the entropy they carry, at most TABLE_ROWS.
    """

    parts: list[Group]
    texts: list[Group]


# Text, entropy, policy weight and bonus weight of a token.
_Token = tuple[str, float, float | None, float]


def summarise(records: Iterable[TokenRecord]) -> Summary | None:
    """The tables over all records; None without a token in the loss."""
    tokens = [token for record in records for token in _in_loss(record)]
    if not tokens:
        return None
    total = sum(entropy for _, entropy, _, _ in tokens)
    by_text: dict[str, list[_Token]] = defaultdict(list)
    for token in tokens:
        by_text[token[0]].append(token)
    texts = sorted(
        (_group(text, same, total) for text, same in by_text.items()), key=lambda g: -g.count * g.mean_entropy
    )
    tokens.sort(key=lambda token: -token[1])
    top = max(1, round(TOP_SHARE * len(tokens)))
    parts = [_group(f"{TOP_SHARE:.0%} with the highest entropy", tokens[:top], total)]
    if tokens[top:]:
        parts.append(_group("the others", tokens[top:], total))
    return Summary(parts=parts, texts=texts[:TABLE_ROWS])


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing. Sums of infinities of both signs are NaN, not an error."""
    return sum(values) / len(values) if values else math.nan


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of the finite values does not exceed (nearest rank); 0 of nothing."""
    ordered = sorted(value for value in values if math.isfinite(value))
    # Less what rounding may add to a product that should be an integer: .07 of 100 is 7.000000000000001.
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)] if ordered else 0.0


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
