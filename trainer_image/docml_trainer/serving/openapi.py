"""The server's OpenAPI description, with the files that its model takes."""

from typing import Any

from docml_contract.file_names import is_optional, is_pattern
from docml_contract.manifests import ModelContext
from docml_trainer.serving.documents import MAX_DOCUMENTS

REFUSALS = {
    "400": "something is missing or malformed; the error names it",
    "413": "the request is too large",
    "415": "the content type is not application/json",
    "422": "the experiment's functions do not accept the document: they raise, return None, hang, or it does not fit the model",
    "500": "the experiment's functions, or the server, are at fault",
    "503": "the model is being loaded, or too many documents wait",
}


def describe(context: ModelContext, *, units: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1. units: whether an answer tells those about the document's units, too."""
    content = {
        "oneOf": [
            {"type": "string"},
            _object({"base64": {"type": "string", "contentEncoding": "base64"}}, ["base64"]),
            _object({"s3": {"type": "string", "pattern": "^s3://"}}, ["s3"]),
        ]
    }
    names = context.production_files
    files: dict[str, Any] = {
        "type": "object",
        "description": f"file names and contents: {', '.join(names)}",
        "required": [n for n in names if not is_pattern(n) and not is_optional(n, context.optional_files)],
        "additionalProperties": content,
    }
    document = _object({"artifact_guid": {"type": "string"}, "files": files}, ["files"])
    number = {"type": "number", "minimum": 0, "maximum": 1}
    said: dict[str, Any] = {
        "label": {"type": "string", "enum": list(context.labels)},
        "probability": number,
        "probabilities": {"type": "object", "additionalProperties": number},
    }
    answer_properties: dict[str, Any] = {
        **said,
        "accepted": {"type": ["boolean", "null"]},
        "experiment": {"type": "string"},
        "run": {"type": "integer"},
        "model": {"type": "string"},
        "torchscript_sha256": {"type": "string"},
    }
    if units:
        unit = _object({"unit": {"type": "string"}, **said, "error": {"type": "string"}}, ["unit"])
        answer_properties["units"] = {"type": "array", "items": unit}
    answer = _object(answer_properties, list(answer_properties))
    error = _object({"error": {"type": "string"}}, ["error"])
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{context.experiment}: {context.model_name}", "version": str(context.run)},
        "paths": {
            "/ping": {
                "get": {"responses": {"200": {"description": "loaded and verified"}, "503": {"description": "loading"}}}
            },
            "/invocations": {
                "post": {
                    "requestBody": {"required": True, "content": _json(_one_or_many(document, MAX_DOCUMENTS))},
                    "responses": {
                        "200": {"description": "one answer per document", "content": _json(_one_or_many(answer, None))},
                        **{status: {"description": text, "content": _json(error)} for status, text in REFUSALS.items()},
                    },
                }
            },
            "/metrics": {"get": {"responses": {"200": {"description": "Prometheus' text format"}}}},
        },
    }


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _one_or_many(schema: dict[str, Any], most: int | None) -> dict[str, Any]:
    many = {"type": "array", "items": schema, "minItems": 1, **({"maxItems": most} if most else {})}
    return {"oneOf": [schema, many]}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
