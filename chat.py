"""Talk with the base and the tuned model side by side: python chat.py --run RUN

Every question is answered by both, which are one set of weights with the adapter off and on; each
has a conversation of its own. Ctrl-C stops an answer, Ctrl-D ends.

/reset         start both conversations again
/system TEXT   put a system turn above them (without TEXT: none) and start again
/prompt        show the last prompt as the models read it, with its token ids
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from common import cli
from common.command_line import parse_settings
from common.decoding_estimate import estimate_memory
from common.defaults import DEFAULT_MODEL, DTYPES
from common.devices import resolve_device, resolve_dtype
from common.errors import UserError
from common.options import Scope, non_negative_float, option, positive_int, probability, seed
from common.runs import peak_memory_bytes
from common.tuned_model import ADAPTER, chosen_adapter, is_choice
from data.checked import checked_field
from data.prompts import Message
from data.records import read_json
from llama.config import ModelConfig
from llama.decoding import generate
from llama.finite import NonFiniteError
from llama.hub import resolve
from llama.model import Decoder
from llama.quantization import SCHEMES
from llama.tokenizer import DEFAULT_DATE, Tokenizer, load_tokenizer
from llama.weights import load_model
from lora import adapter_fingerprint, load_adapter, lora_disabled, set_lora_scale
from reporting.plain_text import visible

OUT_OF_MEMORY = "try --quantize int8, which changes some answers, or a smaller --model"

CALL = Scope.CALL


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Settings of chat.py; none of them is recorded."""

    run: Path = option(
        Path("runs/default"),
        "run folder with the adapter (%(default)s)",
        parse=Path,
        metavar="DIR",
        scope=CALL,
    )
    model: str | None = option(
        None,
        f"checkpoint folder, GGUF file, Hugging Face id or smollm2 (what RUN was trained from, "
        f"else {DEFAULT_MODEL})",
        scope=CALL,
    )
    adapter: Path | None = option(
        None,
        "a LoRA adapter, or RUN's own: the last one, or the best by validation loss (last)",
        parse=Path,
        metavar="DIR|best|last",
        scope=CALL,
    )
    adapter_scale: float = option(
        1.0, "1 as trained (%(default)s)", parse=non_negative_float, metavar="X", scope=CALL
    )
    dtype: str = option(
        "auto", "as in generate.py (%(default)s)", choices=DTYPES, metavar="TYPE", scope=CALL
    )
    quantize: str | None = option(None, "8-bit frozen weights", choices=SCHEMES, scope=CALL)
    device: str = option("auto", "as in generate.py (%(default)s)", scope=CALL)
    system: str | None = option(None, "a system turn (the template's own)", scope=CALL)
    date: str = option(DEFAULT_DATE, "the date a chat template prints (%(default)s)", scope=CALL)
    max_new_tokens: int = option(
        512, "longest answer (%(default)s)", parse=positive_int, metavar="N", scope=CALL
    )
    temperature: float = option(
        0.0, "0 is greedy (%(default)s)", parse=non_negative_float, metavar="X", scope=CALL
    )
    top_p: float = option(
        1.0,
        "sample from the likeliest tokens that make up P (%(default)s)",
        parse=probability,
        metavar="P",
        scope=CALL,
    )
    seed: int = option(0, "of samples (%(default)s)", parse=seed, metavar="N", scope=CALL)
    show_prompt: bool = option(
        False, "before every answer, the prompt's exact text and token ids", flag=True, scope=CALL
    )
    dry_run: bool = option(
        False, "say which models would answer, on what device, and load none", flag=True, scope=CALL
    )


@dataclass
class Conversation:
    """One model's side: its name and the turns so far."""

    name: str
    turns: list[Message] = field(default_factory=list)


