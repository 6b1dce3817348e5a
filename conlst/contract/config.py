"""One configuration for the whole way, a section a stage. Unknown keys are refused; defaults are the paper's where it has any."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from conlst.contract.artifacts import canonical_json
from conlst.contract.errors import ConfigError

# begins an address of text that the endpoint collected
COLLECTED = "collected:"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Backbone(Section):
    """The multilingual encoder that stage 0 begins with. A source model carries its own from then on.

    Attributes:
        name: ``embedded:e5-small``, a local folder in Hugging Face form, or ``hub:<id>`` with a ``revision``.
        pooling: ``cls`` (first token), ``mean`` (over the attended tokens) or ``pair``: the means of premise and hypothesis,
            their absolute difference and product (Conneau et al., 2017). An encoder that was trained to embed sentences, as e5,
            learns to compare them far faster so.
        max_length: tokens a pair, both texts and special tokens; longer pairs lose tokens of the longer text.
        freeze_embeddings: keep the token embedding table fixed. It is most of a small encoder's weights.
        projection: width of the contrastive head.
    """

    name: str = "embedded:e5-small"
    revision: str | None = None
    pooling: Literal["cls", "mean", "pair"] = "mean"
    max_length: int = Field(128, ge=8, le=512)
    freeze_embeddings: bool = True
    dropout: float = Field(0.1, ge=0, lt=1)
    projection: int = Field(128, ge=1)


Precision = Literal["fp32", "bf16"]


class Compute(Section):
    """Where and how a step is computed.

    Attributes:
        device: ``auto`` takes a GPU if there is one; ``cuda`` fails early without one.
        precision: ``bf16`` is autocast, weights stay in float32; ``auto`` is bf16 where the device has instructions for it, fp32
            elsewhere.
        threads: CPU threads; 0 for ``OMP_NUM_THREADS`` or else what the process may use.
        processes: that train a model together, each with ``batch_tokens`` and, where there are GPUs, one of them. Those that a
            launcher started (torchrun, a TrainJob) join whatever this says.
        checkpoint_every: optimiser steps between checkpoints, 0 for none.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    threads: int = Field(0, ge=0)
    processes: int = Field(1, ge=1)
    checkpoint_every: int = Field(200, ge=0)


class Data(Section):
    """Where pairs come from: ``sample:en``, files, ``s3://`` or ``hub:<id>``; ``{language}`` is filled in.

    Attributes:
        source_dev: labelled English pairs, to measure stage 0 on.
        pools: unlabelled target pairs. Labels in them train and decide nothing; reports count how many pseudo-labels were right.
            ``collected:s3://bucket/prefix`` is the text that the endpoint collected and no adaptation has taken yet.
        tests: target pairs, for evaluation only; labelled, unless ``gate.evidence`` is none.
        genres: keep only these genres of the source data; empty keeps all.
        max_bad_share: the ingest fails when more rows than this share are set aside.
    """

    source: tuple[str, ...] = ("sample:en",)
    source_dev: str = "sample:en"
    pools: tuple[str, ...] = ("sample:{language}",)
    tests: str = "sample:{language}"
    genres: tuple[str, ...] = ()
    max_bad_share: float = Field(0.02, ge=0, le=1)

    def sources(self, role: str, language: str) -> list[str]:
        """The addresses of ``source``, ``source_dev``, ``pool`` or ``test``, for a language.

        Raises:
            ConfigError: if there is no such role.
        """
        roles = {"source": self.source, "source_dev": (self.source_dev,), "pool": self.pools, "test": (self.tests,)}
        if role not in roles:
            raise ConfigError(f"no data has the role {role!r}; the roles are {', '.join(roles)}")
        return [address.replace("{language}", language) for address in roles[role]]


class Collect(Section):
    """Text that the endpoint collected: a language with fewer new pairs than ``min_pairs`` is not adapted."""

    min_pairs: int = Field(500, ge=1)


