"""What is installed beside docml, for those who must know: `python deploy/dependencies.py licences | sbom`.

The SBOM is CycloneDX 1.6, in JSON; both read the metadata of the installed distributions and need no network.
"""

import json
import sys
from importlib.metadata import Distribution, distributions
from typing import Any

UNKNOWN = "not declared"


def installed() -> list[Distribution]:
    """Every distribution once, by name."""
    found = {each.name.lower().replace("_", "-"): each for each in distributions() if each.name}
    return [found[name] for name in sorted(found)]


def licence(distribution: Distribution) -> str:
    """The SPDX expression, else what the classifiers say, else the first line of the licence field."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classified = [
        each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier", []) if each.startswith("License ::")
    ]
    classified = [each for each in classified if each != "OSI Approved"]
    return " AND ".join(classified) or (metadata.get("License") or "").strip().partition("\n")[0][:100] or UNKNOWN


def component(distribution: Distribution) -> dict[str, Any]:
    """One entry of the SBOM."""
    name = distribution.name.lower().replace("_", "-")
    return {
        "type": "library",
        "name": distribution.name,
        "version": distribution.version,
        "bom-ref": f"pkg:pypi/{name}@{distribution.version}",
        "purl": f"pkg:pypi/{name}@{distribution.version}",
        "licenses": [{"license": {"name": licence(distribution)}}],
    }


def sbom() -> dict[str, Any]:
    """The whole SBOM. It names no time and no serial number: the same installation gives the same bytes."""
    parts = [component(each) for each in installed()]
    docml = next((part for part in parts if part["name"] == "docml"), None)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**docml, "type": "application"}} if docml else {},
        "components": [part for part in parts if part is not docml],
    }


def main(what: str) -> None:
    if what == "sbom":
        print(json.dumps(sbom(), indent=2))
    elif what != "licences":
        print(f"found {what!r}; expected licences or sbom", file=sys.stderr)
        sys.exit(2)
    else:
        for each in installed():
            print(f"{each.name}=={each.version}\t{licence(each)}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
