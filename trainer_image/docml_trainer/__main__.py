"""`python -m docml_trainer prepare|train|infer|predict|serve`: the entry point of every job.

Exit codes: 0 done, 1 the job failed (its reason lies in the failure file), 2 usage, 143 stopped by SIGTERM.
"""

import atexit
import gc
import importlib
import os
import signal
import sys
import traceback

from docml_contract.base import ContractError
from docml_contract.log_lines import take_nonce
from docml_contract.names import RAISE_INSTEAD
from docml_trainer.container import COMMANDS, Folders, StopSignal
from docml_trainer.errors import TrainerError


def main(arguments: list[str]) -> int:
    """Run one command, whose module is imported only now."""
    if len(arguments) != 1 or arguments[0] not in COMMANDS:
        print(f"usage: python -m docml_trainer {'|'.join(COMMANDS)}", file=sys.stderr)
        return 2
    take_nonce(os.environ)
    StopSignal()  # at once: the first process of a container ignores signals for which it has no handler
    folders = Folders.from_environment(arguments[0])
    try:
        run_command(folders)
    except (TrainerError, ContractError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        folders.fail(str(error))
        return 1
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code:  # whoever ends it so has left the reason
            raise
        print(detail := traceback.format_exc(), file=sys.stderr, flush=True)
        folders.fail(
            f"{type(error).__name__}: the experiment's code, or a library that it uses, ended the job; {RAISE_INSTEAD}",
            detail,
        )
        return 1
    except Exception as error:
        detail = traceback.format_exc()
        print(detail, file=sys.stderr, flush=True)
        folders.fail(f"{type(error).__name__}: {error}", detail)
        return 1
    return 0


def run_command(folders: Folders) -> None:
    """Do what the job is there for. A process that only launches a training's processes does not import what they need."""
    if folders.command == "train":
        launch = importlib.import_module("docml_trainer.training.launch")
        launch.main(folders, lambda: importlib.import_module("docml_trainer.train").train(folders))
    else:
        importlib.import_module(f"docml_trainer.{folders.command}").main(folders)


if __name__ == "__main__":
    if sys.argv[1:] != ["serve"]:  # which ends by itself
        # An interrupt from outside kills, as other signals do: a KeyboardInterrupt is then the experimenter's own.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Otherwise libraries are unloaded object by object at the end, which takes torch and transformers a second.
    atexit.register(gc.freeze)
    sys.exit(main(sys.argv[1:]))
