"""Does a method help, compared with its baseline? Numbers, intervals and verdicts from seeds x problems x samples.

Arrays in, numbers out: nothing here reads a run's files. `docs/statistics.md` defines every number.
"""

from typing import Literal, get_args

# What a statement is about. Either way new training seeds and new samples are drawn; the first also draws new problems.
Target = Literal["problems like these", "these problems"]
TARGETS: tuple[Target, ...] = get_args(Target)
# Level of the intervals; of the verdicts, for all comparisons together.
CONFIDENCE = 0.95
