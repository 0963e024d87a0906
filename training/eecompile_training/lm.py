"""`train lm`: GRPO of the model itself on verifiable rewards, by trl's trainer, its exits kept in the loss.

Rewards judge answers of the full depth. Tuning only that would leave the exits behind, so that each step also holds
them, on the tokens that were sampled, to the last layer as it is then.
"""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from eecompile.calibrate.records import Record, data_digest, read_records
from eecompile.errors import UsageError
from eecompile.student.encoder_decoder import EncoderDecoderSpec
from eecompile.student.student import Student, open_student
from eecompile_training.backbone import open_backbone, save_backbone
from eecompile_training.config import load_config
from eecompile_training.data import IGNORED, Batch, is_held_out
from eecompile_training.distill_config import ExitLoss, Losses
from eecompile_training.distilled import Distilled, Point, StepPlan
from eecompile_training.exits import read_exits, write_exits
from eecompile_training.lm_settings import ExitTerm, LmConfig, Prompts
from eecompile_training.plots import plot_run
from eecompile_training.rewards import Reward, load_reward
from eecompile_training.rows import Progress
from eecompile_training.runs import Run, open_run, versions

SOURCE: Final = "eecompile train lm"
_EXITS: Final = "early_exits"
_WHOLE: Final = "whole"  # the file that a checkpoint gets last


class _Order(RepeatSampler):
    """trl's order of prompts, of (seed, epoch) alone: trl's own draws each epoch where the last one left off, which a
    checkpoint does not hold."""

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, the first and a resumed one too."""
        self.generator.manual_seed(self.seed * 1_000_003 + epoch)


class ExitsGRPO(GRPOTrainer):
    """trl's trainer with the exits' term added to its loss."""

    def __init__(self, module: Distilled, term: ExitTerm, **options: Any) -> None:
        self.held, self.term = module, term
        super().__init__(model=module.backbone.model, **options)
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, dataset: Any = None) -> _Order:
        theirs = super()._get_train_sampler(dataset)
        names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        return _Order(**{name: getattr(theirs, name) for name in names})

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """GRPO's loss and the exits'."""
        loss: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.held.exits.schema.exits or not self.term.weight:
            return loss
        value = exits_loss(self.held, sampled_batch(inputs), self.term)
        self._metrics["train"]["exits"].append(float(value.detach()))
        return loss + self.term.weight * value


def exits_loss(module: Distilled, batch: Batch, term: ExitTerm) -> Tensor:
    """The mean over exits and targets of `batch` of the term's loss."""
    points = [Point(e.depth, e) for e in module.exits.schema.exits]
    own = ExitLoss(kl=float(term.kind == "kl"), ce=float(term.kind == "ce"), temperature=term.temperature)
    losses = Losses(task=0.0, exits=own)
    share = dict.fromkeys(points, 1 / len(points))
    plan = StepPlan(losses, share, predictions=max(1, batch.counted), tokens=int(batch.mask.sum()))
    total: Tensor = module(batch, plan)[0]
    return total


