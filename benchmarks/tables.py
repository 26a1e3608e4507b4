"""The report of benchmarks/decode.py as markdown."""

from typing import Any

HEADER = "| engine | questions | seconds | questions/s | time / ours | peak memory | equal to transformers' |\n"
HEADER += "|---|---|---|---|---|---|---|\n"


def markdown(report: dict[str, Any]) -> str:
    """Machine, versions, and for each setting its table, limits and differences."""
    machine, options = report["machine"], report["options"]
    versions = {}
    for section in report["settings"].values():
        for result in section["engines"].values():
            versions |= result["versions"]
    text = f"{machine['cpu']}, {machine['threads']} threads, Python {machine['python']}, "
    text += ", ".join(f"{name} {version}" for name, version in versions.items())
    text += f". Measured: {machine['gflops']:.0f} GFLOP/s in float32, reading {machine['gb_per_second']:.1f} GB/s.\n"
    text += f"{options['model']}, float32, at most {options['max_new_tokens']} new tokens, loading excluded; "
    text += f"median of {options['repeats']}; {options['batch_size']} rows in flight"
    if options["our_batch_size"]:
        text += f" (unforget {options['our_batch_size']})"
    text += ", OpenVINO all prompts at once.\n" if "openvino" in options["engines"] else ".\n"
    return text + "".join(
        setting_text(name, section) for name, section in report["settings"].items()
    )


def setting_text(name: str, section: dict[str, Any]) -> str:
    text = f"\n### {name}\n\n{HEADER}"
    text += "".join(row(engine, result) for engine, result in section["engines"].items())
    if limits := section.get("limits"):
        stats = section["engines"]["unforget"]["stats"]
        text += (
            f"\n{section['prompt_tokens']} prompt tokens, {limits['prefill_tokens_needed']} needed, "
            f"{stats['prefill_tokens']} computed by unforget; {stats['new_tokens']} new tokens "
            f"in {stats['forward_passes']} passes.\n"
            f"Arithmetic limit {limits['arithmetic_seconds']:.2f} s: unforget reaches "
            f"{limits['arithmetic_fraction']:.0%} of it. Reading the weights once a pass: "
            f"{limits['bandwidth_seconds']:.2f} s ({limits['bandwidth_fraction']:.0%} of its time).\n"
        )
    for difference in section["differences"]:
        verdict = "a float32 tie" if difference["tie"] else "NOT a tie"
        text += (
            f"\n- {difference['engine']}, question {difference['question']}, token {difference['position']}: "
            f"top logits {difference['gap']:.1e} apart, {verdict}"
        )
    if one := section.get("one_prompt"):
        text += f"\n\nThe first prompt alone:\n\n{HEADER}"
        text += "".join(row(engine, result) for engine, result in one.items())
    return text.rstrip() + "\n"


def row(engine: str, result: dict[str, Any]) -> str:
    ratio = f"{result['ratio_to_ours']:.2f}" if "ratio_to_ours" in result else ""
    unsteady = "" if result["same_tokens_every_run"] else " (tokens differ between runs)"
    cells = [
        engine,
        f"first {result['questions']}" if result.get("partial") else str(result["questions"]),
        f"{result['seconds']:.2f}",
        f"{result['questions'] / result['seconds']:.2f}",
        ratio,
        f"{result['peak_memory_bytes'] / 2**30:.2f} GiB",
        equal_text(result) + unsteady,
    ]
    return f"| {' | '.join(cells)} |\n"


def equal_text(result: dict[str, Any]) -> str:
    if "compared" not in result:
        return ""
    different = result["different"]
    text = f"{result['compared'] - len(different)} of {result['compared']}"
    ties = sum(difference["tie"] for difference in different)
    return f"{text}, {ties} ties" if different else text
