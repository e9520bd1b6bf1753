"""Pins of the stages: the output that each version of a stage gives to the probe's input, in pins.json.

`python -m tests.model_export.pin` writes the pins of new versions, or of the stages that its arguments name.
It refuses if an output changed and its version did not. Otherwise keys and study cells would not tell the two
outputs apart. After a change of a probe itself, delete the stage's line in pins.json first.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.model_export.probe_inputs import Output, one_thread
from tests.model_export.probes import PROBES, Probe

PINS = Path(__file__).with_name("pins.json")
COMMAND = "python -m tests.model_export.pin"
DIGITS = 5
# Wide enough for the last bits of other processors, which training amplifies. Narrow enough to notice a
# change.
ABSOLUTE, RELATIVE = 1e-3, 2e-3
SHOWN = 3


def pinned() -> dict[str, Any]:
    return json.loads(PINS.read_text(encoding="utf-8")) if PINS.exists() else {}


def problem(stage: str, probe: Probe, pin: dict[str, Any] | None, output: Output) -> str | None:
    """The problem of a stage whose probe gives `output`, with its remedy. None if the output is as pinned."""
    version, file = probe.module.VERSION, Path(str(probe.module.__file__))
    if pin is None:
        return f"{stage}: nothing is pinned to version {version}. Run `{COMMAND}`."
    if pin["version"] != version:
        return f"{stage}: is version {version}, pinned is version {pin['version']}. Run `{COMMAND}`."
    if found := list(differences(pin["output"], output)):
        return (
            f"{stage}: the output differs from version {version} at {len(found)} places: "
            f"{'; '.join(found[:SHOWN])}. If this is intended, raise VERSION in "
            f"{file.parent.name}/{file.name} to {version + 1}, then run `{COMMAND}`. If not, undo the "
            f"change in {file.name} or in a module that it uses."
        )
    return None


def differences(expected: Output, found: Output, where: str = "output") -> Iterator[str]:
    """The places where two outputs differ by more than rounding."""
    match expected, found:
        case dict(), dict() if expected.keys() == found.keys():
            for name in expected:
                yield from differences(expected[name], found[name], f"{where}[{name!r}]")
        case list(), list() if len(expected) == len(found):
            for place, (left, right) in enumerate(zip(expected, found, strict=True)):
                yield from differences(left, right, f"{where}[{place}]")
        case float(), int() | float():
            if not math.isclose(expected, found, abs_tol=ABSOLUTE, rel_tol=RELATIVE):
                yield f"{where} was {expected:g}, is {found:g}"
        case _ if expected != found:
            yield f"{where} was {str(expected)[:60]}, is {str(found)[:60]}"


def written(output: Output) -> Output:
    """The output as it is read back from the file."""
    match output:
        case dict():
            return {str(name): written(value) for name, value in output.items()}
        case list() | tuple():
            return [written(value) for value in output]
        case float():
            return round(float(output), DIGITS)
    return output


def main(stages: Sequence[str]) -> int:
    before, after, refused = pinned(), {}, []
    if unknown := set(stages) - PROBES.keys():
        print(f"No stage is called {min(unknown)}. There are {', '.join(PROBES)}.", file=sys.stderr)
        return 2
    with one_thread():
        for stage, probe in PROBES.items():
            if stages and stage not in stages:
                after[stage] = before.get(stage)
                continue
            output = written(probe.run())
            pin = before.get(stage)
            wrong = problem(stage, probe, pin, output)
            if wrong and pin and pin["version"] == probe.module.VERSION:
                refused.append(wrong)
            # An unchanged output keeps all its digits in the file.
            after[stage] = {"version": probe.module.VERSION, "output": output} if wrong else pin
            if wrong and wrong not in refused:
                print(f"{stage}: version {probe.module.VERSION}")
    if refused:
        print("Nothing is written.", *refused, sep="\n", file=sys.stderr)
        return 1
    lines = (
        f"{json.dumps(stage)}: {json.dumps(pin, ensure_ascii=False)}" for stage, pin in after.items() if pin
    )
    PINS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
