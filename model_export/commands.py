"""The offline subcommands of `glyphrec`. They import the packages of the export extra only when they run."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TypeAlias

from service.core.cpus import usable_cpus
from service.core.progress import ProgressBar

DATA_HELP = (
    "a folder with items.jsonl[.gz] and interactions.jsonl[.gz], or a source: "
    "events:EVENTS[,ITEMS], amazon:REVIEWS,METADATA[,CORE], completejourney[:FOLDER], movielens-100k[:FOLDER]"
)

# Threads that wait for each other sleep instead of spinning. On a busy machine this is several times faster.
# OpenMP reads the variable when torch is imported, in the functions below.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# OpenMP knows the affinity of this process, but not the quota of its container.
if (cpus := usable_cpus()).quota < cpus.affinity:
    os.environ.setdefault("OMP_NUM_THREADS", str(cpus.num_threads))

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def say(text: str) -> None:
    """Print a line without breaking a progress bar."""
    ProgressBar.write(text, file=sys.stdout)
    sys.stdout.flush()


def add_prepare(subparsers: Subparsers) -> None:
    """Add `glyphrec prepare`."""
    from model_export.data.event_log.options import add_options

    parser = subparsers.add_parser("prepare", help="read a data source and write it in the neutral form")
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument("--out", type=Path, help="the folder to write")
    add_options(parser)
    parser.set_defaults(run=_prepare)


def _prepare(args: argparse.Namespace) -> int:
    from model_export.data.event_log.options import EventOptions, options_of
    from model_export.data.event_log.times import milliseconds_of
    from model_export.data.splits import events_before
    from model_export.data.tables import DataError, check_apart, read_dataset, read_events, write_dataset
    from model_export.files import check_folder

    options = options_of(args)
    if args.out is None and not args.preview:
        raise DataError("prepare: nowhere to write. Give --out FOLDER, or --preview to only look.")
    if args.out is not None and not args.preview:
        check_apart(args.data, args.out)
        check_folder(args.out, "--out")
    log = read_events(args.data, options)
    if log is None:
        if options != EventOptions(until=args.until):
            raise DataError(
                f"{args.data}: flags of columns and events, but for --until, need "
                "--data events:EVENTS[,ITEMS]."
            )
        moment = None if args.until is None else milliseconds_of(args.until, "--until")
        dataset = read_dataset(args.data)
        if moment is not None:
            dataset = events_before(dataset, moment, args.until)
        say(dataset.summary())
    else:
        dataset = log.dataset
        say(log.preview.text())
    if args.preview:
        say("a preview: nothing was written")
        return 0
    write_dataset(dataset, args.out)
    say(f"wrote {args.out}")
    return 0


def add_export(subparsers: Subparsers) -> None:
    """Add `glyphrec export`."""
    parser = subparsers.add_parser(
        "export", help="train on a catalog and its interactions, and write a bundle"
    )
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="the bundle's folder; must not exist, or hold the bundle of the same export",
    )
    _add_config(parser)
    parser.add_argument(
        "--seed", type=int, default=None, help="random seed (default: the configuration's, 0)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".glyphrec/cache"), help="folder for finished stages"
    )
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from model_export.config_changes import chosen
    from model_export.data.tables import read_dataset
    from model_export.evaluation.evaluate import table
    from model_export.export import export
    from model_export.files import check_folder

    seed = [] if args.seed is None else [f"seed={args.seed}"]
    config = chosen(args.config, [*args.settings, *seed])
    check_folder(args.cache, "--cache")  # before the data are read, which may take minutes
    check_folder(args.out.absolute().parent, "--out")
    dataset = read_dataset(args.data)
    bundle = export(dataset, args.out, config, cache_folder=args.cache, say=say)
    say(table(bundle.manifest.metrics))
    say(f"\nbundle: {bundle.path}\nreport: {bundle.path / 'report' / 'report.md'}")
    say(f"serve it: glyphrec serve --bundle {bundle.path}")
    return 0


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        default="base",
        metavar="NAME|FILE",
        help="a named configuration (default base), or a TOML file that says what differs from one. "
        "`glyphrec configs` lists them",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting that differs, for example training.max_epochs=20. May be given several times",
    )


def add_configs(subparsers: Subparsers) -> None:
    """Add `glyphrec configs`."""
    parser = subparsers.add_parser(
        "configs",
        help="list the configurations of an export, or show the settings of one",
        description="Without options: the named configurations. With --config or --set: all settings, as a "
        "file for `glyphrec export --config FILE`.",
    )
    _add_config(parser)
    parser.set_defaults(run=_configs, config=None)


def _configs(args: argparse.Namespace) -> int:
    from model_export.config_changes import as_toml, chosen
    from model_export.configs import RUNS

    if args.config is None and not args.settings:
        for name, make in RUNS.items():
            summary = (make.__doc__ or "").strip().splitlines()[0]
            say(f"{name:<22}{summary}")
        say("\nglyphrec configs --config NAME shows all settings of one.")
        return 0
    say(as_toml(chosen(args.config or "base", args.settings)))
    return 0


def add_evaluate(subparsers: Subparsers) -> None:
    """Add `glyphrec evaluate`."""
    parser = subparsers.add_parser("evaluate", help="measure a bundle's exported graphs and the baselines")
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument(
        "--split-at",
        metavar="TIME",
        help="in place of leave-one-out, test on each user's first item from this ISO time on; for a bundle "
        "exported from the events before it (prepare --until TIME)",
    )
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from model_export.data.event_log.times import milliseconds_of
    from model_export.data.splits import split_by_time
    from model_export.data.tables import DataError, read_dataset
    from model_export.evaluation.evaluate import differences, evaluate, known_to, table
    from model_export.files import check_file
    from service.core.bundle import load_bundle

    moment = None if args.split_at is None else milliseconds_of(args.split_at, "--split-at")
    if args.json:
        check_file(args.json, "--json")
    bundle = load_bundle(args.bundle)
    dataset = read_dataset(args.data)
    split = None
    if moment is not None:
        if bundle.manifest.data_fingerprint == dataset.fingerprint:
            raise DataError(
                f"{args.bundle}: was exported from all of these events, also those after {args.split_at}. "
                f"Export the earlier ones: prepare --until {args.split_at}"
            )
        dataset = known_to(bundle, dataset)
        say(dataset.summary())
        split = split_by_time(dataset, moment)
    warning = differences(bundle, dataset, split)
    for line in warning:
        ProgressBar.write(line, file=sys.stderr)
    figures = evaluate(bundle, dataset, split=split)
    shown = table(figures) if moment is None else table(figures, f"split at {args.split_at}")
    say("\n".join([shown, *warning]))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def add_study(subparsers: Subparsers) -> None:
    """Add `glyphrec study`."""
    parser = subparsers.add_parser(
        "study", help="compare encoders, quantizers, generators and baselines, and write the report"
    )
    parser.add_argument(
        "--data", action="append", required=True, help=f"{DATA_HELP}. Give the option once for each data set"
    )
    parser.add_argument(
        "--plan",
        default="full",
        help="full (default), tiny, or embeddings: rankers in the order of times, for embeddings.md",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="CELL",
        help="run only these cells; the default is all",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs"),
        help="folder of study.md; its subfolder study/cells stores the finished cells",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".glyphrec/cache"), help="folder for finished stages"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="run no cells, and write the report of the finished ones"
    )
    parser.add_argument(
        "--costs",
        action="store_true",
        help="also measure the costs of the cells again, on this machine",
    )
    parser.set_defaults(run=_study)


def _study(args: argparse.Namespace) -> int:
    from model_export.study.command import study

    study(
        args.data,
        plan_name=args.plan,
        only=args.only,
        out=args.out,
        cache_folder=args.cache,
        report_only=args.report_only,
        costs=args.costs,
        say=say,
    )
    return 0


def add_vl_clip(subparsers: Subparsers) -> None:
    """Add `glyphrec vl-clip`."""
    parser = subparsers.add_parser(
        "vl-clip", help="learn a joint space of texts and photos, and measure how texts find photos"
    )
    parser.add_argument("--data", required=True, help=f"{DATA_HELP}. Its items are the test")
    parser.add_argument(
        "--pairs",
        type=Path,
        help="a folder with items.jsonl[.gz] and photos to learn from (default: most of --data's own items)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for figures.json, the towers and the pages with boxes"
    )
    parser.add_argument(
        "--grounding",
        choices=["none", "classes", "regions", "detector"],
        default="none",
        help="crop photos to the product: by maps of ImageNet's classes, by regions compared in the learned "
        "space, or by a detector (default none)",
    )
    parser.add_argument(
        "--detector", default="", metavar="CHECKPOINT", help="for --grounding detector: a folder or hub name"
    )
    parser.add_argument(
        "--phrase",
        choices=["type", "text"],
        default="type",
        help="what is looked for in a photo: the last of the item's categories, or its whole text",
    )
    parser.add_argument(
        "--clip", metavar="CHECKPOINT", help="fine-tune CLIP from a folder or hub name in place of our space"
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="have a chat server write the texts anew; REFINE_URL and REFINE_MODEL say which",
    )
    parser.add_argument(
        "--cluttered",
        type=int,
        default=400,
        metavar="N",
        help="with --grounding: also test N photos beside another product's (default 400)",
    )
    parser.add_argument(
        "--only-clutter", action="store_true", help="ground these photos alone, which is quicker"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument(
        "--cache", type=Path, default=Path(".glyphrec/cache"), help="folder for finished stages"
    )
    parser.set_defaults(run=_vl_clip)


def _vl_clip(args: argparse.Namespace) -> int:
    from model_export.data.neutral import read_catalog
    from model_export.data.tables import read_dataset
    from model_export.files import check_folder
    from model_export.picture_configs import SpaceConfig
    from model_export.pipeline.cache import StageCache
    from model_export.vl_clip.configs import ClipConfig, GroundingConfig, VlClipConfig
    from model_export.vl_clip.refinement_settings import refinement_settings
    from model_export.vl_clip.run import run_vl_clip, table

    refine = refinement_settings() if args.refine else None
    check_folder(args.out, "--out")
    cache = StageCache(args.cache, say)
    config = VlClipConfig(
        space=SpaceConfig() if args.clip is None else ClipConfig(args.clip),
        grounding=GroundingConfig(args.grounding, args.detector, args.phrase),
        seed=args.seed,
        num_cluttered=max(0, args.cluttered),
        only_clutter=args.only_clutter,
    )
    catalog = read_dataset(args.data)
    pairs = None if args.pairs is None else read_catalog(args.pairs)
    results = run_vl_clip(catalog, pairs, args.out, config, cache=cache, refine=refine, say=say)
    say(f"\n{table(results)}\n\nwrote {args.out}")
    return 0


def add_demo(subparsers: Subparsers) -> None:
    """Add `glyphrec demo`."""
    parser = subparsers.add_parser(
        "demo", help="train on real groceries, serve, post new items and recommend"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(".glyphrec/demo"),
        help="folder for everything that the demo stores",
    )
    parser.add_argument("--port", type=int, default=8000, help="the first port to try")
    parser.add_argument(
        "--once", action="store_true", help="stop the service at the end instead of waiting for Ctrl-C"
    )
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from model_export.demo import run_demo

    run_demo(args.folder, port=args.port, keep_running=not args.once, echo=say)
    return 0
