"""Processes that share the rows come to what one comes to that has them all, and all of them to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch

from streamcl.core.reduce import ALONE, EVERY

TOLERANCE = 1e-10  # of the largest
ROUNDING = 1e-8  # where eigenvalues as small as a ten-millionth of the largest are told apart
ROUNDED = {"units that are off"}
FEW = ["defaults", "exact, on a network"]
MORE = ["defaults", "labels", "units that are off", "kronecker", "full", "l-bfgs", "exact", "revisits", "drift", "dropout"]


def together(size: int, names: list[str], out: Path) -> None:
    """So many processes go through these cases."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = str(Path(__file__).with_name("ranks.py"))
    commands = [[sys.executable, script, str(rank), str(size), str(out), *names] for rank in range(size)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            _, said = process.communicate()
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()
            process.wait()


def check(name: str, every: list[ranks.Found]) -> None:
    """All the same and, but for who draws for their own rows, what one process comes to."""
    first, alone = every[0], ranks.CASES[name](ALONE)
    for key, expected in alone.items():
        for other in every[1:]:
            assert np.array_equal(first[key], other[key]), (name, key)
        if name not in ranks.DRAWS_ITS_OWN:
            far = (ROUNDING if name in ROUNDED else TOLERANCE) * np.abs(expected).max()
            np.testing.assert_allclose(first[key], expected, rtol=0, atol=far, err_msg=f"{name}: {key}")
    assert np.isfinite(first["theta"]).all()


@pytest.mark.campaign
def test_two_processes_that_share_the_rows_learn_what_one_learns(tmp_path: Path) -> None:
    together(2, FEW, tmp_path)
    for name in FEW:
        check(name, [dict(np.load(tmp_path / f"{name}.{rank}.npz", allow_pickle=False)) for rank in range(2)])


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_two_and_four_processes_learn_what_one_learns_in_every_case(tmp_path: Path) -> None:
    for size, names in ((2, [name for name in ranks.CASES if name not in FEW]), (4, MORE)):
        out = tmp_path / str(size)
        out.mkdir()
        together(size, names, out)
        for name in names:
            check(name, [dict(np.load(out / f"{name}.{rank}.npz", allow_pickle=False)) for rank in range(size)])


def test_one_process_alone_has_nothing_to_add() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert ALONE.leads
    assert ALONE.part(3) == EVERY
    assert ALONE.sum(values) is values
    assert ALONE.whole(values, 3) is values
    assert torch.equal(ALONE.mean(values, 3), values.mean())
    assert ALONE.any(True)
    assert not ALONE.any(False)
