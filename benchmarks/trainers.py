"""One trainer in a process of its own: `python -m benchmarks.trainers JOB.json RESULT.json`.

A job names the model, the examples and the initial adapter; with `micro_batch` it is TRL's, else
this project's. The result holds the loss of every step, the seconds of all but the first, and the
process's peak memory.
"""

import json
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from common.runs import peak_memory_bytes
from data.examples import Example, build_example
from data.few_shot import FewShotSampler
from data.gsm8k import GSM8K
from llama import load_model, load_tokenizer
from llama.config import ModelConfig
from llama.engine import common_prefix_length
from llama.hub import resolve
from lora import load_adapter
from lora.loss import count_supervised
from lora.malloc import keep_freed_memory
from lora.onednn import packed_weights
from lora.trainer import Trainer, TrainerOptions, training_batches

LEARNING_RATE = 2e-4
CPU = torch.device("cpu")
Job = dict[str, Any]
Batches = list[list[Example]]


def step_batches(job: Job) -> Batches:
    """The examples of each step, the first one included."""
    pool = GSM8K().load(job["data"], "train")
    selection = "random" if job["shots"].endswith("r") else "fixed"
    selector = FewShotSampler(pool, int(job["shots"].removesuffix("r")), selection, seed=0)
    tokenizer = load_tokenizer(job["model"])
    size, steps = job["batch_size"], job["steps"] + 1
    examples = []
    for record in pool[-size * steps :]:  # the last ones: the first are the fixed shots
        messages = GSM8K().training_messages(record, selector.select(record))
        examples.append(build_example(tokenizer, messages, job["loss"]))
    return list(training_batches(examples, size, seed=0, first_step=0, total_steps=steps))


def run_ours(job: Job, batches: Batches) -> dict[str, Any]:
    """This project's trainer, and the rate of a large product measured behind it."""
    keep_freed_memory()
    model = load_model(job["model"])
    load_adapter(model, job["adapter"])
    options = TrainerOptions(
        len(batches),
        LEARNING_RATE,
        schedule="constant",
        micro_batch_tokens=job["micro_batch_tokens"],
        checkpoint_activations=job["checkpoint_activations"],
    )
    trainer = Trainer(model, options)
    losses, times = [], [time.perf_counter()]
    with nullcontext() if options.checkpoint_activations else packed_weights(model):
        for batch in batches:
            losses.append(trainer.step(batch).loss)
            times.append(time.perf_counter())
    memory = peak_memory_bytes(CPU)
    seconds = times[-1] - times[1]
    rate = product_rate()
    return {"losses": losses, "seconds": seconds, "memory": memory, "flops_per_second": rate}


def run_trl(job: Job, batches: Batches) -> dict[str, Any]:
    """TRL's SFTTrainer with PEFT, on the same examples in the same order."""
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    folder = str(resolve(job["model"]))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True)
    rows = []
    for batch in batches:
        for example in batch:
            rows.append({"input_ids": example.input_ids, "labels": example.labels})
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(dataset or self.train_dataset)

    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["batch_size"] // job["micro_batch"],
        max_steps=len(batches),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dataset = Dataset.from_list(rows)
    trainer = InOrder(model, config, train_dataset=dataset, processing_class=tokenizer)
    trainer.add_callback(Clock())
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {"losses": losses, "seconds": times[-1] - times[0], "memory": peak_memory_bytes(CPU)}


def product_rate() -> float:
    """Floating-point operations a second of one large float32 product: the best of ten."""
    left, right, best = torch.randn(1024, 1536), torch.randn(1536, 1024), float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - begin)
    return 2 * 1024 * 1536 * 1024 / best


def needed_flops(model: str, batches: Batches) -> float:
    """The floating-point operations of the products that the timed steps need."""
    config = ModelConfig.load(resolve(model))
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    block = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    total = 0
    for batch in batches[1:]:
        lengths = [len(example.input_ids) for example in batch]
        shared = common_prefix_length([example.input_ids for example in batch])
        tokens = shared + sum(length - shared for length in lengths)
        total += 2 * 2 * tokens * block * config.num_hidden_layers
        total += 2 * 2 * count_supervised(batch) * config.hidden_size * config.vocab_size
    return total


def main() -> None:
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    batches = step_batches(job)
    run = run_trl if "micro_batch" in job else run_ours
    result = run(job, batches)
    lengths = [len(example.input_ids) for batch in batches[1:] for example in batch]
    result |= {"examples": len(lengths), "tokens": sum(lengths)}
    result["needed_flops"] = needed_flops(job["model"], batches)
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
