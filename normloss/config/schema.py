"""Every config key once: its type, unit, range and source. Data only, torch is not imported here."""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from normloss.config import labels
from normloss.config.identity import fp32_setting_id, run_id, setting_id

Count = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Natural = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]  # what torch, JSON's readers and pandas all hold
Processes = Annotated[int, Field(strict=True, ge=0, le=1024)]
Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]


def _images_or_file(value: Any) -> Any:
    if value != "file" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError("must be a number of images or file")
    return value


HeldOut = Annotated[int | Literal["file"], BeforeValidator(_images_or_file)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# dataset ---------------------------------------------------------------------------------------


class Images(Section):
    """A labelled image set, normalised as (pixel - mean) / std with pixels in 0..255."""

    default_model: ClassVar[str | None] = None  # of dataset=NAME without model=; None: that of configs/config.yaml
    num_classes: Annotated[int, Field(strict=True, ge=2)]
    channels: Count
    size: Count  # pixels, height and width of what the model sees
    flip: Fraction  # probability of a horizontal flip
    mean: list[Real]  # a value per channel, 0..255
    std: list[Positive]
    val: HeldOut = 0  # training images held out, equally many of each class; file: those that the data set brings


class TensorImages(Images):
    """Images that stay on the device as one uint8 tensor: pad, random crop, flip."""

    pad: Natural  # pixels on each side
    padding: Literal["zero", "reflect", "mean"]  # zero is black; mean is zero after normalisation


class Cifar10(TensorImages):
    name: Literal["cifar10"]
    num_classes: Literal[10]
    channels: Literal[3]
    size: Literal[32]


class Cifar100(TensorImages):
    name: Literal["cifar100"]
    num_classes: Literal[100]
    channels: Literal[3]
    size: Literal[32]


class Digits(TensorImages):
    default_model = "resnet8"
    name: Literal["digits"]
    num_classes: Literal[10]
    channels: Literal[1]
    val: Natural = 0


class Folder(TensorImages):
    name: Literal["folder"]
    label: str  # tells one user's data from another's in the run id
    channels: Literal[1, 3]


class ImageNet(Images):
    """Photographs, read from their files when they are due; augmentation of fb.resnet.torch."""

    default_model = "resnet50"
    name: Literal["imagenet"]
    label: str
    channels: Literal[3]
    resize: Count  # pixels, short side before the centre crop in evaluation
    min_area: Annotated[float, Field(strict=True, gt=0, le=1)]  # of a random crop, share of the image
    color_jitter: Fraction  # brightness, contrast and saturation: factor U(1-j, 1+j)
    lighting: NonNegative  # standard deviation along the principal colours, image in 0..1
    val: Natural = 0  # a number: val/ is the test set


DataSet = Cifar10 | Cifar100 | Digits | Folder | ImageNet  # by name


def default_model(name: str) -> str | None:
    """Return the network that dataset=NAME trains without model=; None for that of configs/config.yaml."""
    kinds = {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(DataSet)}
    return kinds[name].default_model if name in kinds else None


# model -----------------------------------------------------------------------------------------


class Model(Section):
    name: str
    init: Literal["fan_out", "fan_in"]  # N(0, 2 / fan) for convolutions
    gamma_init: Literal["ones", "uniform"]  # batch norm's scale: 1, or U(0, 1)
    family: str  # key of models.FAMILIES


class ResNetCifar(Model):
    family: Literal["resnet_cifar"]
    depth: Count  # 6n + 2


class WideResNet(Model):
    family: Literal["wide_resnet"]
    depth: Count  # 6n + 4
    width: Count  # multiplies 16, 32, 64 channels
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)]


class ResNetImageNet(Model):
    family: Literal["resnet_imagenet"]
    depth: Literal[18, 50]


Network = ResNetCifar | WideResNet | ResNetImageNet  # by family


# regularizer -----------------------------------------------------------------------------------


class Reg(BaseModel):
    """The keys that every method has; a method's own keys are those of its configs/reg/*.yaml."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    lam: NonNegative = 0.0
    lam_milestones: list[Count] = []  # epochs at which lam changes
    lam_gamma: NonNegative = 1.0  # lam is multiplied by this at each, or
    lam_values: list[NonNegative] | None = None  # takes these values: one more than milestones
    weight_decay: NonNegative = 0.0  # SGD's, on every parameter, beside the method


# training --------------------------------------------------------------------------------------


class Train(Section):
    batch_size: Count  # images per step
    epochs: Count
    lr: Positive
    momentum: Annotated[float, Field(strict=True, ge=0, lt=1)]
    nesterov: Flag
    milestones: list[Count]  # epochs, counted from 0, at which lr is multiplied by gamma
    gamma: Positive
    # one value per epoch in place of lr, milestones and gamma; null: those. Absent from the identity when null
    lr_values: list[Positive] | None = None
    warmup: Natural  # steps at warmup_lr
    warmup_lr: Positive
    micro_batch: Count | None  # images that share batch-norm statistics; divides batch_size
    precision: Literal["fp32", "tf32", "bf16"]
    max_steps: Count | None  # ends the run after so many steps
    eval_batches: Count | None  # evaluates on so many test batches
    # how a step is run, no part of the identity; the default reads configs stored before the key was there
    executor: Literal["auto", "eager", "graph", "compile"] = "auto"


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the batches of an epoch: the last may be short, but a single image has no batch statistics: dropped."""
    full, rest = divmod(images, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


class WandB(Section):
    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
    group: str | None
    tags: list[str]


class Trained(Section):
    """The part of a config that its run's id is made of."""

    dataset: Annotated[DataSet, Field(discriminator="name")]
    model: Annotated[Network, Field(discriminator="family")]
    reg: Reg
    train: Train
    seed: Seed


class Config(Trained):
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Threads | None
    workers: Processes | None
    deterministic: Flag
    data_dir: str
    store: Annotated[str, Field(min_length=1)]
    checkpoint_minutes: Positive
    budget_minutes: Positive | None
    restart: Flag
    wandb: WandB

    @property
    def id(self) -> str:
        return run_id(self.stored())

    @property
    def setting_id(self) -> str:
        """An id that runs share if they differ in the seed only."""
        return setting_id(self.stored())

    @property
    def fp32_setting_id(self) -> str:
        """An id that runs share if they differ in the seed only, or in tf32 for fp32."""
        return fp32_setting_id(self.stored())

    @property
    def label(self) -> str:
        """The run's name for people: digits resnet8 nl lam=0.01 seed=0."""
        return labels.label(self.stored())

    def stored(self) -> dict[str, Any]:
        """Return the config as config.yaml of its run folder holds it."""
        return self.model_dump(mode="json")