class Adapt(Section):
    """What an adaptation consists of.

    Attributes:
        stages: ``[calibrate, selftrain]``, or one of the two alone; without stage 1 it costs about half.
        joint: the pipeline trains one model on the pools of all its languages, in place of a model a language. ``conlst adapt``
            does so whenever it is given several languages.
    """

    stages: tuple[Literal["calibrate", "selftrain"], ...] = ("calibrate", "selftrain")
    joint: bool = False

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> Self:
        if self.stages not in (("calibrate", "selftrain"), ("calibrate",), ("selftrain",)):
            raise ValueError("stages is [calibrate, selftrain], [selftrain] or [calibrate]")
        return self


class Optimisation(Section):
    """What every training stage has.

    Attributes:
        lr: Adam's rate for the encoder.
        head_lr: the rate for heads, ``None`` for ``lr``.
        warmup: share of the steps in which the rate rises linearly; it then falls linearly to zero.
        batch_tokens: budget of padded tokens in a batch.
        max_grad_norm: gradients are scaled down to this norm.
        ema: decay of an exponential moving average of the weights, which the stage ends with; 0 keeps the last weights.
    """

    lr: float = Field(gt=0)
    head_lr: float | None = Field(None, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    batch_tokens: int = Field(1024, ge=16)
    max_grad_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.0, ge=0, lt=1)


class Masking(Section):
    """Strong view: replace this share of a pair's pieces by the mask token."""

    share: float = Field(0.15, gt=0, lt=1)


class R3F(Section):
    """Keep the prediction when the input embeddings are perturbed (Aghajanyan et al., 2021).

    Attributes:
        weight: of the symmetric KL divergence between the two predictions.
        eps: the noise is uniform in [-eps, eps] or normal with this standard deviation.
    """

    weight: float = Field(1.0, gt=0)
    eps: float = Field(1e-5, gt=0)
    noise: Literal["uniform", "normal"] = "uniform"


class Perturbation(Section):
    """RS-RP: learn from randomly perturbed input embeddings (Huang et al., 2021); ``sigma`` is the noise's standard deviation."""

    sigma: float = Field(0.01, gt=0)


class Synonyms(Section):
    """RS-DA: learn from copies whose words are replaced by synonyms (Huang et al., 2021).

    Attributes:
        table: ``wordnet:<folder of WordNet's database>`` or a TSV of a word and its neighbours, separated by spaces.
        copies: perturbed copies of each training pair, beside the pair itself.
    """

    table: str
    copies: int = Field(3, ge=1)


class EptApt(Section):
    """Push the embeddings of a pair and its synonym copy apart, pull their attention together, learn both (Ding et al., 2022).

    Attributes:
        synonyms: table of the synonyms, as :class:`Synonyms` has it.
        push: weight of the embedding push. Embeddings must not be frozen for it to teach anything.
        pull: weight of the attention pull at ``layer``, counted from 0.
        robust: weight of the cross-entropy on the copy.
    """

    synonyms: str
    push: float = Field(0.1, ge=0)
    pull: float = Field(1.0, ge=0)
    robust: float = Field(1.0, ge=0)
    layer: int = Field(5, ge=0)


class MetaLearning(Section):
    """X-MAML after fine-tuning: learn to adapt to auxiliary languages (Nooralahzadeh et al., 2020).

    Attributes:
        languages: auxiliary languages with labelled pairs; never languages whose results are reported.
        inner_lr: rate of the one SGD step on the support half of a batch.
        outer_lr: Adam's rate on the query half.
        steps: outer steps; each takes one batch of each auxiliary language.
        order: 2 differentiates through the inner step, 1 does not.
    """

    languages: tuple[str, ...] = Field(min_length=1)
    inner_lr: float = Field(1e-4, gt=0)
    outer_lr: float = Field(1e-5, gt=0)
    steps: int = Field(5, ge=1)
    order: Literal[1, 2] = 2


