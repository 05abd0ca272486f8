"""Writes the first responses of each step token by token, from inside the loss; `aent-verl tokens` shows them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aent_verl.methods.settings import EntropyControlConfig
from aent_verl.plugin.micro_batch import VerlMicroBatch
from aent_verl.runs import token_records


@dataclass
class TokenDump:
    """Writes the samples of lowest index of each step, when it first meets them in that step.

    Attributes:
        control: says how many, and where to.
        rank: this worker's, part of the file's name.
        tokenizer: decodes prompts and tokens.
    """

    control: EntropyControlConfig
    rank: int
    tokenizer: Any
    _step: int = -1
    _written: set[int] = field(default_factory=set)

    @torch.no_grad()
    def write(self, batch: VerlMicroBatch, *, shaped: Tensor, bonus_weight: Tensor, step: int) -> None:
        """Write those of this micro-batch that are due.

        Args:
            batch: the tokens.
            shaped: advantages after shaping, ``[B, T]``.
            bonus_weight: weight of each token in the bonus, ``[B, T]``.
            step: the training step.
        """
        if step != self._step:
            self._step, self._written = step, set()
        due = [
            (row, index)
            for row, index in enumerate(batch.sample.tolist())
            if index < self.control.token_dump and index not in self._written and bool(batch.mask[row].any())
        ]
        if not due:
            return
        self._written |= {index for _, index in due}
        assert self.control.token_dump_dir is not None
        records = [self._record(batch, row, index, shaped[row], bonus_weight[row]) for row, index in due]
        token_records.write_records(token_records.dump_file(self.control.token_dump_dir, step, self.rank), records)

    def _record(
        self, batch: VerlMicroBatch, row: int, index: int, shaped: Tensor, bonus_weight: Tensor
    ) -> token_records.TokenRecord:
        data = batch.data
        prompt, response = data["prompts"][row].tolist(), data["responses"][row].tolist()
        length = len(response)
        advantage = batch.advantages[row, :length].tolist()
        pairs = zip(shaped.tolist(), advantage, strict=False)
        return token_records.TokenRecord(
            step=self._step,
            sample=index,
            rank=self.rank,
            method=self.control.method,
            functional=str(self.control.functional),
            prompt=self.tokenizer.decode(prompt),
            tokens=[self.tokenizer.decode([token]) for token in response],
            log_prob=batch.log_prob[row, :length].tolist(),
            entropy=batch.entropy[row, :length].tolist(),
            advantage=advantage,
            policy_weight=[new / old if old != 0 else None for new, old in pairs],
            bonus_weight=bonus_weight[:length].tolist(),
            in_loss=batch.mask[row, :length].tolist(),
            score=float(data["rm_scores"][row].sum()) if "rm_scores" in data else None,
        )
