"""Documents end to end, without padding, through an encoder's layers.

The layers see the documents of a micro-batch in one row of tokens, and attention stays within each document (flash attention over
lengths); before and after the layers the model sees the padded batch that it was written for.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from docml_contract.hyperparameters import TrainingHyperparameters
from docml_trainer.data.classifier import HALF_PRECISION, Classifier
from docml_trainer.data.shapes import ATTENTION_MASK
from docml_trainer.errors import TrainingError
from docml_trainer.training.processes import Processes
from docml_trainer.training.recording import MULTIPLE, Recordings

if TYPE_CHECKING:  # transformers' models take a second to load, which a training of another model need not spend
    import transformers

# Whose layers know of a token's position only what the embeddings have added to it.
PACKABLE = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"})
ATTENTION = "docml_packed"  # the name under which transformers finds `packed_attention`
PACKED_ROWS, PACKED_BOUNDS = "packed_rows", "packed_bounds"  # travel in a batch beside the features

TOLERANCE = {False: 1e-3, True: 5e-2}  # of a logit, relative to the largest one, by whether precision is half


def find_packing(
    classifier: Classifier,
    settings: TrainingHyperparameters,
    processes: Processes,
    examples: dict[str, torch.Tensor],
    longest: int,
) -> "Packing | None":
    """The packing that `packing` asks for, in force, or None. TrainingError if it is true, and the model or the device does not take it.

    examples: a short and a long document, collated, which the model has to judge as it does when they are padded.
    """
    on_gpu, half = processes.device.type == "cuda", processes.accelerator.mixed_precision in ("bf16", "fp16")
    if not settings.packing or (settings.packing == "auto" and not (on_gpu and half)):
        return None
    name = type(classifier.module).__name__
    packing = Packing.find(classifier.module, longest)
    if packing is None:
        problem: str | None = f"{name} is not a model that is known to support packing"
    elif on_gpu and not half:
        problem = "variable-length attention needs bf16 or fp16 on a GPU"
    else:
        problem = packing.try_on(classifier, processes, examples)
    if problem is None:
        return packing
    if settings.packing is True:
        raise TrainingError(f"packing = true: {problem} (leave packing out)")
    processes.say(f"Documents are padded: {problem}")
    return None


class Packing:
    """A transformers encoder that computes on documents end to end. In force from `apply` to `remove`."""

    def __init__(self, model: "transformers.PreTrainedModel", encoder: torch.nn.Module, longest: int) -> None:
        self.model, self.encoder, self.longest = model, encoder, longest
        self.forward = encoder.forward
        self.attention: str = model.config._attn_implementation
        self.rows: torch.Tensor | None = None
        self.bounds: torch.Tensor | None = None
        self.recordings: Recordings | None = None
        self.options: dict[str, Any] = {}  # of the encoder's forward(), of the last pass

    @classmethod
    def find(cls, model: torch.nn.Module, longest: int) -> "Packing | None":
        """Of a model whose encoder is known to take it; None for others. longest: tokens of the longest document there is."""
        import transformers

        if not isinstance(model, transformers.PreTrainedModel) or model.config.model_type not in PACKABLE:
            return None
        config, base = model.config, model.base_model
        encoder = getattr(base, "encoder", None) or getattr(base, "transformer", None)
        wants_more = config.output_hidden_states or config.output_attentions or getattr(config, "is_decoder", False)
        if wants_more or encoder is None or not isinstance(getattr(encoder, "layer", None), torch.nn.ModuleList):
            return None
        return cls(model, encoder, longest)

    def apply(self) -> None:
        """From now on batches that come with a plan are packed; others are computed as they are, with a mask."""
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, packed_mask)
        self.model.set_attn_implementation(ATTENTION)
        self.encoder.forward = self._packed_forward
        for module in self.encoder.modules():
            if type(module) is torch.nn.LayerNorm:
                module.__class__ = HalfLayerNorm

    def remove(self) -> None:
        """The model as it was."""
        self.recordings = None
        self.model.set_attn_implementation(self.attention)
        self.encoder.__dict__.pop("forward", None)
        for module in self.encoder.modules():
            if type(module) is HalfLayerNorm:
                module.__class__ = torch.nn.LayerNorm  # type: ignore[assignment]

    def try_on(self, classifier: Classifier, processes: Processes, examples: dict[str, torch.Tensor]) -> str | None:
        """Put it in force if the model judges `examples` as it did before; otherwise leave the model as it was, and return why."""
        classifier.module.eval()
        try:
            with processes.accelerator.autocast():
                padded = classifier.logits(processes.to_device(examples)).float()
                self.apply()
                packed = classifier.logits(self.take(processes.to_device(self.plan(examples)))).float()
        except Exception as error:  # whatever a model of another version of transformers, or a kernel, has against it
            self.remove()
            return f"{type(classifier.module).__name__} fails when packed: {type(error).__name__}: {error}"
        difference = float((padded - packed).abs().max()) / max(1e-2, float(padded.abs().max()))
        if difference > TOLERANCE[processes.accelerator.mixed_precision != "no"]:
            self.remove()
            return f"{type(classifier.module).__name__} answers differently when packed (a logit by {difference:.2g} of the largest)"
        return None

    def record(self, documents: int) -> None:
        """Replay the layers' work from the next pass on, of at most so many documents, in training."""
        self.recordings = Recordings(self._layers, self.encoder.parameters(), documents=documents, longest=self.longest)

    def plan(self, batch: dict[str, torch.Tensor], *, training: bool = False) -> dict[str, torch.Tensor]:
        """The batch, with where its tokens are (int64[tokens]) and where documents end (int32[at least documents + 2]), on the CPU.

        What fills the row up, to a size that is recorded or to MULTIPLE, are documents too: none may be longer than the longest there is,
        or attention would leave out its end. Without a mask that pads documents at their ends there is no plan.
        """
        mask = batch.get(ATTENTION_MASK)
        if mask is None or mask.ndim != 2:
            return batch
        length = mask.shape[1]
        lengths = mask.sum(dim=1)
        if not torch.equal(mask.bool(), torch.arange(length) < lengths[:, None]):
            return batch
        tokens = int(lengths.sum())
        planned = dict(batch)
        recorded = self.recordings.size_for(tokens, len(lengths)) if self.recordings and training else None
        filled = recorded or (tokens if tokens == mask.numel() else -(-tokens // MULTIPLE) * MULTIPLE)
        if tokens < mask.numel() or tokens < filled:
            filler = torch.full((filled - tokens,), mask.numel())
            planned[PACKED_ROWS] = torch.cat([mask.flatten().nonzero().flatten(), filler])
        ends = [0, *lengths.cumsum(0).tolist(), *range(tokens + self.longest, filled, self.longest), filled]
        if self.recordings and recorded:
            ends += [filled] * (self.recordings.bounds - len(ends))
        planned[PACKED_BOUNDS] = torch.tensor(ends, dtype=torch.int32)
        return planned

    def take(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch without its plan, which the next forward() follows."""
        batch = dict(batch)
        self.rows, self.bounds = batch.pop(PACKED_ROWS, None), batch.pop(PACKED_BOUNDS, None)
        return batch

    def _packed_forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, **options: Any) -> Any:
        """In place of the encoder's own forward(): [documents, length, width] -> [1, tokens, width], and back."""
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        if self.bounds is None:
            return self.forward(hidden_states, attention_mask=attention_mask, **options)
        documents, length, width = hidden_states.shape
        tokens = hidden_states.reshape(-1, width)
        device = tokens.device.type
        if torch.is_autocast_enabled(device):
            tokens = tokens.to(torch.get_autocast_dtype(device))
        if self.rows is not None:
            tokens = functional.pad(tokens, (0, 0, 0, 1)).index_select(0, self.rows)
        tokens, self.options = tokens.unsqueeze(0), options
        if self.recordings and self.encoder.training and self.recordings.take(tokens, self.bounds):
            states = self.recordings(tokens, self.bounds)
        else:
            states = self._layers(tokens, self.bounds)
        states = states.squeeze(0)
        if self.rows is not None:
            padded = states.new_zeros(documents * length + 1, width)
            states = padded.index_copy(0, self.rows, states)[:-1]
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states.reshape(documents, length, width))

    def _layers(self, tokens: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """The encoder's states of documents end to end: [1, tokens, width] each."""
        torch._dynamo.maybe_mark_dynamic(tokens, 1)  # or the first length would have a graph of its own
        torch._dynamo.maybe_mark_dynamic(bounds, 0)
        lengths = {"cu_seq_lens_q": bounds, "max_length_q": self.longest}
        states: torch.Tensor = self.forward(tokens, attention_mask=None, **self.options, **lengths).last_hidden_state
        return states


def packed_mask(*, attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor | None:
    """What transformers asks for in place of a mask of its own: bool[documents, length], as it is."""
    return attention_mask


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """float[documents, length, heads, width] of float[documents, heads, length, width]: transformers' attention interface.

    With the bounds of packed documents among the options each attends to itself alone; otherwise the mask says what is padding.
    """
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    bounds = options.get("cu_seq_lens_q")
    if bounds is not None and query.is_cuda:
        longest = options["max_length_q"]
        query, key, value = query.transpose(1, 2)[0], key.transpose(1, 2)[0], value.transpose(1, 2)[0]
        attended = torch.ops.aten._flash_attention_forward(
            query, key, value, bounds, bounds, longest, longest, dropout, False, False, scale=scale
        )[0]
        return attended.unsqueeze(0), None
    if bounds is not None:
        document = torch.bucketize(torch.arange(query.shape[2], device=query.device), bounds[1:], right=True)
        attention_mask = document[:, None] == document
    elif attention_mask is not None and attention_mask.ndim == 2:
        attention_mask = attention_mask[:, None, None, :]
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scale
    )
    return attended.transpose(1, 2).contiguous(), None


class HalfLayerNorm(torch.nn.LayerNorm):
    """A layer norm that leaves half precision half, where autocast would turn all that follows into float32.

    Its sums are float32 all the same (as in MosaicBERT, arXiv:2312.17482). What comes in float32 is computed as ever.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The norm of a half-precision input in its own type; of others as torch has it."""
        if input.dtype not in HALF_PRECISION:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            weight = None if self.weight is None else self.weight.to(input.dtype)
            bias = None if self.bias is None else self.bias.to(input.dtype)
            return functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
