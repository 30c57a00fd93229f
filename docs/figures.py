"""The figures of the README and the documentation: `make figures`.

Each figure is made by the code of the page that shows it, so that what a page says is
what drew its picture. Written to docs/figures are two PNGs of each, on light and dark
paper, and data.json: the numbers behind all of them, to five significant digits, with
the text for those who do not see them. The tests run the pages and compare.

    python docs/figures.py            every figure
    python docs/figures.py lens flow  only these
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from time import perf_counter

import numpy as np
import xarray as xr
from PIL import Image

from mechvlm.viz import DARK, LIGHT, Figure
from mechvlm.viz.palette import Theme

HERE = Path(__file__).parent
TO = HERE / "figures"
DIGITS = 5
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

# Figure -> the page whose code makes it, and what the code calls it.
FIGURES = {
    "patching": ("analyses/activation-patching", "figure"),
    "overlay": ("analyses/activation-patching", "over"),
    "modality-gap": ("analyses/modality-gap", "figure"),
    "cross-patching": ("analyses/cross-patching", "figure"),
    "back-patching": ("analyses/holding", "figure"),
    "cumulative-knockout": ("analyses/cumulative-knockout", "figure"),
    "token-ablation": ("analyses/token-ablation", "figure"),
    "logit-lens": ("analyses/logit-lens", "figure"),
    "answer-track": ("analyses/answer-track", "figure"),
    "knockout": ("analyses/attention-knockout", "figure"),
    "attention-shares": ("analyses/attention-shares", "figure"),
    "attention-into": ("analyses/attention-shares", "into"),
    "attention-hits": ("analyses/attention-maps", "figure"),
    "attention-rollout": ("analyses/attention-rollout", "figure"),
    "caption-knockout": ("analyses/caption-knockout", "figure"),
    "compressed-context": ("analyses/compressed-context", "figure"),
    "attribution": ("analyses/attribution", "figure"),
    "paths": ("analyses/path-patching", "figure"),
    "attribution-patching": ("analyses/attribution-patching", "figure"),
    "circuit-overlap": ("analyses/circuit-overlap", "figure"),
    "circuit": ("analyses/circuits", "figure"),
    "flow": ("analyses/flow-graph", "figure"),
    "lens": ("pictures", "walk"),
    "top-tokens": ("pictures", "best"),
    "tokens": ("pictures", "on_words"),
    "attention": ("pictures", "heads"),
    "attention-from-last": ("pictures", "from_last"),
    "compare": ("pictures", "sides"),
}


def main() -> None:
    """Make the figures that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help="only these")
    wanted = parser.parse_args().name or list(FIGURES)
    kept = {} if set(wanted) == set(FIGURES) else read()
    for page in dict.fromkeys(FIGURES[name][0] for name in wanted):
        began = perf_counter()
        made = run(page)
        print(f"{page}: {perf_counter() - began:.1f} s")
        for name in wanted:
            if FIGURES[name][0] == page:
                figure = made[FIGURES[name][1]]
                assert isinstance(figure, Figure), (
                    f"{name}: {page} made no figure of it"
                )
                for theme in (LIGHT, DARK):
                    keep(figure, TO / f"{name}-{theme.name}.png", theme)
                kept[name] = {"about": figure.alt, "data": numbers(figure.data)}
    write({name: kept[name] for name in FIGURES if name in kept})


def keep(figure: Figure, path: Path, theme: Theme) -> None:
    """Save a picture, without the alpha channel, of which it makes no use."""
    with Image.open(figure.save(path, theme=theme)) as picture:
        picture.convert("RGB").save(path, optimize=True)


def run(page: str) -> dict[str, object]:
    """What the Python on a page has made, by name."""
    text = (HERE / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in BLOCK.finditer(text):
        above = "\n" * text.count("\n", 0, block.start(1))  # an error names its line
        exec(compile(above + block[1], f"docs/{page}.md", "exec"), names)
    return names


def numbers(data: xr.DataArray | xr.Dataset) -> dict[str, object]:
    """Dimensions and rounded values of every variable that is made of numbers.

    Whole numbers and words follow from them, and may change places where two of them
    are as good as equal.
    """
    variables = {"": data} if isinstance(data, xr.DataArray) else data.data_vars
    return {
        str(name): {
            "dims": [str(dim) for dim in variable.dims],
            "values": rounded(variable.values),
        }
        for name, variable in variables.items()
        if variable.dtype.kind == "f"
    }


def rounded(values: np.ndarray) -> object:
    """Values as JSON has them: to five significant digits, nan as null."""
    flat = [
        None if np.isnan(value) else float(f"{value:.{DIGITS}g}")
        for value in values.ravel().tolist()
    ]
    return np.array(flat, dtype=object).reshape(values.shape).tolist()


def read() -> dict[str, object]:
    """What was written before, by figure."""
    return json.loads((TO / "data.json").read_text(encoding="utf-8"))["figures"]


def write(kept: dict[str, object]) -> None:
    """Keep the numbers and texts, one figure a line."""
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(figure, ensure_ascii=False)}"
        for name, figure in kept.items()
    )
    (TO / "data.json").write_text(
        f'{{"digits": {DIGITS}, "figures": {{\n{lines}\n}}}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
