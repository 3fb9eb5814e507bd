"""The model card in a run's folder: what it is, how it was made, what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gencli import files, registry


def write_card(folder: Path, config: dict[str, Any]) -> None:
    """Write `README.md` beside the weights."""
    files.atomic_write(folder / "README.md", card(config).encode())


def card(config: dict[str, Any]) -> str:
    """The card's text."""
    entry = registry.entry("models", config["recipe"]["model"]["name"])
    train, data = config["recipe"]["train"], config["data"]
    codec = f"\nIts data are the codes of `{config['codec']}` (in `codec/`).\n" if config.get("codec") else ""
    averaged = train["ema"] or train["ema_decay"]
    weights = "The weights are the running average of training." if averaged else "The weights are the last step's."
    paper = f"({entry.authors}, {entry.year})" + (f", arXiv:{entry.arxiv}" if entry.arxiv else "")
    return f"""# {config["name"]}

{entry.title} {paper}, trained on `{data["name"]}`.
{codec}
| | |
|---|---|
| made by | `{config["command"]}` (gencli {config["gencli"]}) |
| parameters | {config["parameters"]:,} |
| steps × batch | {config["step"]:,} × {train["batch_size"]} |
| precision | {config.get("precision", "fp32")} |
| seed | {train["seed"]} |
| data | {data["name"]}, hash `{data["hash"]}`, {data["items"]["train"]} train and {data["items"]["test"]} test items |

`gencli sample {config["name"]}` draws from it, `gencli eval fid -c {config["name"]}` measures it, and
`gencli info {config["name"]}` shows every setting. {weights}
"""