class StreamedText:
    """Prints an answer's text as its tokens come, whole characters at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.token_ids: list[int] = []
        self.text = ""

    def add(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        text = self.tokenizer.decode(self.token_ids)
        if text.endswith("\ufffd"):  # a character whose other bytes are still to come
            return
        print(visible(text[len(self.text) :]), end="", flush=True)
        self.text = text


class ChatSession:
    """Base and tuned model on one set of weights, each with its conversation."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, settings: ChatSettings) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.system = settings.system
        self.conversations = [Conversation("base"), Conversation("tuned")]
        self.last_prompts: dict[str, list[int]] = {}

    def reset(self) -> None:
        """Forget what was said."""
        for conversation in self.conversations:
            conversation.turns.clear()
        self.last_prompts.clear()

    def ask(self, question: str) -> None:
        """Print both answers to `question`. UserError if a conversation outgrows the context."""
        for conversation in self.conversations:
            print(f"\n{conversation.name}: ", end="", flush=True)
            asked = [*conversation.turns, {"role": "user", "content": question}]
            answer = self._answer(conversation.name, asked)
            conversation.turns = [*asked, {"role": "assistant", "content": answer}]
        print()

    def _answer(self, name: str, turns: list[Message]) -> str:
        """The answer to `turns`, printed as it comes; what there was of it after Ctrl-C."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        prompt = self.tokenizer.encode_chat([*system, *turns])
        self.last_prompts[name] = prompt
        if self.settings.show_prompt:
            print(self.describe_prompt(prompt))
        stream = StreamedText(self.tokenizer)
        try:
            if name == "base":
                with lora_disabled(self.model):
                    self._generate(prompt, stream.add)
            else:
                self._generate(prompt, stream.add)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        return self.tokenizer.decode(stream.token_ids)

    def _generate(self, prompt: list[int], on_token: Callable[[int], None]) -> None:
        settings = self.settings
        generate(
            self.model,
            [prompt],
            settings.max_new_tokens,
            self.tokenizer.stop_ids,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            on_token=lambda _, token_id: on_token(token_id),
            names=["this question"],
        )

    def describe_prompt(self, prompt: list[int]) -> str:
        """The exact text and ids of a prompt."""
        text = visible(self.tokenizer.decode(prompt, skip_special_tokens=False))
        return f"\n{text}\n{len(prompt)} tokens: {' '.join(map(str, prompt))}"

    def obey(self, line: str) -> None:
        """Carry out a line that begins with a slash."""
        command, _, text = line.partition(" ")
        if command == "/reset":
            self.reset()
        elif command == "/system":
            self.system = text.strip() or None
            self.reset()
        elif command == "/prompt":
            for name, prompt in self.last_prompts.items():
                print(f"{name}:{self.describe_prompt(prompt)}")
        else:
            print(f"{visible(command)}: no such command; there are /reset, /system and /prompt")


def find_adapter(settings: ChatSettings) -> Path:
    """The adapter to answer with. UserError if there is none."""
    adapter = settings.adapter or settings.run / ADAPTER
    if is_choice(adapter):
        adapter = chosen_adapter(settings.run, adapter)
    if not adapter.is_dir():
        raise UserError(
            f"{adapter}: no adapter there; train one with train.py --run {settings.run}, or name "
            "one with --adapter"
        )
    return adapter


def describe_plan(settings: ChatSettings) -> str:
    """The models that would answer, on what device, and the memory of a turn, in lines."""
    adapter, device = find_adapter(settings), resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    ref = settings.model or trained_model(settings.run)
    config = ModelConfig.load(resolve(ref, allow_weights=False))
    capacity = min(config.max_position_embeddings, 2 * settings.max_new_tokens)
    memory = estimate_memory(config, dtype, 1, capacity, settings.quantize)
    return (
        f"{ref}, and with {adapter} (fingerprint {adapter_fingerprint(adapter)}): both answer\n"
        f"{memory.describe(device, peak_memory_bytes(device))}, for {capacity} tokens of talk\n"
        "--dry-run: nothing was loaded"
    )


def load_session(settings: ChatSettings) -> ChatSession:
    """The model with its adapter, not merged, and the tokenizer."""
    adapter = find_adapter(settings)
    device = resolve_device(settings.device)
    dtype: torch.dtype = resolve_dtype(settings.dtype, device)
    ref = settings.model or trained_model(settings.run)
    tokenizer = load_tokenizer(ref, date=settings.date)
    model = load_model(ref, dtype=dtype, device=device, quantize=settings.quantize)
    load_adapter(model, adapter)
    set_lora_scale(model, settings.adapter_scale)
    print(f"{ref}, and with {adapter}: both answer. Ctrl-C stops an answer, Ctrl-D ends.")
    return ChatSession(model, tokenizer, replace(settings, model=ref))


def trained_model(run: Path) -> str:
    """The model that RUN's adapter was trained from; the default one if RUN does not say."""
    summary = run / "train.summary.json"
    if not summary.is_file():
        return DEFAULT_MODEL
    settings = checked_field(read_json(summary), "settings", dict, str(summary))
    return str(settings.get("model", DEFAULT_MODEL))


def chat(settings: ChatSettings) -> None:
    """Read questions until the end of the input."""
    if settings.dry_run:
        print(describe_plan(settings))
        return
    session = load_session(settings)
    # Ctrl-C stops an answer, however often: there is no work here that a signal could lose.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # nothing to stop
            print("\nCtrl-D ends.")
            continue
        try:
            if line.startswith("/"):
                session.obey(line)
            elif line:
                session.ask(line)
        except NonFiniteError:  # a damaged model gives no better answers later
            raise
        except UserError as error:  # the session goes on: a shorter conversation fits again
            print(f"error: {error}; /reset starts again", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(chat, parse_settings(ChatSettings, __doc__, argv), OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
