"""Causal language models and the texts they are judged on: base of the tasks that compression works on.

Perplexity is that of the field: the text is tokenised once, cut into non-overlapping windows, the remainder dropped.
Windows are counted from the start of the test text; calibration and tuning draw from another text.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench import data_models
from workbench.datasets.corpora import Part
from workbench.llm.calibration import calibration_windows
from workbench.llm.evaluation import encode, windows
from workbench.method import Context
from workbench.params import Field, Params
from workbench.task import Task

TRAIN_CHARACTERS = 4_000_000
"""Of a long training text so much is tokenised: a million tokens, which calibration draws from."""


class LanguageParams(Params):
    """How much text is evaluated, in which windows, and on which model."""

    window: int = Field(1024, ge=8, le=131_072, description="tokens of an evaluation window; other lengths give other "
                                                            "perplexities")
    test_size: int = Field(8, ge=0, le=1_000_000, description="windows evaluated, from the start of the test text; 0 "
                                                              "= all")
    judged: Part = Field("test", description="part of the text that is evaluated; validation, to choose settings by, has no "
                                             "test text in it")
    checkpoint: str = Field("", description="folder or hub id of the model `hub`: any causal language model of "
                                            "transformers")


class LanguageTask(Task):
    """A trained causal language model and a text.

    After :meth:`setup`: ``train_ids`` (int64, flat) for calibration and tuning, ``test_windows`` (int64, (n, window)),
    ``vocab_size``, ``tokenizer``. The model of :meth:`reference` is shared: who changes it puts it back. Outputs are
    logits as ``.logits``, or the object that holds them; labels are the next tokens.
    """

    kind = "language_model"
    Params = LanguageParams
    params: LanguageParams
    note: ClassVar[str] = ""
    """What figures on this text do not compare with."""

    train_ids: Tensor
    test_windows: Tensor
    vocab_size: int
    tokenizer: Any

    def texts(self) -> tuple[str, str]:
        """Training text, and the one that is evaluated."""
        raise NotImplementedError

    @property
    def window(self) -> int:
        """Tokens of an evaluation window, and by default of a calibration sequence."""
        return self.params.window

    def setup(self, ctx: Context) -> None:
        self.model, self.tokenizer = self.load_model(ctx)
        self.vocab_size = self.model.config.vocab_size
        train, judged = self.texts()
        self.train_ids = encode(self.tokenizer, train[:TRAIN_CHARACTERS]).to(ctx.device)
        self.test_windows = windows(encode(self.tokenizer, judged), self.window, self.params.test_size or None).to(ctx.device)

    def load_model(self, ctx: Context) -> tuple[nn.Module, Any]:
        """The trained model in float32 on the device, and its tokenizer."""
        if self.model_name == "hub":
            if not self.params.checkpoint:
                raise UserError(f"Task {self.id!r} takes any causal language model: name its folder or hub id in the "
                                f"parameter `checkpoint`.")
            from workbench.llm.source import model_folder

            return pretrained(str(model_folder(self.params.checkpoint)), ctx.device)
        return pretrained(str(data_models.model_path(self.model_name)), ctx.device)

    def reference(self) -> nn.Module:
        """The trained model, uncompressed, in evaluation mode."""
        return self.model.eval()

    def calibration(self, sequences: int, length: int, generator: torch.Generator) -> Tensor:
        """Random windows (sequences, length) of the training text; ``generator`` is a CPU generator."""
        return calibration_windows(self.train_ids, sequences, length, generator)

    @property
    def train_count(self) -> int:
        """Non-overlapping windows of the training text: the indices that :meth:`batch` takes."""
        return (len(self.train_ids) - 1) // self.window

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Windows of the training text (n, window) and their next tokens (n, window)."""
        rows = [self.train_ids[i * self.window:(i + 1) * self.window + 1] for i in index.tolist()]
        both = torch.stack(rows)
        return both[:, :-1], both[:, 1:]

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the next token, in nats."""
        logits = getattr(outputs, "logits", outputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    def provenance(self) -> dict[str, str]:
        """The text, the model, the windows, and what figures on them do not compare with."""
        facts = {"dataset": self.dataset, "model": self.params.checkpoint or self.model_name, "window": str(self.window),
                 "judged": self.params.judged, "test_size": str(len(self.test_windows)), "train_size": str(len(self.train_ids)),
                 "tokens": str(self.test_windows.numel())}
        notes = [self.note, data_models.MODELS[self.model_name].note if self.model_name in data_models.MODELS else ""]
        return facts | ({"note": " ".join(filter(None, notes))} if any(notes) else {})


_loaded: dict[tuple[str, str], tuple[nn.Module, Any]] = {}
_lock = threading.Lock()


def pretrained(folder: str, device: torch.device) -> tuple[nn.Module, Any]:
    """Model (float32) and tokenizer of a folder. The last one loaded is kept: the runs of a sweep share it."""
    from workbench.llm.storage import libraries, quietly

    libraries("transformers", "safetensors")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _lock:
        key = folder, str(device)
        if key not in _loaded:
            _loaded.clear()
            try:
                with quietly():
                    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
                    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise UserError(f"{folder} holds no causal language model that transformers can load: "
                                f"{str(error).splitlines()[0]}") from None
            tokenizer.model_max_length = int(1e30)  # a text is tokenised whole and cut afterwards: no warning about its length
            _loaded[key] = model.requires_grad_(False).to(device), tokenizer
        return _loaded[key]
