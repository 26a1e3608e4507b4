"""The report of benchmarks/decode.py as markdown."""

from typing import Any

COLUMNS = (
    "engine",
    "questions",
    "seconds",
    "processor seconds",
    "questions/s",
    "time / ours",
    "peak memory",
    "equal to transformers'",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def markdown(report: dict[str, Any]) -> str:
    """Machine, versions, and for each setting its table, limits and differences."""
    text = describe_machine(report)
    for name, section in report["settings"].items():
        text += setting_text(name, section)
    return text


def describe_machine(report: dict[str, Any]) -> str:
    """Machine, versions, model and settings in two lines."""
    machine, options = report["machine"], report["options"]
    versions: dict[str, str] = {}
    for section in report["settings"].values():
        for result in section["engines"].values():
            versions |= result["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    batch = f"{options['batch_size']} sequences at a time"
    if options["our_batch_size"]:
        batch += f" (unforget {options['our_batch_size']})"
    if "openvino" in options["engines"]:
        batch += ", OpenVINO all prompts at once"
    return (
        f"{machine['cpu']}, {machine['threads']} threads, Python {machine['python']}, {named}. "
        f"Measured: {machine['gflops']:.0f} GFLOP/s in float32, reading "
        f"{machine['gb_per_second']:.1f} GB/s.\n"
        f"{options['model']}, float32, at most {options['max_new_tokens']} new tokens, loading "
        f"excluded; median of {options['repeats']}; {batch}.\n"
    )


def setting_text(name: str, section: dict[str, Any]) -> str:
    """The table of one setting and what is said below it."""
    text = f"\n### {name}\n\n{table(section['engines'])}"
    if "limits" in section:
        text += limits_text(section)
    for difference in section["differences"]:
        verdict = "a float32 tie" if difference["tie"] else "NOT a tie"
        text += (
            f"\n- {difference['engine']}, question {difference['question']}, token "
            f"{difference['position']}: top logits {difference['gap']:.1e} apart, {verdict}"
        )
    if section.get("one_prompt"):
        text += f"\n\nThe first prompt alone:\n\n{table(section['one_prompt'])}"
    return text.rstrip() + "\n"


def limits_text(section: dict[str, Any]) -> str:
    """The tokens computed and how near our time is to the machine's limits."""
    limits, stats = section["limits"], section["engines"]["unforget"]["stats"]
    return (
        f"\n{section['prompt_tokens']} prompt tokens, {limits['prefill_tokens_needed']} needed, "
        f"{stats['prefill_tokens']} computed by unforget; {stats['new_tokens']} new tokens "
        f"in {stats['forward_passes']} passes.\n"
        f"Arithmetic limit {limits['arithmetic_seconds']:.2f} s: unforget reaches "
        f"{limits['arithmetic_fraction']:.0%} of it. Reading the weights once a pass: "
        f"{limits['bandwidth_seconds']:.2f} s ({limits['bandwidth_fraction']:.0%} of its time).\n"
    )


def table(engines: dict[str, dict[str, Any]]) -> str:
    return HEADER + "".join(row(engine, result) for engine, result in engines.items())


def row(engine: str, result: dict[str, Any]) -> str:
    """One engine's line."""
    questions = f"first {result['questions']}" if result.get("partial") else result["questions"]
    ratio = f"{result['ratio_to_ours']:.2f}" if "ratio_to_ours" in result else ""
    unsteady = "" if result["same_tokens_every_run"] else " (tokens differ between runs)"
    cells = [
        engine,
        questions,
        f"{result['seconds']:.2f}",
        f"{result['processor_seconds']:.2f}",
        f"{result['questions'] / result['seconds']:.2f}",
        ratio,
        f"{result['peak_memory_bytes'] / 2**30:.2f} GiB",
        equal_text(result) + unsteady,
    ]
    return f"| {' | '.join(map(str, cells))} |\n"


def equal_text(result: dict[str, Any]) -> str:
    """`62 of 64, 2 ties`; empty without transformers."""
    if "compared" not in result:
        return ""
    different = result["different"]
    text = f"{result['compared'] - len(different)} of {result['compared']}"
    ties = sum(difference["tie"] for difference in different)
    return f"{text}, {ties} ties" if different else text
