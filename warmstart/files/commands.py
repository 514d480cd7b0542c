"""What each command does with a checkpoint file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specgd_common.fused import HEADS
from specgd_common.tensors import norm64

from ..direction.gradient_direction import Direction, renamed
from ..targets.find import check_patterns
from ..targets.state_targets import state_targets
from .change import Edit, Edited, Job, change
from .copies import Beside
from .head import head_state_dict
from .nested import names_in_file
from .options import changed_from_defaults
from .read import SAFETENSORS, FileError, read, read_json, read_pickled
from .shards import INDEX, read_index
from .state_dicts import (
    fire_state_dict,
    perturb_state_dict,
    saved_direction,
    shrink_state_dict,
    uniform_state_dict,
)
from .undo import read_report, undone
from .verify import verify
from .with_model import change_with_model


def run(args: argparse.Namespace) -> list[str]:
    """Run one command; return what it says."""
    sharded = args.input.name.endswith(INDEX)
    args.elsewhere = read_index(args.input).shapes if sharded else None
    if args.command == "inspect":
        return _inspect(args)
    if args.output is None and not args.dry_run:
        raise ValueError("-o OUT is missing (or --dry-run)")
    if args.verify is not None:
        return _verify(args)
    return _undo(args) if args.undo is not None else _change(args)


def _inspect(args: argparse.Namespace) -> list[str]:
    if args.elsewhere is None:
        found = _described(read(args.input, args.key).tensors, args)
    else:
        shards = [args.input.parent / shard for shard in read_index(args.input).shards]
        found = [line for path in shards for line in _described(read(path).tensors, args)]
    totals = {
        "tensors": len(found),
        "weights": sum(math.prod(t["shape"]) for t in found),
        "bytes": sum(t["bytes"] for t in found),
        "not finite": sum(t["not finite"] for t in found),
        "would be shrunk": sum("unit" in t for t in found),
    }
    if args.json:
        return [json.dumps({"file": str(args.input), "totals": totals, "tensors": found}, indent=2)]
    lines = [
        f"{t['name']}  {tuple(t['shape'])}  {t['dtype']}  |w| "
        f"{'-' if t['norm'] is None else format(t['norm'], '.4g')}  "
        f"{'shrunk per ' + t['unit'] if 'unit' in t else t['left']}"
        + (f" (tied to {t['tied to']})" if "tied to" in t else "")
        + (f"  {t['not finite']} values are not finite" if t["not finite"] else "")
        for t in found
    ]
    return [*lines, ", ".join(f"{v:,} {k}" for k, v in totals.items())]


def _described(state: Mapping[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what there is to know of every tensor, and what a shrink would do."""
    selection = {k: getattr(args, k) for k in ("include", "exclude", "transposed", "elsewhere")}
    targets, skipped = state_targets(state, strict=False, **selection)
    chosen = {n: t for t in targets for n in (t.name, *t.aliases)}
    reasons = {s.name: s.reason for s in skipped}
    out = []
    for name, x in state.items():
        if not isinstance(x, Tensor):
            continue
        plain = x.is_floating_point() and x.layout is torch.strided and not x.is_meta
        told: dict[str, Any] = {
            "name": name,
            "shape": list(x.shape),
            "dtype": str(x.dtype).removeprefix("torch."),
            "bytes": x.numel() * x.element_size(),
            "norm": None,
            "not finite": int((~x.double().isfinite()).sum()) if plain else 0,
        }
        if plain and not told["not finite"]:
            told["norm"] = norm64(x)
        if name in chosen:
            told["unit"] = chosen[name].unit
            if chosen[name].name != name:
                told["tied to"] = chosen[name].name
        else:
            told["left"] = reasons.get(name, "")
        out.append(told)
    return out


