"""context.json of a deployment folder: what a model's answer needs to know besides its files."""

from typing import Any

from pydantic import Field

from docml_contract.base import Document


class ModelContext(Document):
    """The model that a deployment folder holds, and how its documents become its inputs."""

    schema_version: int = 1
    experiment: str
    run: int
    model_name: str
    model_names: tuple[str, ...] = Field(description="all models of the run: more than one prefix their columns")
    labels: tuple[str, ...] = Field(description="in the order of the model's outputs")
    own_hyperparameters: dict[str, Any] = Field(description="the experimenter's own, all that encode_data sees")
    production_files: tuple[str, ...] = Field(
        description="FILES_FROM_PROD: names and patterns of what a document brings"
    )
    model_input_files: tuple[str, ...] = Field(description="names and patterns of the files that encode_data gets")
    optional_files: tuple[str, ...] = Field((), description="FILES_OPTIONAL: those that a document may lack")
    has_process_func: bool = Field(description="whether files are made of what a document brings")
