"""Two processes of one group, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import lrp

START = """
import sys
import torch
import torch.distributed
import lrp

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
about = torch.load(f"{folder}/shared.pt", weights_only=False)
"""
END = """
torch.save(result, f"{folder}/result.{rank}")
torch.distributed.destroy_process_group()
"""


def two_processes(folder: Path, script: str, *about: object) -> list[Any]:
    """The ``result`` of each of them, where ``script`` finds its ``rank``, and what it is ``about``.

    They meet at a file: of the ports that launchers choose, two at the same time may choose the same.
    """
    (folder / "script.py").write_text(START + script + END)
    torch.save(about, folder / "shared.pt")
    root = Path(lrp.__file__).parent.parent
    folders = [root, root / "tests", root / "tests" / "engine", *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, folder / "script.py", folder]
    running = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"result.{rank}", weights_only=False) for rank in range(2)]
