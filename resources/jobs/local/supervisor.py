"""`python -m resources.jobs.local.supervisor <folder>`: detaches from whoever started it, then runs one local job (`supervised`)."""

import os
import sys
from pathlib import Path


def main(folder: str) -> None:
    """Detach at once, before the imports, which take a while."""
    if os.fork():
        os._exit(0)
    os.setsid()
    from resources.jobs.local.supervision import supervise

    supervise(Path(folder), dict(os.environ))


if __name__ == "__main__":
    main(sys.argv[1])
