"""How a rank of the tests leaves, and a launcher that makes an example's ranks leave the same way.

After ``destroy_process_group`` gloo's threads live on (torch 2.13). One that frees its last tensor
while the interpreter is being torn down asks for a lock that no longer exists, and the process
aborts with "terminate called without an active exception" although all its work is done
(pytorch issue 190489, pull request 179291). It is rare, and busy machines see it more often.
So ranks skip the tear-down; an error before that point still ends them with its own exit code.

    torchrun --nproc_per_node 2 tests/ranks.py EXAMPLE.py [ARGUMENT ...]
"""

import os
import runpy
import sys
from typing import NoReturn

import torch.distributed as dist


def leave() -> NoReturn:
    """Ends this rank with exit code 0, once all ranks have come here."""
    if dist.is_initialized():
        dist.barrier()  # a rank that leaves early takes its sockets from the others' last exchange
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
    leave()
