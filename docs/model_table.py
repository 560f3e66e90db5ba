"""Generates model-table.md: every causal LM type of the installed transformers, compiled as a tiny model.

    python docs/model_table.py --jobs 2                   # all types
    python docs/model_table.py --only bloom --only opt    # these rows again, the others as they are

Each type is compiled in a process of its own, with a limit of time and memory, through the whole pipeline: its proof against
transformers' eager model, its plan written, read and loaded, its golden values replayed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_configurations import FIELDS, LISTED, SIZES, TOKENS

TABLE = Path(__file__).parent / "model-table.md"
SECONDS, MEMORY = 240, 6 << 30
STATUSES = ("raised", "fallback", "refused")
LONGEST_REASON = 220

Row = tuple[str, str]
"""Status and reason."""


def causal_types() -> list[str]:
    """Every causal LM type of the installed transformers, in order of name."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_configuration(model_type: str) -> dict[str, Any]:
    """A small config.json of the type. Raises whatever the type's own configuration class raises."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    made = {} if kind.has_no_defaults_at_init else _shrunk(kind())
    return {**made, **TOKENS, **FIELDS.get(model_type, {}), "model_type": model_type, "dtype": "float32"}


def _shrunk(defaults: Any) -> dict[str, Any]:
    common = {own: name for name, own in defaults.attribute_map.items()}
    made: dict[str, Any] = {}
    for name, value in defaults.to_dict().items():
        inner = vars(defaults).get(name)  # asking for what differs from layer to layer is an error
        size = SIZES.get(common.get(name, name), SIZES.get(name))
        if inner is not None and hasattr(inner, "to_dict"):
            made[name] = {**_shrunk(inner), "model_type": inner.model_type}
        elif size is not None and isinstance(value, int):
            made[name] = size
        elif name not in LISTED:
            made[name] = value
    for name in ("transformers_version", "architectures", "_name_or_path"):
        made.pop(name, None)
    return made


def compile_one(model_type: str) -> Row:
    """Compile a tiny model of the type and replay its golden values."""
    from tokenspeed.plans.errors import TokenspeedError

    try:
        config = tiny_configuration(model_type)
    except Exception as error:  # whatever the class raises
        return "refused", f"its default configuration cannot be made: {one_line(error)}"
    try:
        return _compiled(config)
    except TokenspeedError as error:
        return "refused", shortened("; ".join(part for part in (error.what, error.got) if part))


def _compiled(config: dict[str, Any]) -> Row:
    from tokenspeed.compiler.frontends.source import open_model
    from tokenspeed.compiler.options import CompileOptions
    from tokenspeed.compiler.pipeline import compile_model
    from tokenspeed.ir import module as modules
    from tokenspeed.plans.reader import Plan
    from tokenspeed.plans.writer import write_plan
    from tokenspeed.runtime.goldens import replay_goldens

    with tempfile.TemporaryDirectory() as folder, modules.context():
        source = Path(folder) / "config.json"
        source.write_text(json.dumps(config))
        options = CompileOptions(dtype="f32", max_context=128, max_sequences=4, quantize="none", kernels="library")
        state = compile_model(open_model(source), options, lambda _phase, _state: None)
        assert state.manifest is not None
        write_plan(Path(folder) / "plan.bin", state.manifest, state.entries)
        outcomes = replay_goldens(Plan.open(Path(folder) / "plan.bin"), None, lambda _phase: None)
        if not all(outcome.passed for outcome in outcomes):
            return "refused", "the plan does not replay its golden values"
        kept = Counter(
            modules.text_attribute(operation, "target").removeprefix("aten.")
            for operation in modules.walk(modules.step_block(state.module))
            if operation.name == "ts.aten"
        )
    return ("fallback", shortened("by ATen: " + ", ".join(sorted(kept)))) if kept else ("raised", "")


def one_line(error: BaseException) -> str:
    return shortened(f"{type(error).__name__}: {error}")


def shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


def _in_a_process(model_type: str, log: Path | None) -> Row:
    command = [sys.executable, __file__, "--in-this-process", "--only", model_type]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return "refused", f"compiling takes longer than {SECONDS} s"
    if log is not None and ended.stderr:
        with log.open("a") as file:
            file.write(f"== {model_type}\n{ended.stderr}\n")
    try:
        status, reason = json.loads(ended.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (ended.stderr.strip().splitlines() or [f"ended with status {ended.returncode}"])[-1]
        return "refused", shortened(f"the compiler failed: {last}")
    return status, reason


def read_table(text: str) -> dict[str, Row]:
    """The rows of a table, by model type."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")]
        if len(cells) == 3 and cells[1] in STATUSES:
            rows[cells[0].strip("`")] = cells[1], cells[2].replace("\0", "|")
    return rows


def write_table(rows: dict[str, Row], version: str, date: str) -> str:
    """The page: totals, then a row for each type in order of name."""
    totals = Counter(status for status, _ in rows.values())
    compiled = len(rows) - totals["refused"]
    lines = [
        "# Model table",
        "",
        f"Every causal LM type of transformers {version}, as of {date}: a tiny model of it compiled, proved against",
        "transformers' own eager model, and its plan run. Written by `python docs/model_table.py`, not by hand.",
        "",
        f"{compiled} of {len(rows)} types compile ({100 * compiled // len(rows)} %): {totals['raised']} raised,"
        f" {totals['fallback']} with fallbacks; {totals['refused']} refused.",
        "",
        "*raised*: every operation is of the `ts` dialect. *fallback*: the named ATen operations run through torch, row by row.",
        "",
        "| type | status | why |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {status} | {reason.replace('|', chr(92) + '|')} |" for name, (status, reason) in sorted(rows.items())),
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """What models print while they are built goes to the error stream."""
    kept, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = kept


def _run_in_this_process(model_type: str) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    with only_results_on_stdout():
        row = compile_one(model_type)
    print(json.dumps(row))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compile a tiny model of every causal LM type and write the table.")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", action="append", default=[], metavar="TYPE", help="compile this type only; may be repeated")
    parser.add_argument("--log", type=Path, help="append what the compiles say on their error streams to this file")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.in_this_process:
        _run_in_this_process(options.only[0])
        return
    import transformers

    types = causal_types()
    unknown = sorted(set(options.only) - set(types))
    if unknown:
        parser.error(f"no causal LM types of transformers {transformers.__version__}: {', '.join(unknown)}")
    wanted = sorted(set(options.only)) or types
    with ThreadPoolExecutor(options.jobs) as pool:
        found: dict[str, Row] = {}
        for name, row in zip(wanted, pool.map(lambda name: _in_a_process(name, options.log), wanted), strict=True):
            print(f"{name}: {row[0]} {row[1]}", flush=True)
            found[name] = row
    before = read_table(TABLE.read_text()) if TABLE.exists() else {}
    rows = {name: row for name, row in {**before, **found}.items() if name in types}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    TABLE.write_text(write_table(rows, transformers.__version__, date))


if __name__ == "__main__":
    main()