def sampled_batch(inputs: Any) -> Batch:
    """Prompts, which trl pads on the left, and completions as rows padded on the right; the sampled tokens count."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1).bool()
    sampled = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], dim=1).bool()
    order = torch.argsort(~mask, dim=1, stable=True)
    ids, mask, sampled = (t.gather(1, order) for t in (ids, mask, sampled))
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = torch.where(sampled[:, 1:], ids[:, 1:], IGNORED)
    return Batch(ids, mask, targets)


def train_file(path: Path, *, resume: bool = False, progress: Progress = lambda stage: None) -> dict[str, Any]:
    """Train as the YAML file `path` says; returns what came of it. Raises UsageError for what cannot be tuned."""
    config = load_config(path, LmConfig)
    student = open_student(config.model)
    _check(config, student)
    rewards = [load_reward(name) for name in config.rewards]
    prompts = list(read_prompts(config.data))
    if not prompts:
        raise UsageError("there is no prompt to train on", where=str(config.data.files[0]), mend="give more documents")
    data = {str(file): data_digest(file) for file in config.data.files}
    run = open_run(config.output, config, data, seeds={"seed": config.seed}, resume=resume)
    progress("open the model")
    module = Distilled(open_backbone(config.model), read_exits(student), None, chunk=config.chunk)
    _tune(config, run, module, rewards, prompts, resume, progress)
    return _finish(config, run, module, len(prompts))


def _tune(
    config: LmConfig, run: Run, module: Distilled, rewards: list[Reward], prompts: list[dict[str, str]], resume: bool,
    progress: Progress,
) -> None:  # fmt: skip
    """Run trl's trainer. It aligns the model's special tokens with its tokenizer's, which is taken back."""
    model, tokenizer = module.backbone.model, _tokenizer(config.model)
    configs = copy.deepcopy((model.config, model.generation_config))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.add_module(_EXITS, module.exits)  # so that the trainer tunes and keeps them with the model
    trainer = ExitsGRPO(
        module, config.exits, reward_funcs=rewards, args=_arguments(config, run),
        train_dataset=Dataset.from_list(prompts), processing_class=tokenizer,
        callbacks=[_Reporter(run, progress, config)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=_last_checkpoint(run) if resume else None)
    delattr(model, _EXITS)
    model.config, model.generation_config = configs


def read_prompts(config: Prompts) -> Iterator[dict[str, str]]:
    """Each prompt that is not held out, with its answer, "" without one. Raises UsageError for token ids."""
    for file in config.files:
        for number, record in enumerate(read_records(file)):
            if config.limit is not None and number >= config.limit:
                break
            if not is_held_out(record.digest, config.held_out):
                prompt, answer = _parts(record)
                yield {"prompt": prompt, "answer": answer}


def _parts(record: Record) -> tuple[str, str]:
    if not isinstance(record.content, str) or not isinstance(record.target, str | None):
        raise UsageError("prompts are text", where=record.where, mend='give {"prompt": ..., "completion": ...} a line')
    if record.target is not None:
        return record.content, record.target
    prompt = record.prompt or record.content
    return prompt, record.content.removeprefix(prompt)


def _check(config: LmConfig, student: Student) -> None:
    where = str(config.model)
    if (processes := PartialState().num_processes) > 1:
        mend = "start it without torchrun; distill, recurse and policy run in several"
        raise UsageError(f"`train lm` runs in one process, and torchrun started {processes}", mend=mend)
    if student.loops is not None or student.cycles or isinstance(student.spec, EncoderDecoderSpec):
        raise UsageError("only plain decoders are tuned by rewards", where=where, mend="give a decoder without loops")
    if not student.tokenizer_files:
        raise UsageError("the checkpoint has no tokenizer", where=where, mend="put its tokenizer.json beside it")
    if config.batch % config.generations:
        what = f"a batch of {config.batch} answers is no multiple of {config.generations} generations"
        raise UsageError(what, where="batch", mend="give a multiple")


def _arguments(config: LmConfig, run: Run) -> GRPOConfig:
    o = config.optimizer
    return GRPOConfig(
        output_dir=str(run.path / "trl"), max_steps=config.steps, per_device_train_batch_size=config.batch,
        num_generations=config.generations, max_completion_length=config.length, temperature=config.temperature,
        beta=config.beta, epsilon=config.clip_ratio, scale_rewards=config.scaling, learning_rate=o.lr,
        adam_beta1=o.betas[0], adam_beta2=o.betas[1], adam_epsilon=o.eps, weight_decay=o.weight_decay,
        lr_scheduler_type=o.schedule, warmup_steps=o.warmup, max_grad_norm=o.clip or 0.0, seed=config.seed,
        use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=config.gradient_checkpointing,
        logging_steps=1, save_steps=config.checkpoint_every, save_total_limit=2, report_to="none",
        disable_tqdm=True, save_only_model=False,
    )  # fmt: skip


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer as trl wants it: padding on the left, with a token to pad with, which is masked."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, padding_side="left")
    if tokenizer.eos_token is None:
        mend = "name eos_token in tokenizer_config.json"
        raise UsageError("the tokenizer has no token that ends an answer", where=str(path), mend=mend)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _last_checkpoint(run: Run) -> str | None:
    """The trainer's last checkpoint that a kill has not cut off; what was reported after it is forgotten."""
    found = sorted((run.path / "trl").glob(f"checkpoint-*/{_WHOLE}"), key=lambda p: _step(p.parent))
    run.rewind(_step(found[-1].parent) if found else 0)
    return str(found[-1].parent) if found else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class _Reporter(TrainerCallback):
    """What the trainer logs, each step, into the run's metrics every `log_every` steps: a mean over them would lack the
    steps before a checkpoint."""

    def __init__(self, run: Run, progress: Progress, config: LmConfig) -> None:
        self._run, self._progress, self._config = run, progress, config

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        """Numbers that do not depend on the clock."""
        values = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float) and "time" not in k}
        step, steps = int(state.global_step), self._config.steps
        if "loss" in values and (step % self._config.log_every == 0 or step == steps):
            self._run.log(step, values)
            self._progress(f"step {step} of {steps}, reward {values.get('reward', 0):.3f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """No checkpoint after the last step: the trainer, going on from there, would train another one."""
        control.should_save = control.should_save and state.global_step < self._config.steps

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Every file of the checkpoint is written by now."""
        (self._run.path / "trl" / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def _finish(config: LmConfig, run: Run, module: Distilled, prompts: int) -> dict[str, Any]:
    """Write the student; its exits were calibrated for another model, so that calibrations are left out."""
    temporary = run.path / "student.unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    save_backbone(module.backbone.model, config.model, temporary)
    facts = {"source": SOURCE, "steps": config.steps, "seed": config.seed, "rewards": ",".join(config.rewards)}
    facts |= {f"version.{name}": version for name, version in versions().items()}
    update = {"calibrations": [], "provenance": facts}
    module.exits.schema = module.exits.schema.model_copy(update=update)
    write_exits(temporary, module.exits)
    run.finish(temporary)
    shutil.rmtree(run.path / "trl", ignore_errors=True)
    metrics = run.read_metrics()
    plot_run(metrics, run.path / "plots")
    last = metrics[-1] if metrics else {}
    return {"student": str(run.student), "prompts": prompts, **{k: last[k] for k in ("reward", "exits") if k in last}}
