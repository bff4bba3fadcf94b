"""The authors' own running code beside ours, number by number, on a CPU.

    git clone https://github.com/realwenlongwang/drama PATH && git -C PATH checkout e7b4041
    pip install -c constraints.txt -e '.[bench]'
    python -m experiments.studies.authors --checkout=PATH --out=authors_drama.csv

Both sides have the same weights, rows and random draws. The authors' modules run as they are, in
float64 as the reference and in float32, whose error is the noise; a line is "within" where our own
error is at most three times that. Whose checkout it is, is seen from its files: Drama's, or
state-spaces/mamba's (`git clone https://github.com/state-spaces/mamba`, commit e9594ce), whose
reference recurrences are held against `mbrl_jax.ssm`. The next authors are one more file beside
`drama.py`, and an entry in `checkout.KNOWN`.
"""

import importlib
import time
from pathlib import Path

from absl import flags

from experiments.studies.authors import checkout, table
from launch import flags as launch_flags

_CHECKOUT = flags.DEFINE_string("checkout", None, "Folder of the authors' repository.")
_OUT = flags.DEFINE_string("out", None, "A .csv file for the table.")
_ONLY = flags.DEFINE_string("only", "", "Cases whose name contains this.")
_GOLDEN = flags.DEFINE_string("golden", None, "A .json file: numbers of small sizes, for tests.")


def main() -> None:
    """Print the table line by line, and its summary."""
    authors = checkout.recognise(_CHECKOUT.value)
    checkout.require_torch()
    import torch

    torch.set_num_threads(1)
    system = importlib.import_module(authors.module)
    system.connect(str(Path(_CHECKOUT.value).expanduser().resolve()))
    if _GOLDEN.value:
        from experiments.studies.authors import golden

        golden.write(Path(_GOLDEN.value), authors.name, golden.of_system(authors.name, system))
        return
    begun, lines = time.monotonic(), []
    print(table.in_columns(table.COLUMNS), flush=True)
    for case in system.CASES.cases(system):
        if _ONLY.value in case.name:
            for line in table.compare(case):
                lines.append(line)
                print(table.in_columns(line.cells()), flush=True)
    for sentence in (*table.summary(lines), f"{time.monotonic() - begun:.0f} s"):
        print(sentence)
    if _OUT.value:
        table.write_csv(Path(_OUT.value), lines)


if __name__ == "__main__":
    launch_flags.run_main(main)
