"""What the image of an experiment's jobs holds, compared with what user_defined_funcs.py needs of it. Nothing is built or asked.

The image is a base with torch, the trainer's requirements, and what the experiment's sagemaker.Dockerfile installs. Where that cannot be
told from the texts (another base, a script, a package whose modules have other names), nothing is said.
"""

import ast
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from docml_assets.errors import ExperimentError, Problem
from docml_assets.experiment.folder import DOCKERFILE, read_text
from docml_assets.experiment.source import Function, parse_module

# Modules of the trainer's requirements, of torch, and of all that they require; a test compares.
_HELD = """
PIL accelerate annotated_doc annotated_types anyio boto3 botocore certifi charset_normalizer click cloudpickle contourpy
coreweave_evaluations cycler datasets datasketch dateutil dill distro evaluate filelock fontTools fsspec functorch google h11 hf_xet
httpcore httpcore2 httptools httpx httpx2 huggingface_hub idna isympy jinja2 jmespath joblib kiwisolver markdown_it markupsafe matplotlib mdurl
mpl_toolkits mpmath multiprocess narwhals networkx numpy opentelemetry packaging pandas platformdirs prometheus_client psutil pyarrow
pydantic pydantic_core pygments pylab pyparsing regex requests rich s3transfer safetensors scipy setuptools shellingham six sklearn
sniffio starlette sympy threadpoolctl tokenizers torch torchgen tqdm transformers truststore typer typing_extensions
typing_inspection urllib3 uvicorn uvloop wandb xxhash yaml
"""
HELD = frozenset(_HELD.split())
# The base's own: AWS's bring these, others may.
PERHAPS_HELD = frozenset(
    {"torchvision", "torchaudio", "docml_contract", "docml_trainer", "pip", "pkg_resources", "wheel"}
)
# Packages whose modules have other names.
MODULES = {
    **{"scikit-learn": "sklearn", "pillow": "PIL", "beautifulsoup4": "bs4", "pyyaml": "yaml", "python-dateutil": "dateutil"},
    **{"opencv-python": "cv2", "opencv-python-headless": "cv2", "python-docx": "docx", "python-pptx": "pptx", "pymupdf": "fitz"},
    **{"pdfminer-six": "pdfminer", "faiss-cpu": "faiss", "umap-learn": "umap", "levenshtein": "Levenshtein", "attrs": "attr"},
}  # fmt: skip
OWN_STEP = "process_func"  # runs on the orchestrator's side
DOWNLOADS = ("from_pretrained", "snapshot_download", "hf_hub_download", "load_dataset")
_PIP = re.compile(r"(?:^|\s)(?:pip3?|uv pip|python3? -m pip)\s+install\s+(.*)")
_WITH_VALUE = frozenset(
    {"-r", "--requirement", "-c", "--constraint", "-i", "--index-url", "--extra-index-url", "-f", "-t"}
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?=$|[\[<>=!~; ])")


def image_problems(source: str, path: str, folder: Path) -> list[Problem]:
    """Modules that the experiment's functions import in jobs and the image lacks, as far as that can be known."""
    try:
        imports = dict(reversed([*_job_imports(parse_module(source))]))
    except (SyntaxError, ValueError):
        return []
    needed = {name: line for name, line in imports.items() if name not in sys.stdlib_module_names | HELD | PERHAPS_HELD}
    installed = installed_packages(folder) if needed else frozenset()
    if installed is None:
        return []
    provided = {package: modules_of(package) for package in installed}
    lacking = {name: line for name, line in needed.items() if not any(name in found for found in provided.values())}
    if any(not found & (needed.keys() | _known(package)) for package, found in provided.items()):
        return []  # a package of which nothing is imported by its name may be the one with the module
    place = f"{DOCKERFILE} of the experiment" if installed or (folder / DOCKERFILE).exists() else f"a {DOCKERFILE}"
    return [
        Problem(
            path,
            line,
            f"import {name}, which the jobs' image lacks",
            f"modules of the trainer's requirements, of its base, or of what {DOCKERFILE} installs",
            f"install it in {place} (RUN pip install --no-cache-dir …), then docml image build and push",
        )
        for name, line in sorted(lacking.items(), key=lambda item: item[1])
    ]


def _job_imports(module: ast.Module) -> Iterator[tuple[str, int]]:
    """(top-level module, line) of what jobs import: everywhere but in process_func, in `try` and under TYPE_CHECKING."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function) and node.name == OWN_STEP:
            continue
        if isinstance(node, ast.Try) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno
        waiting += ast.iter_child_nodes(node)


def installed_packages(folder: Path) -> frozenset[str] | None:
    """Normalized names of the packages that the folder's sagemaker.Dockerfile installs; None where its text does not tell."""
    path = folder / DOCKERFILE
    if not path.is_file():
        return frozenset()
    try:
        text = read_text(path)
    except ExperimentError:
        return None
    found: set[str] = set()
    for line in re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword.upper() == "FROM" and "DOCML_BASE" not in rest:
            return None
        if keyword.upper() in ("COPY", "ADD"):
            return None
        if keyword.upper() != "RUN":
            continue
        for command in re.split(r"&&|;|\|\|", rest):
            pip = _PIP.search(command)
            if pip is None:
                if not re.match(r"\s*(apt-get|apt|rm|python3? -c|echo|mkdir|chmod|ln|true)\b", command):
                    return None
                continue
            named = _pip_arguments(pip[1], folder)
            if named is None:
                return None
            found |= named
    return frozenset(found)


def _pip_arguments(arguments: str, folder: Path) -> set[str] | None:
    """The packages that a `pip install` names; None if one cannot be told."""
    try:
        words = shlex.split(arguments)
    except ValueError:
        return None
    found = set()
    while words:
        word = words.pop(0)
        if word in ("-r", "--requirement"):
            return None
        if word in _WITH_VALUE:
            words = words[1:]
        elif not word.startswith("-"):
            name = _NAME.match(word)
            if name is None or "/" in word or "@" in word:
                return None
            found.add(_normalized(name[0]))
    return found


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules_of(package: str) -> frozenset[str]:
    """The modules of a package: as they are here if it is installed, else by its name."""
    return _known(package) | {MODULES.get(package, package.replace("-", "_"))}


def _known(package: str) -> frozenset[str]:
    return _modules_here().get(package, frozenset())


@cache
def _modules_here() -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            found.setdefault(_normalized(package), set()).add(module)
    return {package: frozenset(modules) for package, modules in found.items()}


def download_problems(source: str, path: str, folder: Path) -> list[Problem]:
    """Downloads from a hub, for jobs whose network has no way there. A sagemaker.Dockerfile that sets HF_HUB_OFFLINE brings the files."""
    dockerfile = folder / DOCKERFILE
    try:
        module = parse_module(source)
        if dockerfile.is_file() and re.search(r"HF_HUB_OFFLINE\W+1", read_text(dockerfile)):
            return []
    except (SyntaxError, ValueError, ExperimentError):
        return []
    remedy = (
        f"put the files into the image: download them in {DOCKERFILE} (RUN python -c …) and write ENV HF_HUB_OFFLINE=1; or set "
        "DOCML_SUBNETS_INTERNET = true if the subnets do have a way out"
    )
    found = [node for node in ast.walk(module) if isinstance(node, ast.Call) and _downloads(node)]
    return [
        Problem(
            path,
            node.lineno,
            f"{ast.unparse(node)[:80]}, a download",
            "files that jobs have without internet access",
            remedy,
        )
        for node in sorted(found, key=lambda node: node.lineno)
    ]


def _downloads(call: ast.Call) -> bool:
    """Whether a call names something of a hub."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    named = first.value if isinstance(first, ast.Constant) else None
    is_local = any(keyword.arg == "local_files_only" for keyword in call.keywords)
    return called in DOWNLOADS and isinstance(named, str) and not named.startswith(("/", ".")) and not is_local
