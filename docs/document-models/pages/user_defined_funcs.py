"""LayoutLMv3 over all pages: words, boxes and picture of each page, and the mean over the pages.

page_1.json, page_1.png, page_2.json, … of a document; a page's JSON is {"words": [...], "boxes": [[x0, y0, x1, y1], …]}, in thousandths.
"""

import functools
import json

WEIGHTS = "microsoft/layoutlmv3-base"
TOKENIZER = "FacebookAI/roberta-base"  # LayoutLMv3's words are RoBERTa's


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER, add_prefix_space=True)


def get_dataset_features(context):
    from datasets import Array4D, Features, List, Value

    return Features(
        {
            "input_ids": List(List(Value("int32"))),  # [pages][tokens]
            "bbox": List(List(List(Value("int32"), length=4))),
            "pictures": Array4D((None, 3, 224, 224), "uint8"),
        }
    )


def encode_data(instance, context):
    import numpy as np

    files = list(zip(instance["page_*.json"], instance["page_*.png"], strict=True))
    pages = [encode_page(*both, context.hyperparameters["page_tokens"]) for both in files]
    pages = pages[: context.hyperparameters["max_pages"]]
    ids, boxes, pictures = zip(*pages, strict=True)
    return {"input_ids": list(ids), "bbox": list(boxes), "pictures": np.stack(pictures)}


def encode_page(words, picture, length):
    import numpy as np
    from PIL import Image

    page = json.loads(words.read_text(encoding="utf-8"))
    tokens = tokenizer()(page["words"], is_split_into_words=True, truncation=True, max_length=length)
    boxes = [[0, 0, 0, 0] if word is None else page["boxes"][word] for word in tokens.word_ids()]
    pixels = np.asarray(Image.open(picture).convert("RGB").resize((224, 224)))
    return tokens["input_ids"], boxes, pixels.transpose(2, 0, 1)


def load_model(model_name, context):
    import torch
    from transformers import LayoutLMv3Model

    class Pages(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = LayoutLMv3Model.from_pretrained(WEIGHTS)
            self.classifier = torch.nn.Linear(self.encoder.config.hidden_size, context.num_labels)

        def forward(self, input_ids, bbox, pictures, attention_mask):
            """[documents, pages, tokens], the same with 4, uint8[documents, pages, 3, 224, 224] -> logits."""
            real = attention_mask.any(dim=2)  # bool[documents, pages]: those that are more than padding
            states = self.encoder(
                input_ids=input_ids[real],
                bbox=bbox[real],
                attention_mask=attention_mask[real],
                pixel_values=pictures[real].float() / 127.5 - 1,
            ).last_hidden_state
            said = self.classifier(states[:, 0])  # float[real pages, labels]
            document = real.nonzero()[:, 0]
            total = said.new_zeros(real.shape[0], said.shape[1]).index_add(0, document, said)
            return {"logits": total / real.sum(dim=1, keepdim=True)}

    return Pages()


def ordered_input_keys(model_name, context):
    return ["input_ids", "bbox", "pictures", "attention_mask"]