class Source(Optimisation):
    """Stage 0, cross-entropy on English pairs, or robust training on top of it. At most one robust training can be set.

    Attributes:
        keep_pairs: training pairs that the model's folder carries along, for the source terms of later stages.
        masking: replace tokens of the training pairs by the mask token, anew in each epoch.
        r3f, perturbation, synonyms, ept_apt, meta_learning: robust trainings that the paper compares with.
    """

    lr: float = Field(2e-5, gt=0)
    epochs: int = Field(1, ge=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    keep_pairs: int = Field(20_000, ge=0)
    masking: Masking | None = None
    r3f: R3F | None = None
    perturbation: Perturbation | None = None
    synonyms: Synonyms | None = None
    ept_apt: EptApt | None = None
    meta_learning: MetaLearning | None = None

    @model_validator(mode="after")
    def _one_robust_training(self) -> Self:
        chosen = [name for name in ("r3f", "perturbation", "synonyms", "ept_apt", "meta_learning") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"source takes one robust training, not {' and '.join(chosen)}")
        return self


class Calibrate(Optimisation):
    """Stage 1, contrastive negative learning, eq. 4-8.

    Attributes:
        threshold: γ of eq. 4 and 5, from which a pair counts as high-confidence.
        coverage: take γ as the quantile that lets this share of the pool count as high-confidence, in place of ``threshold``.
        negatives: K of eq. 5.
        temperature: τ of eq. 6.
        distance: d of eq. 6; ``normalize`` scales the representations to length one first.
        source_term: reading of eq. 7: ``complementary`` is ``-log(1 - p_ȳ)`` with a random wrong class, ``literal`` is
            ``log(1 - p_y)`` as printed (unbounded below), ``none`` leaves it out.
        source_weight: λ of eq. 8.
        source_share: source pairs a step, as a share of the anchors.
        objective: ``contrastive`` is the paper's; ``cross_entropy`` is vanilla negative learning, eq. 1 (table 3's ablation).
    """

    lr: float = Field(2e-6, gt=0)
    epochs: int = Field(1, ge=1)
    threshold: float = Field(0.9, gt=0, lt=1)
    coverage: float | None = Field(None, gt=0, lt=1)
    negatives: int = Field(4, ge=1)
    temperature: float = Field(1.0, gt=0)
    distance: Literal["euclidean", "squared_euclidean", "cosine"] = "euclidean"
    normalize: bool = False
    source_term: Literal["complementary", "literal", "none"] = "complementary"
    source_weight: float = Field(0.001, ge=0)
    source_share: float = Field(1.0, gt=0, le=4)
    objective: Literal["contrastive", "cross_entropy"] = "contrastive"


class Mixup(Section):
    """Strong view: mix pooled embeddings and labels of two pairs, λ ~ Beta(alpha, alpha), eq. 9-11."""

    alpha: float = Field(4.0, gt=0)


class BackTranslation(Section):
    """Strong view: the pair translated to ``pivot`` and back.

    Attributes:
        backend: ``apertium``, ``tsv:<file>``, ``seq2seq:<folder or hub:id>`` or ``http(s)://<LibreTranslate-shaped endpoint>``.
        pivots: language to the language it is translated through; a language not listed goes through English.
    """

    backend: str
    pivots: dict[str, str] = Field(default_factory=dict)


Share = Annotated[float, Field(gt=0, lt=1)]


class SelfTrain(Optimisation):
    """Stage 2, self-training as semi-supervised learning, eq. 9-14.

    Attributes:
        rule: which pseudo-labels are trusted. ``flexmatch`` is the paper's, with class-wise bars from ``threshold``; ``fixed`` is
            ``threshold`` for all; ``quantile`` takes the surest ``coverage`` of each predicted class; ``freematch`` and
            ``softmatch`` find their bars, or weights, from the predictions themselves.
        threshold: γ of the rules ``flexmatch`` and ``fixed``; ``floor`` is the lowest bar of every rule that has bars.
        coverage: share of each predicted class that the rule ``quantile`` takes.
        align: rescale the predictions so that each language's pool has the class shares of ``shares``, before anything is
            selected. A pool whose classes have other shares is hurt by it.
        rebalance: end with the classifier's bias shifted until the pool's mean prediction has these shares. The same holds.
        shares: of entailment, neutral and contradiction in the pools, if they are known; ``None`` for the source's.
        views: dropout views that must all agree with a pseudo-label; 0 asks none.
        max_iterations: rounds of predict, select, train; fewer if less than ``stop_below`` of the pseudo-labels change. 0 trains
            nothing and leaves what ``rebalance`` does.
        epochs: passes over the selected pairs in a round.
        target_weight: λ of eq. 12.
        source_share: source pairs a step, as a share of the target pairs.
        interpolation: share of the trained weights in the result, the rest being the weights that the stage began with.
        masking, mixup, back_translation: the strong views; a batch takes one of those that are set. At least one must be.
    """

    lr: float = Field(2e-6, gt=0)
    max_iterations: int = Field(3, ge=0)
    epochs: int = Field(1, ge=1)
    stop_below: float = Field(0.005, ge=0, lt=1)
    rule: Literal["flexmatch", "fixed", "quantile", "freematch", "softmatch"] = "flexmatch"
    threshold: float = Field(0.9, gt=0, lt=1)
    coverage: float = Field(0.4, gt=0, le=1)
    align: bool = False
    rebalance: bool = False
    shares: tuple[Share, Share, Share] | None = None
    views: int = Field(0, ge=0)
    floor: float = Field(0.5, ge=1 / 3, lt=1)
    target_weight: float = Field(1.0, ge=0)
    source_share: float = Field(1.0, gt=0, le=4)
    interpolation: float = Field(1.0, gt=0, le=1)
    masking: Masking | None = Masking()
    mixup: Mixup | None = Mixup()
    back_translation: BackTranslation | None = None

    @model_validator(mode="after")
    def _has_a_view(self) -> Self:
        if not (self.masking or self.mixup or self.back_translation):
            raise ValueError("selftrain needs at least one of masking, mixup, back_translation")
        return self

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.max_iterations or self.rebalance):
            raise ValueError("selftrain.max_iterations 0 does nothing without rebalance; set it to true, or ask for an iteration")
        return self

    @model_validator(mode="after")
    def _shares_of_a_whole(self) -> Self:
        if self.shares and abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"selftrain.shares {self.shares} add up to {sum(self.shares):g}, not to 1")
        if self.shares and not (self.align or self.rebalance):
            raise ValueError("selftrain.shares changes nothing without align or rebalance; set one of them to true")
        return self


