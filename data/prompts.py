"""Chat messages: the words around a question and its answer, and the system turn above them."""

from dataclasses import dataclass

Message = dict[str, str]

# The homework's own words (ML2025 HW6).
INSTRUCTION = (
    "Let's think step by step. At the end, you MUST write the answer as an integer after '####'."
)
# What --system safety says, in the spirit of Lyu et al. 2024 (https://arxiv.org/abs/2402.18540):
# fine-tune without a safety prompt, use one at test time.
SAFETY_PROMPT = (
    "You are a helpful and careful assistant. Answer as usefully as you safely can. Refuse to help "
    "with anything that is harmful, illegal, hateful, sexual or dangerous to anyone, and briefly "
    "say why."
)


@dataclass(frozen=True)
class Wording:
    """The words around a question, its worked answer and what is asked for."""

    question_prefix: str = "Q: "
    answer_prefix: str = "A: "
    instruction: str = INSTRUCTION

    def shot(self, question: str, answer: str) -> list[Message]:
        """A user turn with the question and an assistant turn with its worked answer."""
        return [
            {"role": "user", "content": f"{self.question_prefix}{question}"},
            self.answer(answer),
        ]

    def question(self, question: str) -> Message:
        """The user turn that is to be answered."""
        content = f"{self.question_prefix}{question} {self.instruction}".rstrip()
        return {"role": "user", "content": content}

    def answer(self, answer: str) -> Message:
        """The assistant turn with a worked answer."""
        return {"role": "assistant", "content": f"{self.answer_prefix}{answer}"}


DEFAULT_WORDING = Wording()


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """The chat under a system turn; "safety" stands for SAFETY_PROMPT, None for no change."""
    if system is None:
        return messages
    content = SAFETY_PROMPT if system == "safety" else system
    return [{"role": "system", "content": content}, *messages]
