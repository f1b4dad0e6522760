"""Seconds to score all titles of a choice set after every record of a career, beside the usual ways.

    python -m benchmarks.scoring [--rounds 3] [--careers 3000] [--epochs 4] [--toy] [--data CAREERS.parquet]
                                 [--out benchmarks/results/scoring-cpu.json]

Every way scores the same records of the same careers with the same weights in float32. The models are trained once
and kept in outputs/benchmarks. See benchmarks/README.md for what is fair about it and what is not.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.machine import ROOT, default_result, installed_version, matmul_rate, seconds, write_result
from benchmarks.panel import generated_panel, process_perplexity, stay_rate
from benchmarks.scoring_engine import Engine, exact_flops, prompts
from benchmarks.scoring_memory import memory_of_scoring
from benchmarks.scoring_models import TOY, Fitted, fitted, micro_backbone
from benchmarks.scoring_report import (
    CACHE,
    EXACT,
    LM_EVAL,
    METHODS,
    NAIVE,
    PRUNED,
    RIVALS,
    TOKEN,
    Round,
    summary,
    table_of,
)
from benchmarks.scoring_rivals import Rival, batch_size_trials, lm_eval_rival, naive_rival, prefix_cache_rival
from labor_llm.careers import Careers
from labor_llm.language.backbones import ScratchBackbone
from labor_llm.language.scoring import PackedCareers
from labor_llm.models.base import choice_set
from labor_llm.splits import SplitByPerson, Splits
from labor_llm.templates import Titles, Tokens

TOLERANCE = 1e-3
"""Of pruned scoring: probability per record that may be left unexpanded."""
SPLIT = SplitByPerson(train=0.8, valid=0.1, test=0.1, salt="benchmark")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is computed."""

    backbone: ScratchBackbone
    careers: int
    """Persons of the generated panel, those to validate and test on included."""
    epochs: int
    rounds: int
    rival_records: int
    """Records per career on which the rivals are timed."""
    batch_sizes: tuple[int, ...]
    """Tried for every rival."""
    records: int
    """Of the careers that are scored; the nearest in number are taken."""
    trial_titles: int
    """Titles on which batch sizes are tried."""
    valid_persons: int
    """Persons on whom training is validated."""
    device: str = "cpu"
    models: Path = ROOT / "outputs" / "benchmarks"


def toy(size: Size) -> Size:
    """The same in seconds; it shows that everything runs, and nothing about speed."""
    return replace(
        size,
        backbone=TOY,
        careers=120,
        epochs=1,
        rounds=1,
        rival_records=2,
        batch_sizes=(32, 64),
        records=8,
        trial_titles=64,
        valid_persons=5,
    )


@dataclass(frozen=True)
class Subject:
    """What is timed: two models of the same panel, and every way of scoring, rivals at their best batch size."""

    title: Fitted
    token: Fitted
    exact: Engine
    pruned: Engine
    by_token: Engine
    rivals: dict[str, Rival]
    batch_sizes: dict[str, int]
    trials: dict[str, dict[int, float]]


def evenly_spaced(records: int, wanted: int) -> list[int]:
    """The middles of so many equal stretches of a career, so that a cost that grows along it averages out."""
    wanted = min(wanted, records)
    return [int((place + 0.5) * records / wanted) for place in range(wanted)]


def score_round(subject: Subject, person: Careers, size: Size, number: int, say: Callable[[str], None]) -> Round:
    """Score one career every way; the order of the ways moves on with every round."""
    career, token_career = subject.title.encode(person), subject.token.encode(person)
    result = Round(int(career.prompt_ends_Q.max()), len(person))
    result.sample = evenly_spaced(len(person), size.rival_records)
    result.exact_flops = exact_flops(subject.title.model, subject.exact.trie, career.prompt_ends_Q)
    ways: dict[str, Callable[[], None]] = {
        **{name: partial(_time_rival, name, subject, career, result) for name in RIVALS},
        EXACT: partial(_time_engine, EXACT, subject.exact, career, result),
        PRUNED: partial(_time_engine, PRUNED, subject.pruned, career, result),
        TOKEN: partial(_time_engine, TOKEN, subject.by_token, token_career, result),
    }
    names = list(ways)
    for name in names[number % len(names) :] + names[: number % len(names)]:
        say(METHODS[name])
        ways[name]()
    return result


