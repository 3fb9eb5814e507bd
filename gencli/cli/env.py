"""`gencli env`: one screen about this machine for a bug report."""

from __future__ import annotations

from typing import Any

from gencli.cli import console
from gencli.cli.options import build
from gencli.files import as_size


def command() -> Any:
    """The `env` command."""
    return build("env", "Show versions, device, threads, memory and folders, for a bug report.", [], run)


def run(values: dict[str, Any]) -> None:
    """Print it."""
    from gencli.report.environment import facts

    found = facts()
    console.document(**found)
    console.table([*_machine(found), *_places(found), *_plugins(found["plugins"])], ["fact", "value"])
    console.following("gencli list")


def _machine(found: dict[str, Any]) -> list[list[str]]:
    cpu, memory, device, arithmetic = found["cpu"], found["memory"], found["device"], found["precision"]
    fast = sorted(name for name, kind in arithmetic.items() if kind == "bf16")
    auto = f"bf16 with {', '.join(fast)}; fp32 with others" if fast else "fp32"
    sizes = [f"{as_size(memory[key])} {word}" for key, word in (("total", "in all"), ("free", "free")) if memory[key]]
    return [
        ["gencli", f"{found['gencli']} in {found['installed']}"],
        ["python", found["python"]],
        ["system", found["system"]],
        ["packages", _versions(found["packages"])],
        ["optional", _versions(found["optional"])],
        ["cpu", f"{cpu['name']}, {cpu['usable']} of {cpu['cores']} cores usable"],
        ["threads", f"{cpu['threads']} (OMP_NUM_THREADS {cpu['OMP_NUM_THREADS'] or 'not set'})"],
        ["memory", ", ".join(sizes) or "unknown"],
        [
            "device",
            " ".join(filter(None, [device["type"], device["name"], f"({device['why']})" * bool(device["why"])])),
        ],
        ["fast bf16 on cpu", "yes" if cpu["fast_bf16"] else "no: neither AMX nor AVX512-BF16 that is faster than fp32"],
        ["--precision auto", "bf16" if len(fast) == len(arithmetic) else auto],
    ]


def _versions(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'absent'}" for name, version in packages.items())


def _places(found: dict[str, Any]) -> list[list[str]]:
    caches = ", ".join(f"{name} {as_size(size)}" for name, size in found["caches"].items())
    runs = [["runs", f"{place['folder']}: {place['runs']}, {as_size(place['size'])}"] for place in found["runs"]]
    here = [name for name, there in found["data"].items() if there]
    absent = [name for name, there in found["data"].items() if not there]
    data = f"{', '.join(here)}{'; to be fetched: ' * bool(absent)}{', '.join(absent)}"
    return [*runs, ["caches", f"{found['home']}: {caches}"], ["data", data]]


def _plugins(found: list[dict[str, str]]) -> list[list[str]]:
    packages = sorted({row["package"] for row in found})
    whole = {
        package: [row["name"] for row in found if row["package"] == package and not row["problem"]]
        for package in packages
    }
    rows = [["plugin", f"{package}: {', '.join(names)}"] for package, names in whole.items() if names]
    return [*rows, *(["broken plugin", row["problem"]] for row in found if row["problem"])]