class SelfLearn(Optimisation):
    """The rival of stage 1 and 2: iterative self-learning with uncertainty (Xu et al., 2021).

    Attributes:
        uncertainty: ``evi`` evidential, ``lou`` homoscedastic per language, ``leu`` heteroscedastic, ``none`` plain confidence.
        rounds: of select and train; selected pairs stay selected.
        share: of the pool that each round takes for each predicted class, from what is left.
        epochs: passes over all that is selected, in each round.
        source_share: source pairs a step, as a share of the target pairs.
        samples: Gaussian draws of the logits that ``leu`` averages over.
    """

    lr: float = Field(2e-5, gt=0)
    uncertainty: Literal["none", "evi", "lou", "leu"] = "evi"
    rounds: int = Field(4, ge=1)
    share: float = Field(0.08, gt=0, le=1)
    epochs: int = Field(3, ge=1)
    source_share: float = Field(1.0, gt=0, le=4)
    samples: int = Field(10, ge=1)


class Evaluate(Section):
    """Bands of table 4 (``high``, ``low``), bins of the reliability diagram, and points of accuracy along stage 1 (figure 5)."""

    batch_tokens: int = Field(8192, ge=16)
    bins: int = Field(10, ge=2)
    probes: int = Field(0, ge=0)
    high: float = Field(0.9, gt=0, lt=1)
    low: float = Field(0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _bands_in_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"evaluate.low {self.low} must lie below evaluate.high {self.high}")
        return self


