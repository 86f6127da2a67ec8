"""The Dagster home that the command line and `make ui` share, so that runs of one show in the other.

`python -m docml_assets.cli.home` prepares it and prints its path.
"""

import os
import shutil
from pathlib import Path

DEFAULT_HOME = ".dagster_home"
_PACKAGE = Path(__file__).resolve().parents[1]
# beside the package in a checkout; within it in a wheel
INSTANCE_SETTINGS = (_PACKAGE.parent / "dagster.yaml", _PACKAGE / "dagster.yaml")


def prepare_dagster_home() -> Path:
    """Set DAGSTER_HOME (default ./.dagster_home) as an absolute path and put `dagster.yaml` there if it has none.

    Dagster reads `dagster.yaml` from its home only. A file that is already there is the user's and stays as it is.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or DEFAULT_HOME).expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        draft = home / f".dagster.yaml.{os.getpid()}"
        shutil.copyfile(next(path for path in INSTANCE_SETTINGS if path.is_file()), draft)
        draft.replace(home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    return home


if __name__ == "__main__":
    print(prepare_dagster_home())
