"""`train distill`: a model and its exits, trained together into a student (docs/TRAINING.md)."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh

from eecompile.student.encoder_student import is_encoder
from eecompile.student.student import open_student
from eecompile_training.backbone import codec_of, save_backbone
from eecompile_training.begin import open_module
from eecompile_training.classifier import Classification, open_classifier
from eecompile_training.classifier_data import ClassData
from eecompile_training.config import load_config
from eecompile_training.data import TrainingData, load_data
from eecompile_training.distill_config import DistillConfig
from eecompile_training.distillation import Distillation
from eecompile_training.distilled import Distilled
from eecompile_training.exits import write_exits
from eecompile_training.loop import Loop, Progress
from eecompile_training.lora import merge_lora
from eecompile_training.plots import plot_run
from eecompile_training.recipes import RECIPES
from eecompile_training.runs import Run, open_run, versions
from eecompile_training.sharding import gather, shard


def train_file(path: Path, *, resume: bool = False, progress: Progress = lambda stage: None) -> dict[str, Any]:
    """Train as the YAML file `path` says; returns what came of it, in the first process (nothing in others)."""
    return distill(load_config(path, DistillConfig, RECIPES), resume=resume, progress=progress)


def distill(config: DistillConfig, *, resume: bool = False, progress: Progress = lambda stage: None) -> dict[str, Any]:
    """Train a student in `config.output`. Raises UsageError for what does not fit together."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    main = accelerator.is_main_process
    told: Progress = progress if main else lambda stage: None
    told("read the data and open the models")
    sharded = config.fsdp and accelerator.num_processes > 1
    task, lora = open_task(config, torch.device("cpu") if sharded else accelerator.device)
    seeds, digests = {"seed": config.seed}, task.data.sha256
    run = open_run(config.output, config, digests, seeds=seeds, resume=resume, writes=main)
    if sharded:
        assert isinstance(task.module, Distilled)
        shard(task.module, init_device_mesh(accelerator.device.type, (accelerator.num_processes,)))
    Loop(config, run, task, accelerator, told).train()
    if sharded:
        gather(task.module, keep=main)
    return finish(task, run, lora) if main else {}


def open_task(config: DistillConfig, device: torch.device) -> tuple[Distillation | Classification, Any]:
    """What is to be trained, of a language model or an encoder, and what `merge_lora` takes (None without LoRA)."""
    if is_encoder(config.model):
        classifier, texts = open_classifier(config, device)
        return Classification(config, texts, classifier), None
    spec = open_student(config.model).spec
    end = spec.eos[0] if spec.eos else None
    data = load_data(config.data, codec_of(config.model), vocab=spec.vocab, end=end)
    module, lora = open_module(config, data, device)
    return Distillation(config, data, module), lora


def finish(task: Distillation | Classification, run: Run, lora: Any) -> dict[str, Any]:
    """Write the student, its adapter where it was tuned by LoRA, and the plots; say what came of the run."""
    config, data, module = task.config, task.data, task.module
    temporary = run.path / "student.unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    if lora is not None:
        lora.save_pretrained(run.path / "adapter", save_embedding_layers=False)
    save_backbone(module.backbone.model if lora is None else merge_lora(lora), config.model, temporary)
    facts = provenance(config, data)
    module.exits.schema = module.exits.schema.model_copy(update={"provenance": facts})
    for folder in (temporary, *([] if lora is None else [run.path / "adapter"])):
        write_exits(folder, module.exits)
    run.finish(temporary)
    metrics = run.read_metrics()
    plot_run(metrics, run.path / "plots")
    measured: dict[str, Any] = next((line for line in reversed(metrics) if "loss" not in line), {})
    return {"student": str(run.student), "rows": len(data.train), **measured}


def provenance(config: DistillConfig, data: TrainingData | ClassData) -> dict[str, str | int | float | bool | None]:
    """Flat, as early_exit.json has it: what the student was trained with."""
    facts: dict[str, str | int | float | bool | None] = {
        "source": "eecompile train distill", "recipe": config.recipe, "steps": config.steps, "seed": config.seed,
        "rows": len(data.train),
    }  # fmt: skip
    facts |= {f"data.{Path(file).name}": digest for file, digest in data.sha256.items()}
    return facts | {f"version.{name}": version for name, version in versions().items()}
