"""Checks that only a GPU can pass, one after the other: make gpu

They take two to three minutes on an H100. What each has seen is written to a log: the
evidence. Without a GPU the script says what it would do. Models are random ones of published sizes:
nothing is downloaded. `--rehearse` runs every check on the CPU with a tiny model, which tests this
script and says nothing of a GPU.
"""

import importlib.util
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_machine import DTYPES, LLAMA_1B, SMOLLM2, TINY, Machine
from common.cli import run_script
from common.command_line import parse_settings
from common.options import option
from common.runs import environment
from common.training_plan import CUDA_PASS_TOKENS
from llama import Decoder, generate
from llama.packed_attention import (
    CPU,
    EFFICIENT,
    FLASH,
    PUBLIC,
    choose_kernel,
    is_right_kernel,
)
from lora import LoRAConfig, inject_lora
from lora.trainer import Trainer, TrainerOptions

KERNEL_NAMES = ((FLASH, "flash"), (EFFICIENT, "memory-efficient"), (CPU, "the CPU's"))
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class GPUSettings:
    """The options of the checks."""

    rehearse: bool = option(False, "run the checks on the CPU with a tiny model, to test them")
    log: Path = option(
        Path("gpu.log"), "write what is seen to FILE (%(default)s)", parse=Path, metavar="FILE"
    )


def check_tests(machine: Machine) -> list[str]:
    """Tests on the device: decoding and training against the CPU's, FSDP, memory that runs out."""
    if machine.rehearsal:
        return ["left out of a rehearsal; CUDA_TESTS_DEVICE=cpu runs them on the CPU"]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "tests/test_cuda.py"]
    command += ["-o", "addopts=--import-mode=importlib"]  # without -q, which hides the count
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode:
        raise AssertionError("\n".join(lines[-40:]))
    return lines[-1:]


def check_kernels(machine: Machine) -> list[str]:
    """Kernels of attention that run: chosen for training, seen by the profiler in each phase."""
    lines: list[str] = []
    none_right = False
    for name, dtype in DTYPES.items():
        for head_dim in (64, 128):
            heads = torch.zeros(1, 32, 2, head_dim, dtype=dtype, device=machine.device)
            kernel = choose_kernel(heads, heads[:, :8])
            known = [label for each, label in KERNEL_NAMES if each is kernel]
            chosen = known[0] if known else "plain products"
            lines.append(f"training, {name}, head_dim {head_dim}: {chosen}")
            lines += refusals(machine.device, dtype, head_dim)
            none_right |= machine.device.type == "cuda" and kernel is PUBLIC
    model = machine.model(LLAMA_1B, torch.bfloat16)
    activities = [ProfilerActivity.CPU]
    if machine.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        generate(model, machine.prompts(4, 40, model), 8)
        train(machine, model, torch.bfloat16, examples=4, tokens=60, steps=1)
    names = sorted({event.key for event in seen.key_averages() if is_attention(event.key)})
    lines += [f"ran: {name}" for name in names]
    assert not none_right, "\n".join(["plain products where a kernel should be right:", *lines])
    return lines


