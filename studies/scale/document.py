"""The tables of docs/scale.md, from the formulas and the results of the simulation."""

from collections.abc import Mapping, Sequence
from typing import Any

from studies.pages import replace_table
from studies.scale.formulas import (
    ARCHS,
    ASSUMPTIONS,
    GPUS,
    HOUR,
    count_stream_shards,
    describe_model,
    get_value,
    plan_failures,
    plan_preparation,
    plan_storage,
    plan_training,
)
from swag_models.formatting import markdown_table


def write_document(text: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the document with new tables.

    Args:
        text: the document, with a pair of marks for each table.
        results: of `simulate`, with the keys `seconds` and `peak_mib` of the whole simulation.

    Raises:
        ConfigError: the marks of a table are missing.
    """
    tables = {
        "assumptions": list_assumptions(),
        "training": list_trainings(),
        "storage": list_storage(),
        "index": list_index(results),
        "shuffle": list_shuffle(results),
        "failures": list_failures(),
    }
    for name, table in tables.items():
        text = replace_table(text, name, table)
    return text


def list_assumptions() -> str:
    """The table of the assumptions."""
    rows = [[each.text, each.what, each.source] for each in ASSUMPTIONS.values()]
    return markdown_table(["value", "of", "source"], rows)


def list_trainings() -> str:
    """The table of training time and cost."""
    rows = []
    for arch in ARCHS:
        model = describe_model(arch)
        for gpus in GPUS:
            plan = plan_training(model, gpus)
            low, high = plan.cost
            rows.append(
                [
                    f"{arch}, {model.parameters / 1e6:.0f}M",
                    f"{gpus:,}",
                    f"{get_value('batch') / gpus:.0f}",
                    f"{plan.compute * 1e3:.0f}",
                    f"{plan.reduce * 1e3:.0f}",
                    f"{plan.step * 1e3:.0f}",
                    f"{plan.days:.1f}",
                    f"{plan.gpu_hours:,.0f}",
                    f"{low / 1e3:.0f} to {high / 1e3:.0f}",
                    f"{plan.read_rate / 1e9:.1f}",
                    f"{plan.cores:.1f}",
                ]
            )
    header = ["model, parameters", "GPUs", "images per GPU", "compute, ms", "all-reduce, ms"]
    header += ["step, ms", "days", "GPU-hours", "1,000 USD", "read, GB/s", "cores per GPU"]
    return markdown_table(header, rows)


def list_storage() -> str:
    """The table of storage, shards per stream, and preparation."""
    storage, hours = plan_storage(), plan_preparation()
    rows = [
        ["shards", f"{storage['bytes'] / 1e12:.0f} TB, {storage['month']:,.0f} USD per month"],
        ["number of shards", f"{storage['shards']:,.0f} of {storage['shard_bytes'] / 1e6:.0f} MB"],
    ]
    for gpus in GPUS:
        streams, shards = count_stream_shards(gpus, 8)
        text = f"{shards:,.0f} shards for each of {streams:,} streams"
        rows.append([f"{gpus:,} ranks of 8 workers", text])
    what = {
        "curate": "curation of the posts",
        "download": "download and resizing",
        "pack": "packing",
    }
    rows += [[what[step], f"{value:,.0f} core-hours"] for step, value in hours.items()]
    return markdown_table(["what", "amount"], rows)


def list_index(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of the time and memory of the index."""
    rows = []
    for result in results:
        index, epoch, resume = result["index"], result["epoch"], result["resume"]
        rows.append(
            [
                f"{index['shards']:,.0f}",
                f"{index['manifest_mib']:,.0f}",
                f"{index['open_seconds']:.1f}",
                f"{index['open_peak_mib']:,.0f}",
                f"{index['order_seconds']:.1f}",
                f"{index['kept_mib']:.0f}",
                f"{epoch['min_shards']} to {epoch['max_shards']}",
                f"{epoch['next_epoch_share']:.1%}",
                f"{resume['state_bytes'] / 2**10:.0f}",
                f"{result['seconds'] / 60:.1f} min, {result['peak_mib']:,.0f} MiB",
            ]
        )
    header = ["shards", "manifest, MiB", "open, s", "peak, MiB", "order, s", "kept per worker, MiB"]
    header += ["shards per stream", "of the next epoch", "state, KiB", "whole simulation"]
    return markdown_table(header, rows)


def list_shuffle(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of the measures of shuffling."""
    rows = []
    for result in results:
        plan, streams = result["plan"], result["streams"]
        images = plan["images"] // plan["shards"]
        # The batches of a rank come from its workers in turn.
        steps = streams["copy_gap"] / (plan["batch_size"] // max(plan["ranks"])) * plan["workers"]
        rows.append(
            [
                f"{plan['shards']:,} of {images:,} images",
                f"{streams['samples'] / 1e6:.2f} million",
                f"{streams['shard_span']:,.0f}",
                f"{streams['shards_per_batch']:.2f}",
                f"{streams['copy_gap']:,.0f}, {steps:,.0f} steps",
                f"{streams['copy_gap_99']:,.0f}",
                f"{streams['copies_per_batch']:.2%}",
            ]
        )
    header = ["shards", "samples read", "first to last sample of a shard, median"]
    header += ["shards in the batch of a rank", "between copies, median", "99% below"]
    header += ["samples with a copy in the batch of the rank"]
    return markdown_table(header, rows)


def list_failures() -> str:
    """The table of checkpoints and failures."""
    rows = []
    for arch in ARCHS:
        model = describe_model(arch)
        for gpus in (GPUS[0], GPUS[-1]):
            days = plan_training(model, gpus).days
            plan = plan_failures(model, gpus, days)
            rows.append(
                [
                    arch,
                    f"{gpus:,}",
                    f"{model.state_bytes / 1e9:.1f}",
                    f"{plan.write:.1f}",
                    f"{plan.between / HOUR:,.0f}",
                    f"{plan.expected:.2f}",
                    f"{plan.interval / 60:.0f}",
                    f"{plan.lost:.1%}",
                ]
            )
    header = ["model", "GPUs", "checkpoint, GB", "write, s", "hours between failures"]
    header += ["failures expected", "best interval, min", "lost"]
    return markdown_table(header, rows)
