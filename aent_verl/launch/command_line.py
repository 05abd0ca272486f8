"""A training command as it is typed, ours or verl's: which overrides on which configuration, and what they lack."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig, open_dict

from aent_verl.launch import compose
from aent_verl.plugin.guard import BLOCK
from aent_verl.preflight.findings import Finding

OURS, VERLS = (compose.MODULE, compose.TRAINER), ("verl.trainer.config", "ppo_trainer")
SEARCH_PATH = f"hydra.searchpath=[pkg://{compose.MODULE}]"


@dataclass(frozen=True)
class CommandLine:
    """A command that trains.

    Attributes:
        overrides: Hydra's overrides, in order.
        source: module or folder of the configuration.
        name: the configuration's name there.
    """

    overrides: tuple[str, ...]
    source: str = OURS[0]
    name: str = OURS[1]

    @property
    def is_ours(self) -> bool:
        """Whether it is ``aent-verl train``, and not verl's own entry."""
        return self.source == OURS[0]

    def value(self, key: str) -> str | None:
        """Return the value that the overrides give ``key``; None if they do not set it."""
        parts = (override.partition("=") for override in self.overrides)
        return {name.lstrip("+"): value for name, equals, value in parts if equals}.get(key)

    def lacks(self) -> tuple[str, ...]:
        """Find the overrides without which verl's own entry would train without entropy control."""
        if self.is_ours:
            return ()
        path = [] if OURS[0] in (self.value("hydra.searchpath") or "") else [SEARCH_PATH]
        method = [] if self.value(BLOCK) else [f"+{BLOCK}=aent"]
        return (*path, *method)

    def completed(self) -> "CommandLine":
        """Add what it lacks; a search path without ours is replaced by one with it."""
        lacks = self.lacks()
        kept = [text for text in self.overrides if not (SEARCH_PATH in lacks and text.startswith("hydra.searchpath="))]
        return replace(self, overrides=(*kept, *lacks))

    def sorted_out(self) -> tuple[list[Finding], "CommandLine"]:
        """Separate overrides whose key verl no longer has, each with where it went, from the rest of the command.

        Raises:
            HydraException: what remains does not compose.
        """
        from aent_verl.preflight import keys

        # A key counts as known or not in the config that groups and our presets make, without any setting.
        base = replace(self, overrides=keys.group_choices(self.overrides)).compose()
        findings, remaining = keys.unknown_overrides(self.overrides, base)
        return findings, replace(self, overrides=tuple(remaining))

    def compose(self) -> DictConfig:
        """Compose as Hydra would for the command.

        Raises:
            HydraException: something does not compose.
        """
        cfg = compose.compose(self.overrides, self.name, self.source)
        if "run" not in cfg:
            # What `aent-verl train` does around verl; the checks ask for it.
            with open_dict(cfg):
                cfg.run = {"dir": cfg.trainer.default_local_dir, "task": None, "threads": None, "progress": False}
        return cfg


def parse(arguments: Sequence[str]) -> CommandLine:
    """Read what follows ``aent-verl doctor``: overrides of ``aent-verl train``, or a whole command.

    A command is one with ``verl.trainer.main_ppo`` or ``main_ppo.py`` in it, or with a ``train`` of ours; what comes
    before is the interpreter and its environment. Overrides that search for our configuration are verl's command, too.
    """
    words = [word for word in arguments if word not in ("\\", "$@")]
    entry = next((i for i, word in enumerate(words) if word.endswith(("main_ppo", "main_ppo.py"))), None)
    if entry is None:
        ours = next((i for i, word in enumerate(words) if word in ("train", "aent_verl.commands.train")), -1)
        overrides = words[ours + 1 :]
        searches = any(word.startswith(("hydra.searchpath=", f"+{BLOCK}=")) for word in overrides)
        return CommandLine(tuple(overrides), *(VERLS if searches else OURS))
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--cfg", "-c", nargs="?")
    flags.add_argument("--config-name", "-cn", nargs="?")
    flags.add_argument("--config-path", "-cp", "--config-dir", "-cd", nargs="?", const="", action="append", default=[])
    options, rest = flags.parse_known_args(words[entry + 1 :])
    # A relative path is relative to main_ppo.py, and so verl's own.
    source = next(filter(os.path.isabs, reversed(options.config_path)), VERLS[0])
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    return CommandLine(tuple(overrides), source, options.config_name or VERLS[1])
