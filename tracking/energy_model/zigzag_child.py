"""Runs ZigZag on one product and writes down what it found: the other process of :mod:`tracking.energy_model.zigzag`.

A script for any interpreter that has ZigZag, with nothing of this project: ``zigzag_child.py job.json result.json``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import random
import sys
import traceback
from pathlib import Path
from typing import Any

FILES = ("workload", "accelerator", "mapping")
TEMPORAL = {"loma": ("mapping.temporal_mapping_generator_stage", "TemporalMappingGeneratorStage"),
            "salsa": ("mapping.salsa", "SalsaStage")}
WAYS = ("RD_OUT_TO_LOW", "WR_IN_BY_LOW", "RD_OUT_TO_HIGH", "WR_IN_BY_HIGH")


def write_files(job: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write the three inputs as YAML, which JSON is not quite: YAML 1.1 reads ``1e-05`` as a word. Paths by name."""
    yaml = importlib.import_module("yaml")
    paths = {name: folder / f"{name}.yaml" for name in FILES}
    for name, path in paths.items():
        path.write_text(yaml.safe_dump(job[name], sort_keys=False), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def stages(engine: str) -> list[Any]:
    """From the three files to the cheapest schedule; ZigZag's own list without its figures and result files."""
    reduce = ("results.reduce_stages", "MinimalEnergyStage")
    names = [("parser.workload_parser", "WorkloadParserStage"), ("parser.accelerator_parser", "AcceleratorParserStage"),
             ("workload_iterator", "WorkloadStage"), reduce, ("mapping.spatial_mapping_generation", "SpatialMappingGeneratorStage"),
             reduce, TEMPORAL[engine], ("evaluation.cost_model_evaluation", "CostModelStage")]
    return [getattr(importlib.import_module(f"zigzag.stages.{module}"), name) for module, name in names]


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Energies in pJ: of the multipliers, of the memories, and by memory operand, level (innermost first) and way.

    ``unrolled`` is the mapping onto the array that it used, in the form in which it was given.
    """
    main = importlib.import_module("zigzag.stages.main").MainStage
    # an operand that the array needs again is read again, as in our model: nothing stays at the pins of a memory for free
    options = {"access_same_data_considered_as_no_access": False, "loma_lpf_limit": job["lpf_limit"],
               "loma_show_progress_bar": False, "nb_mappings_generated": 1, "enable_mix_spatial_mapping_generation": False,
               "temporal_mapping_type": importlib.import_module("zigzag.mapping.temporal_mapping").TemporalMappingType.UNEVEN}
    for seeded in (random, importlib.import_module("numpy").random):
        seeded.seed(0)
    found = main(stages(job["engine"]), **write_files(job, folder), **options).run()[0][0]
    way = importlib.import_module("zigzag.mapping.data_movement").DataDirection
    links = found.layer.memory_operand_links
    return {"mac_pj": float(found.mac_energy), "memory_pj": float(found.mem_energy),
            "moved_pj": {links.layer_to_mem_op(operand).name: [{name: float(level.get(way[name])) for name in WAYS}
                                                               for level in levels]
                         for operand, levels in found.mem_energy_breakdown_further.items()},
            "unrolled": {axis.name: [f"{loop.name}, {times}" for loop, times in loops.items()]
                         for axis, loops in found.layer.spatial_mapping.items()}}


def main(job: Path, result: Path) -> None:
    """Write what :func:`run` found, or under ``missing`` the module that is not there, or under ``error`` what went wrong."""
    logging.basicConfig(level=logging.ERROR)
    try:
        version = importlib.metadata.version("zigzag-dse")
        found = {"version": version, **run(json.loads(job.read_text(encoding="utf-8")), job.parent)}
    except importlib.metadata.PackageNotFoundError as error:
        found = {"missing": error.name}
    except ModuleNotFoundError as error:
        found = {"version": version, "missing": error.name}
    except Exception as error:  # whatever it is, the person who asked reads it
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split()) or f"at line {where.lineno} of {Path(where.filename).name}"
        found = {"version": version, "error": f"{type(error).__name__}: {said}"}
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
