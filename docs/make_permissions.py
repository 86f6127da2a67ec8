"""Writes docs/permissions.md from the policies in deploy/: `python docs/make_permissions.py`."""

from pathlib import Path
from typing import Any

import cfnlint.decode

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ("cloudformation.yaml", "experiment-role.yaml", "services.yaml")
HEAD = """# What each AWS role may do

Made from the policies of deploy/ by `python docs/make_permissions.py`; a test compares. Everything that is not listed is denied.
"""


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def written(value: Any) -> str:
    """A resource as the template names it, its functions left out."""
    if isinstance(value, dict):
        ((_, inner),) = value.items()
        return ".".join(map(written, inner)) if isinstance(inner, list) else str(inner)
    return str(value)


def policies(template: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Role -> statements, those of managed policies included."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, resource in template["Resources"].items():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::IAM::Role":
            for policy in properties.get("Policies", []):
                found.setdefault(name, []).extend(policy["PolicyDocument"]["Statement"])
        elif resource["Type"] == "AWS::IAM::ManagedPolicy":
            condition = f" (where {resource['Condition']})" if "Condition" in resource else ""
            for role in properties["Roles"]:
                statements = properties["PolicyDocument"]["Statement"]
                found.setdefault(written(role), []).extend(
                    {**statement, "Sid": f"{statement['Sid']}{condition}"} for statement in statements
                )
    return found


def render() -> str:
    """The page."""
    parts = [HEAD]
    for file in TEMPLATES:
        template, _ = cfnlint.decode.decode(str(ROOT / "deploy" / file))
        for role, statements in policies(template).items():
            parts += [f"## {role} of deploy/{file}\n", "| what for | actions | on | if |", "| --- | --- | --- | --- |"]
            for statement in statements:
                actions = ", ".join(f"`{action}`" for action in as_list(statement["Action"]))
                resources = ", ".join(f"`{written(each)}`" for each in as_list(statement["Resource"]))
                conditions = "; ".join(
                    f"{key} {operator} {', '.join(map(written, as_list(value)))}"
                    for operator, keys in statement.get("Condition", {}).items()
                    for key, value in keys.items()
                )
                parts.append(f"| {statement['Sid']} | {actions} | {resources} | {conditions} |")
            parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "permissions.md").write_text(render(), encoding="utf-8")
