"""Settings of a training run as frozen dataclasses; each field is named like the flag that sets it.

`util.options` fills them in from the command line. Modules below the scripts see the flags only through them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound="Settings")


class Settings:
    """Base of the settings: a dataclass that can be filled in from {flag name: value}."""

    @classmethod
    def of(cls: type[Kind], options: Mapping[str, Any]) -> Kind:
        """Take the fields of this class from `options`, which may omit those that have a default."""
        return cls(
            **{
                field.name: options[field.name]
                for field in fields(cls)  # type: ignore[arg-type]
                if field.name in options or field.default is MISSING
            }
        )


@dataclass(frozen=True)
class Data(Settings):
    """Source of the images, and their loading."""

    data_path: str
    dataset: str  # "folder", "cifar10" or "cifar100"
    image_root: str
    in_chans: int
    image_backend: str  # "pillow" or "fast"
    bad_images: str  # "error" or "skip"
    batch_size: int  # images per process and micro-batch
    num_workers: int
    pin_mem: bool
    shuffle_buffer: int
    seed: int
    output_dir: str  # gets the lists of unreadable images
    dist_eval: bool = True  # whether processes share an evaluation; in pretraining they always do


@dataclass(frozen=True)
class Optimisation(Settings):
    """Optimizer, clipping, and average of the weights."""

    opt: str  # "adamw", "sgd" or "lars"
    opt_betas: Sequence[float] | None  # of adamw
    momentum: float | None  # of sgd and lars
    weight_decay: float
    clip_grad: float | None  # largest global norm of the gradient
    ema: bool
    ema_decay: float | None
    fused_adamw: bool = False


@dataclass(frozen=True)
class Schedule(Settings):
    """Epochs, updates and evaluations of a run, and its learning rate.

    Raises ValueError for a negative start.
    """

    epochs: int
    start_epoch: int
    batch_size: int  # images per process and micro-batch
    accum_iter: int  # micro-batches per update
    val_every: int  # epochs between evaluations; 0: no evaluation
    lr: float | None = None
    blr: float = 0.0
    min_lr: float = 0.0
    warmup_epochs: float = 0
    sched: str = "cosine"
    decay_epochs: int | None = None
    decay_rate: float | None = None
    patience_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.start_epoch < 0:
            raise ValueError(f"--start_epoch {self.start_epoch}: expected 0 or more")


@dataclass(frozen=True)
class Saving(Settings):
    """Checkpoints, log and resuming. Raises ValueError for a negative interval."""

    output_dir: str
    log_dir: str | None  # None: output_dir; "": no VisualDL log
    save_every: int | None  # epochs
    keep: int | None  # newest numbered checkpoints
    save_steps: int  # updates between checkpoints within an epoch; 0: none
    save_every_minutes: float  # likewise
    save_async: bool
    on_nan: str  # "stop" or "skip"
    print_freq: int  # steps between lines of the log
    resume: str
    allow_changes: Sequence[str] | None
    trust_checkpoint: bool

    def __post_init__(self) -> None:
        for name in ("save_steps", "save_every_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 0 or more")


@dataclass(frozen=True)
class Precision(Settings):
    """Device and arithmetic."""

    device: str  # "auto", "gpu", "cuda" or "cpu"
    amp: str  # "auto", "off", "fp16" or "bf16"
    attention: str  # "auto", "math" or "sdpa"
    loss_scale: float | str  # "dynamic" or a constant
    amp_level: str = "O1"
    recompute: bool = False
    compile: bool = False


@dataclass(frozen=True)
class TrainingSettings:
    """All settings of a run.

    Attributes:
        options: {flag name: value} of every flag, as checkpoints and options.yaml keep them.
    """

    data: Data
    optimisation: Optimisation
    schedule: Schedule
    saving: Saving
    precision: Precision
    options: Mapping[str, Any]

    @classmethod
    def of(cls, options: Mapping[str, Any], **resolved: Any) -> TrainingSettings:
        """Fill in the settings from `options`; `resolved` overrides values without being kept."""
        known = {**options, **resolved}
        return cls(
            Data.of(known),
            Optimisation.of(known),
            Schedule.of(known),
            Saving.of(known),
            Precision.of(known),
            options,
        )
