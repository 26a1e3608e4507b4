"""Chat messages, and the system turn above them."""

Message = dict[str, str]

# What --system safety says, in the spirit of Lyu et al. 2024 (https://arxiv.org/abs/2402.18540):
# fine-tune without a safety prompt, use one at test time.
SAFETY_PROMPT = (
    "You are a helpful and careful assistant. Answer as usefully as you safely can. Refuse to help with anything that "
    "is harmful, illegal, hateful, sexual or dangerous to anyone, and briefly say why."
)


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """The chat under a system turn; "safety" stands for SAFETY_PROMPT, None for no change."""
    if system is None:
        return messages
    return [
        {"role": "system", "content": SAFETY_PROMPT if system == "safety" else system},
        *messages,
    ]
