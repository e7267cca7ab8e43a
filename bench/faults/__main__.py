"""Rounds of faults: `python -m bench.faults`.

Each round injects one fault (--help lists the kinds) at a seeded moment and repeats the disturbed command
until it succeeds. A round passes if the output is that of an undisturbed run, no row or step missing, none
twice, none different; if little work was done again; if every command ended by itself and said in a few
lines why it failed; and if no process and no temporary file is left. Out: a line per round, and
runs/bench/faults.json; exit code 1 if a round failed. Kinds with a full disk need the right to mount a
tmpfs, and are skipped without it.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench import results
from bench.faults.annotating import AnnotateFaults
from bench.faults.commands import FaultError
from bench.faults.disk import can_mount
from bench.faults.evaluating import EvaluateFaults
from bench.faults.finetuning import FinetuneFaults
from bench.faults.merging import MergeFaults
from bench.faults.outcome import HEADER, Round
from bench.faults.rounds import Faults
from bench.faults.world import World

COMMANDS: tuple[type[Faults], ...] = (AnnotateFaults, MergeFaults, FinetuneFaults, EvaluateFaults)
KINDS: Mapping[str, str] = {kind: text for each in COMMANDS for kind, (_, text) in each.kinds.items()}
_NEED_MOUNTS = ("disk", "mergedisk", "finetunedisk")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    listed = "\n".join(f"  {kind:<13}{text}" for kind, text in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults",
        description=f"Disturb real commands, and compare with undisturbed runs.\n\nkinds:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, help="one kind after the other (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--texts", type=int, default=183, help="texts to annotate, about (default: 183)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # processes and mounts end with this one
    mounts = can_mount()
    kinds = [kind for kind in args.kinds if mounts or kind not in _NEED_MOUNTS]
    for kind in sorted(set(args.kinds).difference(kinds)):
        print(f"{kind} is skipped: no file system can be mounted here")
    rounds: list[Round] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults") as folder, World(Path(folder), args.texts) as world:
        faults = {kind: each for each in (command(world) for command in COMMANDS) for kind in each.kinds}
        print(HEADER, flush=True)
        for number in range(args.rounds):
            kind, rng = kinds[number % len(kinds)], random.Random(f"{args.seed} {number}")
            try:
                rounds.append(faults[kind].round(kind, rng))
            except FaultError as error:
                failures.append(f"{kind}: {error}")
                print(f"FAILED  {failures[-1]}", flush=True)
            else:
                print(rounds[-1], flush=True)
    passed = sum(each.passed for each in rounds)
    print(f"{passed} of {args.rounds} rounds passed")
    measured = {"rounds": [{**asdict(each), "passed": each.passed} for each in rounds], "failures": failures}
    print(results.write("faults", vars(args), measured))
    return int(passed < args.rounds)


if __name__ == "__main__":
    sys.exit(main())
