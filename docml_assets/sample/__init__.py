"""The bundled documents and label database: what an installation reads when it is told of no others."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PRODUCTION_FILES = FOLDER / "artifacts"
LABELS_DATABASE = FOLDER / "labels.sqlite"
LABELS_URL = f"sqlite:///{LABELS_DATABASE}"
