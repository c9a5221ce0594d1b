"""Train a tiny Llama with Hugging Face's Trainer; its configuration is made here.

torchrun --nproc-per-node 4 trainer_llama.py
miniray run --local 2x2 trainer_llama.py
"""

import argparse
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

WORDS = 64


class Countdowns(Dataset):
    """Sequences that count down from a random number: easy to learn, and made in no time."""

    def __init__(self, count: int, length: int) -> None:
        begins = torch.randint(WORDS, (count, 1), generator=torch.Generator().manual_seed(3))
        self.tokens = (begins - torch.arange(length)) % WORDS

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class PrintLoss(TrainerCallback):
    """Print each logged loss in one line, on rank 0."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            print(f"step {state.global_step} loss {float(logs['loss']):.6f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()

    set_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Countdowns(512, 32),
            callbacks=[PrintLoss()],
        )
        trainer.train()


if __name__ == "__main__":
    main()