def _time_rival(name: str, subject: Subject, career: PackedCareers, result: Round) -> None:
    sampled = prompts(career)
    sampled = [sampled[record] for record in result.sample]

    def work() -> None:
        result.raw[name] = subject.rivals[name](sampled, subject.title.titles)

    result.seconds[name] = seconds(work, subject.title.model.device) / len(sampled)


def _time_engine(name: str, engine: Engine, career: PackedCareers, result: Round) -> None:
    def work() -> None:
        scores = engine.score(career)
        result.raw[name] = scores.raw_QJ
        if name == PRUNED:
            result.unexpanded_Q = scores.unexpanded_Q

    result.seconds[name] = seconds(work, engine.model.device) / len(career.prompt_ends_Q)


def careers_to_score(test: Careers, records: int, wanted: int) -> list[Careers]:
    """The persons whose number of records is nearest to so many, one career each."""
    distances_P = np.abs(np.diff(test.person_starts) - records)
    persons = test.table["person_id"].gather(test.person_starts[:-1])
    chosen = np.argsort(distances_P, kind="stable")[:wanted]
    return [test.select_persons([persons[int(place)]]) for place in chosen]


def subject_of(title: Fitted, token: Fitted, person: Careers, size: Size, say: Callable[[str], None]) -> Subject:
    """The ways of scoring; every rival with the batch size that is best at the middle record of a career."""
    makers = {
        LM_EVAL: partial(lm_eval_rival, title.model, title.tokenizer),
        NAIVE: partial(naive_rival, title.model),
        CACHE: partial(prefix_cache_rival, title.model),
    }
    career = prompts(title.encode(person))
    titles = title.titles[:: max(1, len(title.titles) // size.trial_titles)]
    trials = {}
    for name, make in makers.items():
        say(f"batch size of {METHODS[name]}")
        trials[name] = batch_size_trials(make, size.batch_sizes, [career[len(career) // 2]], titles)
    batch_sizes = {name: min(tried, key=lambda size: tried[size]) for name, tried in trials.items()}
    return Subject(
        title=title,
        token=token,
        exact=Engine(title.model, title.titles),
        pruned=Engine(title.model, title.titles, TOLERANCE),
        by_token=Engine(token.model, token.titles),
        rivals={name: make(batch_sizes[name]) for name, make in makers.items()},
        batch_sizes=batch_sizes,
        trials=trials,
    )


def measure(careers: Careers, choices: Sequence[str] | None, size: Size) -> dict[str, Any]:
    """All numbers of one panel; ``choices`` None takes the choice set of its training persons."""
    splits = SPLIT(careers)
    splits = replace(splits, valid=_first_persons(splits.valid, size.valid_persons))
    title, token = (
        fitted(
            label,
            size.backbone,
            splits,
            choices or choice_set(splits.train),
            size.epochs,
            size.models,
            size.device,
        )
        for label in (Titles(), Tokens())
    )
    persons = careers_to_score(splits.test, size.records, size.rounds + 1)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=size.rounds + 1)

        def say(what: str) -> None:
            progress.update(task, description=what)

        subject = subject_of(title, token, persons[-1], size, say)
        rate = matmul_rate(torch.float32, size.device)
        score_round(subject, persons[-1], replace(size, rival_records=1), 0, say)  # to warm up
        rounds = []
        for number, person in enumerate(persons[:-1]):
            progress.advance(task)
            rounds.append(score_round(subject, person, size, number, say))
        rate = max(rate, matmul_rate(torch.float32, size.device))
        say("memory")
        memory = memory_of_scoring(title.folder, title.titles, title.encode(persons[0]))
    facts = {"panel": panel_facts(careers, splits, title, token), "memory": memory}
    return summary(rounds, rate) | subject_facts(subject) | facts | {"peak_rss_gib": memory["peak_rss_gib"]}


def _first_persons(careers: Careers, wanted: int) -> Careers:
    return careers.select_persons(careers.table["person_id"].unique(maintain_order=True)[:wanted])


def panel_facts(careers: Careers, splits: Splits, title: Fitted, token: Fitted) -> dict[str, Any]:
    """What the panel is, and how well the models predict it."""
    generated = careers.dataset == "generated"
    return {
        "dataset": careers.dataset,
        "persons": careers.persons,
        "records": len(careers),
        "training_persons": splits.train.persons,
        "stay_rate": stay_rate(careers),
        "valid_persons": splits.valid.persons,
        "valid_perplexity": {"title": title.perplexity, "token": token.perplexity},
        "valid_perplexity_of_process": process_perplexity(splits.valid) if generated else None,
    }


def subject_facts(subject: Subject) -> dict[str, Any]:
    """What was timed, with which settings."""
    titles, language = subject.title.titles, subject.title.language
    return {
        "titles": len(titles),
        "titles_mean_tokens": float(np.mean([len(title) for title in titles])),
        "inner_nodes": subject.exact.trie.nodes,
        "inner_nodes_token_label": subject.by_token.trie.nodes,
        "batch_sizes": subject.batch_sizes,
        "batch_size_trials_seconds": subject.trials,
        "lm_eval_batch_size": subject.batch_sizes[LM_EVAL],
        "lm_eval_version": installed_version("lm_eval"),
        "pruned_tolerance": TOLERANCE,
        "backbone": language.backbone.name,
        "parameters": subject.title.model.num_parameters(),
        "parameters_token_label": subject.token.model.num_parameters(),
        "epochs": language.trainer.max_epochs,
        "dtype": "float32",
    }


def benchmark(size: Size, data: Path | None = None) -> dict[str, Any]:
    """The whole benchmark: the generated panel and, under ``other_panel``, the careers of a file."""
    careers = generated_panel(size.careers, seed=0)
    result = measure(careers, careers.taxonomy.codes, size)
    if data is None:
        return result
    other = measure(Careers.read(data), None, size)
    records = median(career["records"] for career in other.pop("careers"))  # whose sizes stay where the panel is
    return result | {"other_panel": other | {"records_per_career": records}}


def parsed(arguments: Sequence[str]) -> tuple[Size, argparse.Namespace]:
    """The size that the command line asks for, and its other options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="careers that are scored after one to warm up")
    parser.add_argument("--careers", type=int, default=3000, help="persons of the generated panel")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of training, of either label")
    parser.add_argument("--rival-records", type=int, default=4, help="records per career that rivals are timed on")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data", type=Path, help="a prepared careers.parquet to measure too")
    parser.add_argument("--models", type=Path, default=ROOT / "outputs" / "benchmarks", help="keeps the models")
    parser.add_argument("--toy", action="store_true", help="a size of seconds that says nothing about speed")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/scoring-DEVICE.json")
    options = parser.parse_args(arguments)
    size = Size(
        backbone=micro_backbone(),
        careers=options.careers,
        epochs=options.epochs,
        rounds=options.rounds,
        rival_records=options.rival_records,
        batch_sizes=(8, 16, 32, 64) if options.device == "cpu" else (64, 128, 256, 512, 1024),
        records=40,
        trial_titles=128 if options.device == "cpu" else 1000,
        valid_persons=100,
        device=options.device,
        models=options.models,
    )
    options.out = options.out or default_result(f"scoring-{options.device}.json", options.toy)
    return (toy(size) if options.toy else size), options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and show."""
    size, options = parsed(sys.argv[1:] if arguments is None else arguments)
    result = benchmark(size, options.data)
    write_result(options.out, result | {"toy": options.toy})
    console = Console()
    console.print(table_of(result, "generated panel"))
    if "other_panel" in result:
        console.print(table_of(result["other_panel"], result["other_panel"]["panel"]["dataset"]))


if __name__ == "__main__":
    main()
