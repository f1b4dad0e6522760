"""Reading large panels: records per second and memory, from the file to the table, its split and its counts.

    python -m benchmarks.prepare            two million generated persons, some 20 million records
    python -m benchmarks.prepare --toy      seconds; shows that it works and says nothing about speed

A process of its own reads the file, so that its peak memory is that of the work and not of the generator. The file
is Parquet, in the order in which a provider might write it: by the number of the person, not as text.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from benchmarks.machine import ROOT, default_result, peak_rss_gib, write_result
from benchmarks.panel import generated_panel
from benchmarks.scoring_models import micro_backbone
from labor_llm.careers import Careers
from labor_llm.datasets.table import Table
from labor_llm.description.counts import describe
from labor_llm.language.tokens import CareerEncoder
from labor_llm.prepared import prepare, prepared_path
from labor_llm.templates import ResumeTemplate, Titles

logger = logging.getLogger(__name__)

CHUNK = 20_000
"""Persons that are generated at a time."""
MIN_RECORDS, MAX_RECORDS = 5, 17
"""Records of a career; ten on average."""
TOKENIZED = 20_000
"""Persons whose careers are rendered and tokenized."""


def generate(path: Path, persons: int) -> int:
    """Write a panel of so many persons as a Parquet file with numbered persons; returns its records."""
    records, writer = 0, None
    for seed, start in enumerate(range(0, persons, CHUNK)):
        count = min(CHUNK, persons - start)
        careers = generated_panel(count, seed, MIN_RECORDS, MAX_RECORDS)
        numbers = pl.col("person_id").rle_id().cast(pl.Int64) + start
        arrow = careers.table.with_columns(person_id=numbers).to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(path, arrow.schema)
        writer.write_table(arrow)
        records += len(careers)
    assert writer is not None
    writer.close()
    return records


def measure(raw: Path, outputs: Path) -> dict[str, Any]:
    """Prepare, split and describe the file; seconds and peak memory of this process."""
    dataset = Table(name="large", raw=raw)
    times = [time.perf_counter()]
    prepare(dataset, outputs)
    times.append(time.perf_counter())
    description = describe(Careers.read_parts(prepared_path(dataset, outputs)), dataset.split)
    times.append(time.perf_counter())
    return {
        "persons": description.persons,
        "records": description.records,
        "persons_by_part": dict(description.splits.select("part", "persons").iter_rows()),
        "seconds": {"prepare": times[1] - times[0], "split_and_describe": times[2] - times[1]},
        "records_per_second": description.records / (times[2] - times[0]),
        "peak_rss_gib": peak_rss_gib(),
    }


def measure_tokens(persons: int) -> dict[str, Any]:
    """Render and tokenize careers in this process; records per second."""
    careers = generated_panel(persons, 0, MIN_RECORDS, MAX_RECORDS)
    template, label = ResumeTemplate(), Titles()
    tokenizer = micro_backbone().tokenizer(template.texts(careers, label))
    started = time.perf_counter()
    encoded = CareerEncoder(tokenizer, template, label, careers.taxonomy).encode(careers)
    seconds = time.perf_counter() - started
    return {
        "render_tokenize_records_per_second_per_core": len(careers) / seconds,
        "render_tokenize_tokens_per_second_per_core": len(encoded.ids_T) / seconds,
    }


def in_process(*arguments: str, threads: int | None = None) -> dict[str, Any]:
    """What this module prints as its last line, run as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prepare", *arguments]
    limits = {} if threads is None else {f"{name}_THREADS": str(threads) for name in ("POLARS_MAX", "RAYON_NUM")}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | limits
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def benchmark(persons: int, tokenized: int) -> dict[str, Any]:
    """Generate a panel, then measure in processes of their own."""
    with tempfile.TemporaryDirectory(prefix="labor-llm-") as folder:
        raw = Path(folder) / "panel.parquet"
        logger.info("generating %s persons", f"{persons:,}")
        records = generate(raw, persons)
        logger.info("reading %s records", f"{records:,}")
        result = in_process("--measure", str(raw), "--outputs", folder)
        assert result["records"] == records
        result["raw_mib"] = raw.stat().st_size / 2**20
    return result | in_process("--tokenize", str(tokenized), threads=1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="20,000 persons")
    parser.add_argument("--out", type=Path, help="where the result goes")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--outputs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokenize", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.measure:
        sys.stdout.write(json.dumps(measure(args.measure, args.outputs)) + "\n")
    elif args.tokenize:
        sys.stdout.write(json.dumps(measure_tokens(args.tokenize)) + "\n")
    else:
        result = benchmark(CHUNK if args.toy else 2_000_000, 500 if args.toy else TOKENIZED)
        out = args.out or default_result("prepare-cpu.json", args.toy)
        write_result(out, {"benchmark": "prepare", "toy": args.toy, **result})
        logger.info("%s", json.dumps(result, indent=1))
        logger.info("result: %s", out)


if __name__ == "__main__":
    main()
