"""The learning rate over a stage, and the running log that goes into training.json."""

import math
import sys
import time
from dataclasses import dataclass, field

_FLOOR = 0.03


def cosine(step: int, total: int, *, warm: int = 50) -> float:
    """Share of the peak rate: linear warm-up, then a half cosine to 3 %."""
    fall = 0.5 * (1 + math.cos(math.pi * step / total))
    return min(1.0, (step + 1) / warm) * (_FLOOR + (1 - _FLOOR) * fall)


@dataclass
class Log:
    """Lines of one stage: running means, written to the screen and kept.

    Attributes:
        stage: Name of the stage.
        lines: One dict per line: step, CPU seconds, means since the stage began.
    """

    stage: str
    lines: list[dict[str, float]] = field(default_factory=list)
    _means: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.process_time)

    def note(self, **values: float) -> None:
        """Fold these values into their running means (weight .03)."""
        for name, value in values.items():
            old = self._means.get(name, value)
            self._means[name] = 0.97 * old + 0.03 * value

    def write(self, step: int) -> None:
        """Keep and print the means of this step."""
        line = {
            "step": float(step),
            "cpu_s": round(time.process_time() - self._began, 1),
        }
        line |= {name: round(value, 3) for name, value in sorted(self._means.items())}
        self.lines.append(line)
        sys.stdout.write(f"{self.stage} {line}\n")
        sys.stdout.flush()
