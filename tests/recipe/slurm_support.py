"""Stand-ins for SLURM's programs, which run the nodes of a job on this machine.

As SLURM with cgroups does, signals reach only the first process of each node.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

PROGRAMS = {
    "sbatch": """#!/usr/bin/env bash
nodes=$(sed -n 's/^#SBATCH --nodes=//p' "$1")
export SLURM_NNODES=$nodes SLURM_JOB_NODELIST="node[1-$nodes]"
exec bash "$1"
""",
    "srun": """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do
  SLURM_NODEID=$node "$@" &
  nodes+=($!)
done
echo "${nodes[@]}" > "$CALLS.nodes"
code=0
for node in "${nodes[@]}"; do
  wait "$node"
  status=$?
  if [ $status -gt $code ]; then code=$status; fi
done
exit $code
""",
    "scontrol": """#!/usr/bin/env bash
if [ "$1" = requeue ]; then echo "$2" >> "$CALLS"; else echo localhost; echo localhost; fi
""",
}


def install_slurm(folder: Path) -> dict[str, str]:
    """Write the programs; return an environment that finds them, and this Python's programs.

    `calls` in the folder lists the jobs that were requeued, and `calls.nodes` the process ids of
    the nodes.
    """
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    folders = [folder, Path(sys.executable).parent, os.environ["PATH"]]
    return {
        **os.environ,
        "PATH": os.pathsep.join(map(str, folders)),
        "CALLS": str(folder / "calls"),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(random.randrange(20_000)),
    }