class Export(Section):
    """ONNX, and its INT8 form where that is as good.

    Attributes:
        opset: from 20 on GELU is one operator, which onnxruntime answers with a tenth faster.
        tolerance: the largest difference of logits from torch that is let through.
        golden: pairs whose answers every server gives again before it is ready.
        int8: serve INT8 if it passes; float32 is served otherwise, and the card says why.
        max_drop: what accuracy INT8 may lose on labelled pairs: of the language where its labels may be read, else English.
        min_agreement: share of unlabelled pairs of the language that INT8 must label as float32 does.
        pairs: unlabelled and English pairs that are compared and calibrated on, each; fewer if there are fewer.
        calibration: unlabelled pairs on which the ranges of activations are found.
    """

    opset: int = Field(20, ge=17)
    tolerance: float = Field(1e-4, gt=0)
    golden: int = Field(8, ge=3)
    int8: bool = True
    max_drop: float = Field(0.005, ge=0, lt=1)
    min_agreement: float = Field(0.97, ge=0, le=1)
    pairs: int = Field(2000, ge=1)
    calibration: int = Field(128, ge=1)


class Gate(Section):
    """What a candidate must show before the ``champion`` alias moves. Refusal is the default.

    Attributes:
        evidence: ``labels`` judges by labelled test pairs of the language, ``none`` by what can be known without any.
        min_accuracy: lowest accuracy on the language's test pairs, or lowest estimate of it.
        min_gain: by how much a candidate must beat the champion, or zero-shot when there is no champion yet; a negative gain is a
            margin.
        margins: ``min_gain`` of single languages.
        significance: a candidate that is worse than the champion on the same pairs with a smaller p (McNemar) is refused
            whatever the margin.
        max_ece: highest expected calibration error.
        min_pairs: fewer labelled or unlabelled pairs than this prove nothing.
        max_parity: largest difference between ONNX and torch logits.
        max_english_fall: how much accuracy on English dev adaptation may cost; read without labels, as are those that follow.
        min_label_share: a label that is predicted for fewer of the pairs has collapsed.
        min_agreement: share of pairs on which two dropout views must agree.
    """

    evidence: Literal["labels", "none"] = "labels"
    min_accuracy: float = Field(0.5, ge=0, le=1)
    min_gain: float = Field(0.0, ge=-1, le=1)
    margins: dict[str, Annotated[float, Field(ge=-1, le=1)]] = Field(default_factory=dict)
    significance: float = Field(0.05, gt=0, lt=1)
    max_ece: float = Field(0.25, gt=0, le=1)
    min_pairs: int = Field(100, ge=1)
    max_parity: float = Field(1e-4, gt=0)
    max_english_fall: float = Field(0.02, ge=0, le=1)
    min_label_share: float = Field(0.1, ge=0, le=1 / 3)
    min_agreement: float = Field(0.7, ge=0, le=1)

    def of(self, language: str) -> "Gate":
        """The gate of one language."""
        return self.model_copy(update={"min_gain": self.margins.get(language, self.min_gain)})