def _change(args: argparse.Namespace) -> list[str]:
    if args.elsewhere is not None:
        patterns = {k: getattr(args, k) for k in ("include", "exclude", "transposed")}
        check_patterns(list(args.elsewhere), **patterns)
    reads = (getattr(args, k, None) for k in ("directions", "fresh"))
    job = _job(args, reads=[p for p in reads if p is not None])
    report = change(job, _editor(args))
    return [str(report), *_written(args, job)]


def _job(args: argparse.Namespace, **more: Any) -> Job:
    return Job(
        source=args.input,
        target=None if args.dry_run else args.output,
        report=args.report,
        key=args.key,
        force=args.force,
        beside=Beside(tuple(args.along or ()), args.reset_optimizer),
        **more,
    )


def _written(args: argparse.Namespace, job: Job) -> list[str]:
    if job.target is None:
        return ["dry run: no weight was written"]
    return [f"wrote {p}" for p in (job.target, job.report) if p is not None]


def _editor(args: argparse.Namespace) -> Edit:
    """Return the function from one file's state dict to its edit."""
    if args.command == "head":
        return _head_editor(args)
    if args.command != "dash":
        return _peer_editor(args)
    if (args.entry is None) == (args.directions is None):
        raise ValueError(
            "dash needs --directions: torch.save(GradientDirection(...).state_dict(), FILE), or "
            "--entry module:function; one of the two"
        )
    if args.entry is not None:
        return _model_editor(args)
    direction, alpha = _read_directions(args.directions)
    names = args.elsewhere or read(args.input, args.key).tensors
    direction = renamed(direction, names_in_file(names, direction.average))
    options = {k: getattr(args, k) for k in ("floor", "units", "zero_gradient", "bias")}

    def edit(state: Mapping[str, Any]) -> Edited:
        # A shard has some of the tensors.
        own = [n for n in direction.average if args.elsewhere is None or n in state]
        part: dict[str, Any] = {"alpha": alpha, "num_batches": direction.num_batches}
        part["directions"] = {n: direction.average[n] for n in own}
        if direction.odd is not None:
            part["odd_batches"] = {n: direction.odd[n] for n in own}
        return Edited.of(*shrink_state_dict(state, part, **options, **_selection(args)))

    if args.elsewhere is not None:
        unknown = [n for n in direction.average if n not in args.elsewhere]
        if unknown:
            raise ValueError(f"directions for {unknown[:5]} have no tensor in the checkpoint")
    return edit


def _selection(args: argparse.Namespace) -> dict[str, Any]:
    names = ("include", "exclude", "transposed", "elsewhere")
    return {**{k: getattr(args, k) for k in names}, "strict": args.elsewhere is None}


def _peer_editor(args: argparse.Namespace) -> Edit:
    selection = _selection(args)
    if args.command == "fire":
        heads = args.heads
        if heads is None:
            heads = _configured_heads(args.input.with_name("config.json"))
        return lambda state: Edited.of(
            *fire_state_dict(state, args.strength, heads=heads, **selection)
        )
    selection["bias"] = args.bias
    if args.command == "uniform":
        return lambda state: Edited.of(*uniform_state_dict(state, args.factor, **selection))
    fresh = None if args.fresh is None else read_whole(args.fresh)
    strengths = {"shrink": args.shrink, "perturb": args.perturb}
    return lambda state: Edited.of(
        *perturb_state_dict(
            state, args.preset, fresh=fresh, seed=args.seed, **strengths, **selection
        )
    )


def _configured_heads(path: Path) -> int | None:
    """Return the number of heads in a model's settings, if there are any beside it."""
    settings = read_json(path) if path.is_file() else {}
    found = (settings.get(name) for name in HEADS)
    return next((n for n in found if isinstance(n, int) and n > 0), None)


