"""Find the rank of this process among the processes that train one run, before torch.distributed connects them."""

from __future__ import annotations

import os
import sys

from positron.system.errors import UserError

# Lightning finds the other machines itself if one of these variables is set by a launcher: SLURM's srun, LSF, MPI
_SET_BY_LAUNCHERS = ("SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# the variables in which Lightning looks for launchers, for the place of this process, and for the first process
_OF_PLACES = (
    *("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "SLURM_NTASKS"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID", "LSB_JOBID"),
    *("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
STARTER = "POSITRON_STARTER"  # the id of the process that has started the others of its run on this machine
STARTERS_PRECISION = "POSITRON_STARTERS_PRECISION"  # the precision in which that process trains


def is_torchrun() -> bool:
    """Tell whether torchrun has started this process.

    Another program may have set RANK, which torchrun sets, too. Lightning ignores RANK without torchrun.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ


def first_rank(processes: int) -> bool:
    """Tell whether this process is the first of all processes that train the same model together.

    The first process prints and writes for all of them. `processes` is the number of processes. A single process is always the
    first, even if a container, a notebook, a launcher or SLURM has set rank variables for another program. Of several
    processes that torchrun has started, the first is the one with RANK=0 in its environment. Without torchrun, the first
    process is the one whose LOCAL_RANK, NODE_RANK and SLURM_PROCID are 0 or not set. RANK takes precedence, because
    torchrun may number the machines in another order than SLURM.
    """
    if processes == 1:
        return True
    if is_torchrun():
        return os.environ.get("RANK") == "0"
    return all((os.environ.get(key) or "0") == "0" for key in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def local_rank(processes: int) -> int:
    """Return the number, from 0, of this process among the processes of the training on this machine.

    The number is also the index of the GPU that the process uses. It is read from the environment: torchrun and Lightning set
    LOCAL_RANK, and SLURM sets SLURM_LOCALID. `processes` is the number of processes of the training. If it is 1, the result is
    always 0.
    """
    if processes == 1:
        return 0
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def started_together() -> int:
    """Return the number of processes that a launcher has started together with this one; 1 if there is no launcher."""
    names = ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]  # srun sets the first; sbatch does not
    numbers = [os.environ.get(name, "") for name in (*names, *(["WORLD_SIZE"] if is_torchrun() else []))]
    return max((int(number) for number in numbers if number.isdecimal()), default=1)


def precision_of_starter(processes: int) -> str | None:
    """Return the precision of the process that has started this one for the same training; None if there is no such process.

    `processes` is the number of processes of the training.
    """
    starter = os.environ.get(STARTER, str(os.getpid()))
    return os.environ.get(STARTERS_PRECISION) if processes > 1 and starter != str(os.getpid()) else None


def refuse_without_script(processes: int) -> None:
    """Raise UserError if Lightning would have to start a program again that is not in a file.

    Without a launcher such as torchrun, Lightning starts further processes of a training (`processes` is the number of all) by
    starting the program of this process again. This is impossible in a notebook, at a prompt and with `python -c`.
    """
    main = sys.modules["__main__"]
    has_script = hasattr(main, "__file__") and not hasattr(sys, "ps1") and not sys.flags.interactive
    is_launched = any(name in os.environ for name in ("LOCAL_RANK", *_SET_BY_LAUNCHERS))
    if processes > 1 and not has_script and not is_launched:
        raise UserError(
            f"a training in {processes} processes needs a program in a file, which is started again for each further process; "
            "it cannot begin in a notebook, at a prompt or with python -c: write the call to a file and run this file, or give "
            "device.devices=1"
        )


def variables_of_places() -> str:
    """Return the variables of the environment from which Lightning reads the place of this process: `RANK=0, LOCAL_RANK=0`."""
    return ", ".join(f"{name}={os.environ[name]}" for name in _OF_PLACES if name in os.environ)


def refuse_unknown_machines(machines: int) -> None:
    """Raise UserError if a training on several machines lacks the address of the first machine or this machine's number.

    `machines`: the number of machines. The address must be given in the environment variables MASTER_ADDR and MASTER_PORT.
    Without it, each process would look for the first machine at 127.0.0.1, that is, on its own machine, and wait forever. The
    number of this machine must be given in NODE_RANK. With torchrun, NODE_RANK is not needed, because torchrun sets RANK, the
    number of the process. Under SLURM, LSF or MPI, nothing must be given, because Lightning finds the machines itself.
    """
    if machines == 1 or any(name in os.environ for name in _SET_BY_LAUNCHERS):
        return
    needed = ("MASTER_ADDR", "MASTER_PORT", *(() if is_torchrun() else ("NODE_RANK",)))
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"device.num_nodes={machines} needs {', '.join(missing)} in the environment: start the command with torchrun, or "
            "set MASTER_ADDR (the address of the first machine), MASTER_PORT (a free port there) and NODE_RANK (the number of "
            "this machine, from 0) on each machine"
        )