class Config(Section):
    """Everything a run depends on; its digest names what the run makes.

    Attributes:
        languages: codes of the target languages.
        source_model: ``train``, ``starter``, or a published model: a folder or its ``s3://`` address.
    """

    name: str
    seed: int = Field(13, ge=0)
    languages: tuple[str, ...] = ()
    source_model: str = "starter"
    backbone: Backbone = Backbone()
    compute: Compute = Compute()
    data: Data = Data()
    collect: Collect = Collect()
    source: Source = Source()
    adapt: Adapt = Adapt()
    calibrate: Calibrate = Calibrate()
    selftrain: SelfTrain = SelfTrain()
    selflearn: SelfLearn = SelfLearn()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _auxiliary_is_no_target(self) -> Self:
        meta = self.source.meta_learning
        if both := sorted(set(self.languages) & set(meta.languages if meta else ())):
            raise ValueError(f"source.meta_learning reads labels of {', '.join(both)}, which are target languages; take others")
        return self

    @model_validator(mode="after")
    def _collected_text_is_no_test(self) -> Self:
        if self.gate.evidence == "labels" and self.data.tests.startswith(COLLECTED):
            raise ValueError(f"data.tests {self.data.tests} has no labels; name labelled pairs, or set gate.evidence to none")
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        return canonical_json(self.to_dict())

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def config_from_dict(raw: dict[str, Any], where: str = "config") -> Config:
    """Validate a nested mapping.

    Raises:
        ConfigError: naming every wrong key with its section.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {problems(error, 'config')}") from None


def problems(error: ValidationError, whole: str) -> str:
    """What a validation found, on one line: each wrong key with its section, or ``whole`` where no key is to blame."""
    return "; ".join(f"{'.'.join(map(str, found['loc'])) or whole}: {found['msg']}" for found in error.errors())


def config_from_json(text: str) -> Config:
    """Read what :meth:`Config.to_json` wrote: the form in which a configuration travels through a pipeline.

    Raises:
        ConfigError: as :func:`config_from_dict`, or if the text is not JSON.
    """
    try:
        return config_from_dict(json.loads(text))
    except ValueError as error:
        raise ConfigError(f"the configuration is not JSON: {error}") from error


def load_config(name_or_path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML profile by path, or by the name of one in ``configs/``, and apply ``section.key=value`` overrides.

    Args:
        name_or_path: or the configuration itself, as :meth:`Config.to_json` writes it: a pod has no files of those who start it.

    Raises:
        ConfigError: if the profile is not found, does not validate, or an override is not of that form.
    """
    if isinstance(name_or_path, str) and name_or_path.startswith("{"):
        config = config_from_json(name_or_path)
        raw, name = config.to_dict(), config.name
    else:
        raw, name = _profile(name_or_path)
    for override in overrides:
        _apply(raw, override)
    return config_from_dict(raw, name)


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with some values replaced.

    Args:
        settings: ``section.key``, or ``seed`` and the like, to value.

    Raises:
        ConfigError: naming every wrong key.
    """
    raw = config.to_dict()
    for key, value in settings.items():
        _section_of(raw, key)[key.rpartition(".")[2]] = value
    return config_from_dict(raw, config.name)


def profile_names() -> list[str]:
    """Names that :func:`load_config` accepts."""
    return sorted(path.stem for path in profiles_folder().glob("*.yaml"))


def profiles_folder() -> Path:
    """The folder of shipped profiles."""
    return Path(__file__).parents[1] / "configs"


def _profile(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    """What a YAML profile says, and where it was found."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = profiles_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(profile_names())
        raise ConfigError(f"no configuration {str(name_or_path)!r}: give a .yaml file or one of {known}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML in UTF-8: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must be a mapping of sections")
    return raw, str(path)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    last = key.rpartition(".")[2]
    if not equals or not last:
        raise ConfigError(f"--set {override!r} is not of the form section.key=value")
    target = _section_of(raw, key)
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML ({error})") from error
    if isinstance(target[last], str):
        # YAML 1.1 reads 2e-5 as text because it has no dot
        with suppress(ValueError):
            target[last] = float(target[last])


def _section_of(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping that holds the last part of a dotted key; sections on the way are made."""
    for section in key.split(".")[:-1]:
        # an optional section that is left out is null
        raw[section] = {} if raw.get(section) is None else raw[section]
        raw = raw[section]
        if not isinstance(raw, dict):
            raise ConfigError(f"{key}: {section} is a value, not a section")
    return raw