def _head_editor(args: argparse.Namespace) -> Edit:
    """Draw the head anew: of the user's model, or by names alone."""
    if args.entry is None:
        fresh = None if args.fresh is None else read_whole(args.fresh)
        options = {"fresh": fresh, "seed": args.seed, "transposed": args.transposed}
        if args.elsewhere is not None:
            raise ValueError("head takes the shard that holds the head, or --entry for all of them")
        return lambda state: Edited.of(*head_state_dict(state, args.layers, **options))
    if args.fresh is not None:
        raise ValueError("--entry builds a fresh model: leave out --fresh")
    layers = args.layers or ["1"]
    count = int(layers[0]) if len(layers) == 1 and layers[0].isdigit() else None
    return _with_model(args, {"layers": layers if count is None else count, "seed": args.seed})


def _model_editor(args: argparse.Namespace) -> Edit:
    names = ("floor", "alpha", "tail", "grad_mode", "units", "zero_gradient", "bias", "lora")
    more = ("reliability", "recalibrate_norm", "include", "exclude")
    return _with_model(args, {k: getattr(args, k) for k in (*names, *more)})


def _with_model(args: argparse.Namespace, options: dict[str, Any]) -> Edit:
    if args.transposed is not None:
        raise ValueError("--entry brings a model that knows its layers: leave out --transposed")
    state = read_whole(args.input, args.key)
    new, report = change_with_model(state, args.entry, args.command, **options)

    def edit(state: Mapping[str, Any]) -> Edited:
        return Edited.of(type(state)((k, new.get(k, v)) for k, v in state.items()), report)  # type: ignore[call-arg]

    return edit


def read_whole(path: Path, key: str | None = None) -> dict[str, Any]:
    """Return the tensors of a file, or of all shards of an index."""
    if not path.name.endswith(INDEX):
        return dict(read(path, key).tensors)
    shards = read_index(path).shards
    return {k: v for s in shards for k, v in read(path.parent / s).tensors.items()}


def _read_directions(path: Path) -> tuple[Direction, float | None]:
    """Read what ``GradientDirection.state_dict()`` or plain name -> direction was saved as."""
    saved = read(path).tensors if path.suffix == SAFETENSORS else read_pickled(path)
    try:
        return saved_direction(saved)
    except (TypeError, ValueError) as error:
        raise FileError(path, error) from None


def _verify(args: argparse.Namespace) -> list[str]:
    """Hold OUT against IN and a report; options that would change something are refused."""
    extra = changed_from_defaults(args, {"input", "output", "verify", "key"})
    if extra:
        raise ValueError(f"--verify compares IN and OUT: leave out {', '.join(extra)}")
    _, told = read_report(args.verify, factors=False)
    old, new = (read_whole(path, args.key) for path in (args.input, args.output))
    return [verify(args.output, new, old, told)]


def _undo(args: argparse.Namespace) -> list[str]:
    """Divide by a report's factors; options that would say otherwise are refused."""
    kept = {"input", "output", "force", "dry_run", "undo", "key", "reset_optimizer"}
    extra = changed_from_defaults(args, kept)
    if extra:
        raise ValueError(f"--undo does what the report says: leave out {', '.join(extra)}")
    report, told = read_report(args.undo)
    if str(report.get("method")).removesuffix("_shrink") != args.command:
        raise FileError(args.undo, f"reports {report.get('method')!r}, not {args.command!r}")
    settings = report.get("settings")
    along = settings.get("along") if isinstance(settings, Mapping) else None
    args.along = along
    if along is not None and not (
        isinstance(along, list) and all(isinstance(key, str) for key in along)
    ):
        raise FileError(args.undo, "settings.along must be a list of keys")
    names = args.elsewhere
    missing = [] if names is None else [n for n in told.factors if n not in names]
    if missing:
        raise FileError(args.undo, f"tells of {missing[:5]}, which {args.input} does not hold")

    def edit(state: Mapping[str, Any]) -> Edited:
        own = told if names is None else told.of(state)
        inverse = {n: 1.0 / f for n, f in own.factors.items()}
        return Edited(
            undone(state, own) if inverse else state, None, inverse, [(n,) for n in inverse]
        )

    job = _job(args, reads=[args.undo], done={"method": "undo", "undone": args.command})
    change(job, edit)
    return [f"undone: {args.undo}", *_written(args, job)]
