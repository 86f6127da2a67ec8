"""What else makes a training on a GPU fast: layers that are compiled and replayed, and the largest micro-batch that fits.

Layers are compiled one kind at a time: all layers of a model share one graph, with lengths that may vary in it. On a CPU none of this
happens unless asked for, so that results there stay what they are, to the bit.
"""

import time
from collections.abc import Callable

import torch
from accelerate.utils import gather_object

from docml_contract.hyperparameters import DEFAULT_BATCH, TrainingHyperparameters
from docml_trainer.container import is_out_of_memory
from docml_trainer.data.classifier import Batch, Classifier, find_logits
from docml_trainer.errors import TrainingError
from docml_trainer.training.packing import Packing
from docml_trainer.training.processes import Processes

MAX_GRAPHS = 8  # of a layer; further shapes would be computed without compilation
# A training that takes less is not compiled by `auto`: compilation takes up to 40 seconds, and saves up to a third.
COMPILATION_PAYS_AFTER_SECONDS = 180.0
MEMORY_SHARE = 0.85  # of what is free: the rest is for fragments, and for what libraries take


def choose_batch(
    classifier: Classifier,
    settings: TrainingHyperparameters,
    processes: Processes,
    longest_documents: Callable[[int], Batch],
    share: int,
) -> int:
    """Documents that every process takes at a time, of its `share` of an optimizer step."""
    if settings.train_batch_size != "auto":
        return settings.train_batch_size
    if processes.device.type != "cuda":
        return min(DEFAULT_BATCH, share)

    def peak_of(documents: int) -> int:
        torch.cuda.synchronize(processes.device)
        torch.cuda.reset_peak_memory_stats(processes.device)
        before = torch.cuda.memory_allocated(processes.device)
        forward_and_backward(classifier, longest_documents(documents))
        return torch.cuda.max_memory_allocated(processes.device) - before

    try:
        found = largest_batch(peak_of, free_memory(classifier.module, processes.device), share)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        found = 1
    found = min(gather_object([found]))
    processes.say(f"train_batch_size = auto: {found} documents per micro-batch, {share} per step and process")
    return found


def compile_if_asked(
    classifier: Classifier,
    settings: TrainingHyperparameters,
    processes: Processes,
    largest: Callable[[], Batch],
    micro_batches: int,
) -> bool:
    """Compile the model where `compile` asks for it, and return whether it is. TrainingError if it is true and cannot be done.

    largest: makes a batch as large as any of the `micro_batches` to come. How long it takes says whether compilation pays, and it is what
    is compiled first.
    """
    if not settings.compile or (settings.compile == "auto" and processes.device.type != "cuda"):
        return False
    batch = largest()
    if settings.compile == "auto":
        seconds = seconds_of(lambda: forward_and_backward(classifier, batch), processes.device) * micro_batches
        if max(gather_object([seconds])) < COMPILATION_PAYS_AFTER_SECONDS:
            return False
    modules = compile_layers(classifier.module)
    try:
        forward_and_backward(classifier, batch)
    except Exception as error:  # compilers fail in as many ways as there are models
        forget_compilation(classifier.module)
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        if settings.compile is True:
            raise TrainingError(
                f"compile = true: the model could not be compiled: {reason} (leave compile out)"
            ) from error
        processes.say(f"The model is not compiled: {reason}")
        return False
    processes.say(f"Compiled {modules} modules; a graph serves all of one kind")
    return True


def record_if_possible(
    classifier: Classifier,
    packing: Packing,
    processes: Processes,
    longest_documents: Callable[[int, bool], Batch],
    documents: int,
) -> None:
    """Replay the packed layers' work, of micro-batches of so many documents, where a GPU can: a recording is of one process' gradients."""
    if processes.device.type != "cuda" or processes.count > 1 or processes.settings.gradient_checkpointing:
        return
    packing.record(documents)
    try:
        forward_and_backward(classifier, longest_documents(documents, True))
    except Exception as error:  # memory, or a kernel that cannot be recorded
        packing.recordings = None
        processes.say(f"The layers' work is not recorded: {type(error).__name__}: {error}")
        return
    processes.say("Recorded the layers' work; training replays it")


def repeated_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of the longest stack of equal ones; none where there is no stack."""
    stacks = [
        list(module)
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) > 1
        and len({type(layer) for layer in module}) == 1
        and any(True for _ in module[0].parameters())
    ]
    return max(stacks, key=len, default=[])


def compile_layers(model: torch.nn.Module, backend: str = "inductor") -> int:
    """Compile the repeated layers, or the whole of a model without any. Returns how many modules are compiled.

    A graph of a layer serves all of them. What varies in shape is found at the second shape, and one graph for all shapes follows;
    after MAX_GRAPHS graphs no further one is made.
    """
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    modules = repeated_layers(model) or [model]
    for module in modules:
        module.compile(backend=backend)
    return len(modules)


def forget_compilation(model: torch.nn.Module) -> None:
    """The modules as they were."""
    for module in model.modules():
        module._compiled_call_impl = None


def forward_and_backward(classifier: Classifier, batch: Batch) -> None:
    """What a micro-batch asks of a model in training, without any trace in its gradients, its buffers or the random numbers to come."""
    model = classifier.module
    device = next(model.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()  # dropout keeps masks, and checkpointing drops activations, in training only
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            output = classifier(batch, with_labels=False)
            logits = find_logits(output)
            assert logits is not None, "check_model has seen logits"
            logits.float().sum().backward()
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """How long a work takes, the second time that it is done."""
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - began


def largest_batch(peak_of: Callable[[int], int], available: int, share: int) -> int:
    """Documents a micro-batch, at most `share`, so that activations stay below `available` bytes; equal micro-batches.

    peak_of: bytes that so many of the longest documents take on their way forward and back. They grow with the documents, evenly.
    """
    few, more = (min(number, share) for number in (2, 8))
    if few == more:
        return share
    low, high = peak_of(few), peak_of(more)
    slope = max(1.0, (high - low) / (more - few))
    fitting = int(few + (available - low) / slope)
    fitting = max(1, min(share, fitting))
    return -(-share // -(-share // fitting))


def free_memory(model: torch.nn.Module, device: torch.device) -> int:
    """Bytes of GPU memory for activations: what is free, less a gradient and AdamW's two means of every trained weight."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(MEMORY_SHARE * free) - 3 * trained