def refusals(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """A line for each kernel of attention on a CUDA device that is not right, with the reason."""
    lines = []
    for kernel, label in KERNEL_NAMES[:2] if device.type == "cuda" else ():
        try:
            reason = "" if is_right_kernel(kernel, device, dtype, head_dim, 4) else "wrong numbers"
        except (AttributeError, RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
        if reason:
            lines.append(f"    not the {label} kernel: {reason}")
    return lines


def is_attention(kernel: str) -> bool:
    """True for the names of attention operators and of the kernels behind them."""
    return any(part in kernel.lower() for part in ("attention", "flash", "fmha"))


def check_tokens(machine: Machine) -> list[str]:
    """Greedy tokens in float32 that equal the CPU's: 40 questions of 600 tokens."""
    count, tokens = machine.size(40, 4), machine.size(600, 30)
    model = machine.model(SMOLLM2, torch.float32, "cpu")
    prompts = machine.prompts(count, tokens, model)
    answers = []
    for device in (torch.device("cpu"), machine.device):
        model = model.to(device)
        answers.append(generate(model, prompts, machine.size(48, 6), batch_size=count))
    equal = sum(ours == theirs for ours, theirs in zip(*answers, strict=True))
    line = f"{equal} of {count} answers have the CPU's tokens"
    # a tie of two logits within rounding may fall either way
    assert equal >= 0.95 * count, line
    return [line]


def train(
    machine: Machine, model: Decoder, dtype: torch.dtype, examples: int, tokens: int, steps: int
) -> tuple[list[float], float]:
    """Losses of `steps` steps after one of warming up, and tokens a second."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        inject_lora(model, LoRAConfig())
    options = TrainerOptions(
        total_steps=steps + 1,
        learning_rate=1e-3,
        schedule="constant",
        micro_batch_tokens=CUDA_PASS_TOKENS,
        dtype=dtype,
    )
    trainer = Trainer(model, options)
    batch = machine.examples(examples, tokens, model)
    losses = [trainer.step(batch).loss]
    start = machine.start_clock()
    losses += [trainer.step(batch).loss for _ in range(steps)]
    return losses, examples * tokens * steps / machine.seconds_since(start)


def check_training(machine: Machine) -> list[str]:
    """Training at the size of Llama-3.2-1B in three precisions: losses, tokens/s, memory."""
    lines, first = [], None
    for name, dtype in DTYPES.items():
        model = machine.model(LLAMA_1B, dtype)
        examples, tokens = machine.size(16, 3), machine.size(512, 24)
        losses, speed = train(machine, model, dtype, examples, tokens, machine.size(8, 2))
        lines.append(
            f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, {speed:,.0f} tokens/s, "
            f"{machine.peak}"
        )
        assert losses[-1] < losses[0], f"{lines[-1]}: the loss does not fall"
        first = first or losses[0]
        assert abs(losses[0] - first) < 0.02 * first, f"{lines[-1]}: float32 begins at {first}"
        del model
    return lines


def check_decoding(machine: Machine) -> list[str]:
    """Decoding at the size of Llama-3.2-1B in bfloat16, 32 to 512 rows: tokens/s, memory."""
    lines = []
    model = machine.model(LLAMA_1B, torch.bfloat16)
    new_tokens = machine.size(128, 5)
    generate(model, machine.prompts(2, 20, model), 4)  # warms up
    for rows in (2, 3) if machine.rehearsal else (32, 128, 256, 512):
        prompts = machine.prompts(2 * rows, machine.size(500, 20), model)
        start = machine.start_clock()
        outputs = generate(model, prompts, new_tokens, batch_size=rows)
        seconds = machine.seconds_since(start)
        made = sum(len(output.token_ids) for output in outputs)
        lines.append(
            f"{rows} rows: {made} new tokens in {seconds:.2f} s, {made / seconds:,.0f} tokens/s, "
            f"{machine.peak}"
        )
    return lines


def check_transformers(machine: Machine) -> list[str]:
    """The same sizes with transformers: decoding at 32 and 128 rows, a step of training."""
    if importlib.util.find_spec("transformers") is None:
        return ["transformers is not installed"]
    import transformers

    sizes = {**(TINY if machine.rehearsal else LLAMA_1B)}
    sizes.pop("model_type")
    config = transformers.LlamaConfig(**sizes, eos_token_id=None, pad_token_id=0)
    with machine.device:
        peer: Any = transformers.LlamaForCausalLM(config)
    peer = peer.to(torch.bfloat16)
    own = machine.model(LLAMA_1B, torch.bfloat16)
    lines = []
    for rows in (2,) if machine.rehearsal else (32, 128):
        ids = machine.prompts(rows, machine.size(500, 20), own)
        inputs = torch.tensor(ids, device=machine.device)
        start = machine.start_clock()
        with torch.inference_mode():
            peer.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=machine.size(128, 5),
                do_sample=False,
            )
        speed = rows * machine.size(128, 5) / machine.seconds_since(start)
        lines.append(f"transformers, {rows} rows: {speed:,.0f} new tokens/s, {machine.peak}")
    return [*lines, train_peer(machine, peer, own)]


def train_peer(machine: Machine, peer: Any, own: Decoder) -> str:
    """Tokens a second of PEFT's LoRA on the peer, forward and backward, in one padless batch."""
    if importlib.util.find_spec("peft") is None:
        return "peft is not installed"
    import peft

    model = peft.get_peft_model(peer, peft.LoraConfig(r=8, target_modules="all-linear"))
    examples, tokens, steps = machine.size(16, 3), machine.size(512, 24), machine.size(4, 1)
    ids = torch.tensor(machine.prompts(examples, tokens, own), device=machine.device)
    model(input_ids=ids, labels=ids).loss.backward()  # warms up
    start = machine.start_clock()
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
    speed = examples * tokens * steps / machine.seconds_since(start)
    return f"transformers with PEFT, training without its optimizer: {speed:,.0f} tokens/s"


CHECKS: Sequence[Callable[[Machine], list[str]]] = (
    check_tests,
    check_kernels,
    check_tokens,
    check_training,
    check_decoding,
    check_transformers,
)


def describe(check: Callable[[Machine], list[str]]) -> str:
    """A check's name and what it shows, in a line."""
    return f"{check.__name__.removeprefix('check_')}: {(check.__doc__ or '').splitlines()[0]}"


def run_check(check: Callable[[Machine], list[str]], machine: Machine) -> tuple[bool, list[str]]:
    """True if the check passed, and the lines for the log. A failure ends no other check."""
    start = machine.start_clock()
    try:
        passed, lines = True, check(machine)
    except Exception:
        passed, lines = False, traceback.format_exc().splitlines()
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    verdict = "ok" if passed else "FAILED"
    heading = f"[{verdict}, {machine.seconds_since(start):.1f} s] {describe(check)}"
    return passed, [heading, *(f"    {line}" for line in lines)]


def run_checks(settings: GPUSettings) -> int:
    """Run what can be run here. The status is 1 if a check fails."""
    if not torch.cuda.is_available() and not settings.rehearse:
        print("No CUDA device here: nothing was checked. On a machine with one this would run:")
        print("\n".join(f"  {describe(check)}" for check in CHECKS))
        return 0
    device = torch.device("cpu" if settings.rehearse else "cuda")
    machine = Machine(device, settings.rehearse)
    failures = 0
    with settings.log.open("w", encoding="utf-8") as log:
        header = ", ".join(f"{name} {value}" for name, value in environment(device).items())
        if settings.rehearse:
            header = f"A rehearsal on the CPU, no evidence of any GPU: {header}"
        print(header, file=log)
        for check in CHECKS:
            passed, lines = run_check(check, machine)
            failures += not passed
            print("\n".join(lines), flush=True)
            print("\n".join(lines), file=log, flush=True)
    print(f"{len(CHECKS) - failures} of {len(CHECKS)} checks passed; {settings.log} has the rest")
    return int(failures > 0)


def main(argv: list[str] | None = None) -> int:
    statuses: list[int] = []
    parsed = parse_settings(GPUSettings, __doc__, argv)
    failed = run_script(lambda settings: statuses.append(run_checks(settings)), parsed)
    return failed or statuses[0]


if __name__ == "__main__":
    sys.exit(main())
