"""The numbers of a summary as sentences, the same in the terminal and in the report."""

from collections.abc import Mapping, Sequence
from typing import Any


def gain_sentences(gains: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what every row recovered of which that can be said."""
    sentences = []
    for name, gain in gains.items():
        if gain["mean"] is not None:
            distance = f"{100 * gain['lead']:.1f} points between {gain['compressed']} and {gain['uncompressed']}"
            spread = f"95 % interval {ends(gain['ci95'])}" if gain["ci95"] else f"no finite interval: {gain['reason']}"
            sentences.append(f"{name} recovers {gain['mean']:.2f} of the {distance} ({spread}).")
    return sentences


def no_gain_sentences(gains: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of which rows recovery cannot be told, and why, those with the same reason together."""
    alike: dict[str, list[str]] = {}
    for name, gain in gains.items():
        if gain["mean"] is None:
            alike.setdefault(gain["reason"], []).append(name)
    return [f"For {', '.join(names)}, recovery is not defined: {reason}." for reason, names in alike.items()]


def average_sentence(title: str, average: Mapping[str, Any]) -> str:
    """Say what several rows recover on average, or why that cannot be said."""
    without = "".join(f" Left out: {row} ({reason})." for row, reason in average["left_out"].items())
    if average["mean"] is None:
        return f"{title} has no average recovery.{without}"
    rows = ", ".join(average["rows"])
    return f"{title} recovers {average['mean']:.2f} on average over {rows} (95 % interval {ends(average['ci95'])}).{without}"


def difference_sentence(difference: Mapping[str, Any]) -> str:
    """Say how far two rows are apart, and whether the interval leaves it open which is ahead."""
    low, high = (100 * end for end in difference["ci95"])
    open_end = "; the interval does not say which is ahead" if low <= 0 <= high else ""
    points = f"{100 * difference['difference']:+.1f} points [{low:+.1f}, {high:+.1f}]"
    return f"{difference['row']} differs from {difference['other']} by {points} on fine detail{open_end}."


def layout_sentence(name: str, layout: Mapping[str, Any]) -> str:
    """Say whether a row was hurt on the coarse families."""
    low, high = (100 * end for end in layout["ci95"])
    verdict = {
        True: "not hurt by the one-point rule",
        False: "hurt by more than one point",
        None: f"too few to say whether layout is hurt ({layout.get('reason')})",
    }[layout["not_hurt"]]
    difference = f"{100 * layout['difference']:+.1f} points [{low:+.1f}, {high:+.1f}]"
    return f"On coarse layout {name} differs from {layout['compressed']} by {difference} over {layout['n']:,} questions: {verdict}."


def apart_sentence(name: str, reason: str) -> str:
    """Say why a row is not to be read beside the others."""
    return f"{name} stands apart: {reason}."


def starts_sentence(starts: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what was trained before the comparison: rows whose starts were made alike are told together."""
    alike: dict[str, list[str]] = {}
    for name, start in starts.items():
        how = f"{start['recipe']}, {start['steps']:,} steps, {start['samples']:,} samples, seed {start['seed']}"
        alike.setdefault(how, []).append(name)
    told = (how if len(alike) == 1 else f"{', '.join(names)}: {how}" for how, names in alike.items())
    return f"{'; '.join(told)}. All seeds share these starts: no interval covers what another seed would have made of them."


def ends(ci95: Sequence[float] | None, *, percent: bool = False) -> str:
    """Spell an interval, as a fraction or in per cent."""
    if ci95 is None:
        return "unbounded"
    low, high = (f"{100 * end:.0f}" if percent else f"{end:.2f}" for end in ci95)
    return f"{low} to {high}"
