"""The flags, one frozen dataclass per group; the field is the flag and the text below it is what --help shows."""

from dataclasses import dataclass
from typing import Annotated, Literal

from library.settings.flag_readers import LOW_HIGH, RESOLUTION, STEPS_OR_RATIO
from library.settings.flags import Range, Synonyms

AT_LEAST_0 = Range(low=0)
AT_LEAST_1 = Range(low=1)
ZERO_TO_ONE = Range(low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class ModelArgs:
    """The base model."""

    pretrained_model_name_or_path: str = ""
    """SDXL base model: a .safetensors file, a diffusers folder, or a hub name (only then is anything fetched)."""
    vae: str | None = None
    """VAE that replaces the base model's own: a .safetensors file or a diffusers folder."""
    no_half_vae: bool = False
    """Keep the VAE in float32 when --mixed_precision is fp16 or bf16; SDXL's first VAE overflows in fp16."""
    v_parameterization: bool = False
    """The base model predicts v (velocity) instead of the noise."""
    te2_projection: Literal["correct", "kohya"] = "correct"
    """How text encoder 2's text_projection P of a single file is used. correct: hidden @ P, as in the model's own code,
    ComfyUI and diffusers; kohya: hidden @ P transposed, as kohya's scripts do, to go on with LoRAs trained there."""


@dataclass(frozen=True, kw_only=True)
class DatasetArgs:
    """Pictures and captions. Those that a dataset file has keys for are its fallbacks."""

    dataset_config: str = ""
    """Dataset file (.toml or .json) that names the folders of pictures."""
    train_data_dir: str | None = None
    """Without --dataset_config: folder that holds folders of pictures named REPEATS_class, for example 10_sks dog. With
    --in_json: the folder of the pictures themselves."""
    reg_data_dir: str | None = None
    """With --train_data_dir: folder that holds folders of regularisation pictures, named likewise."""
    in_json: str | None = None
    """Without --dataset_config: metadata file (.json or .jsonl) with the captions of the pictures."""
    max_data_loader_n_workers: Annotated[int, AT_LEAST_0] = 8
    """Threads that load pictures ahead of the training, at most one per core; 0 loads each batch when it is needed.
    The result is the same for any number."""
    skip_bad_images: bool = False
    """Train without images that cannot be read, and name them in the log and in the saved file; else they are an
    error."""
    train_batch_size: Annotated[int, AT_LEAST_1] = 1
    """Pictures in a batch (batch_size in the dataset file)."""
    dataset_repeats: Annotated[int, AT_LEAST_1] = 1
    """How often a picture appears in one epoch (num_repeats in the dataset file)."""
    resolution: Annotated[tuple[int, int] | None, RESOLUTION] = None
    """Training size in pixels, side or width,height; with buckets its area."""
    enable_bucket: bool = False
    """Train each picture near its own aspect ratio; without it every picture is cropped to --resolution."""
    min_bucket_reso: Annotated[int, AT_LEAST_1] = 256
    """Shortest side of a bucket, in pixels; rounded down to a multiple of --bucket_reso_steps."""
    max_bucket_reso: Annotated[int, AT_LEAST_1] = 1024
    """Longest side of a bucket, in pixels; rounded up to a multiple of --bucket_reso_steps."""
    bucket_reso_steps: Annotated[int, AT_LEAST_1] = 64
    """Bucket sides are multiples of this, in pixels; SDXL needs a multiple of 32."""
    bucket_no_upscale: bool = False
    """Make buckets from the pictures' own sizes and enlarge none; min and max bucket size are then not used."""
    resize_interpolation: (
        Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"] | None
    ) = None
    """Filter for resizing; unset: area when both sides shrink, else lanczos."""
    flip_aug: bool = False
    """Mirror half of the pictures, drawn anew in each epoch."""
    random_crop: bool = False
    """Crop at a random place instead of the centre."""
    color_aug: bool = False
    """Vary hue or brightness of a third of the samples."""
    face_crop_aug_range: Annotated[tuple[float, float] | None, LOW_HIGH] = None
    """Crop around the face named in a picture's file name, this many times the face's size: least,greatest."""
    alpha_mask: bool = False
    """Use the pictures' transparency as mask of the loss."""
    cache_info: bool = False
    """For the original: a file with the pictures' sizes and captions. Here they are looked at anew."""
    validation_split: Annotated[float, ZERO_TO_ONE] = 0.0
    """Part of each subset's pictures, 0 to 1, that is held back from training."""
    validation_seed: int | None = None
    """Draws the pictures held back; unset takes --seed."""
    caption_extension: str = ".caption"
    """Ending of caption files, for example .txt; the dot may be left out."""
    shuffle_caption: bool = False
    """Shuffle a caption's tags in each epoch, after the kept ones."""
    caption_separator: str = ","
    """Text between two tags."""
    keep_tokens: Annotated[int, AT_LEAST_0] = 0
    """Number of tags at a caption's start that are neither shuffled nor dropped."""
    keep_tokens_separator: str = ""
    """Text that ends the kept part of a caption, for example |||; replaces --keep_tokens where it occurs."""
    secondary_separator: str | None = None
    """Text that joins tags to be shuffled as one; replaced by --caption_separator in the end."""
    enable_wildcard: bool = False
    """Read {a|b} in captions as a random choice, and draw one line of a caption file with several."""
    caption_prefix: str | None = None
    """Text put before every caption, with a blank between."""
    caption_suffix: str | None = None
    """Text put after every caption, with a blank between."""
    caption_dropout_rate: Annotated[float, ZERO_TO_ONE] = 0.0
    """Chance, 0 to 1, that a sample is trained with an empty caption."""
    caption_dropout_every_n_epochs: Annotated[int, AT_LEAST_0] = 0
    """Train every n-th epoch with empty captions; 0 is never."""
    caption_tag_dropout_rate: Annotated[float, ZERO_TO_ONE] = 0.0
    """Chance, 0 to 1, that a single tag is left out."""
    token_warmup_min: Annotated[int, AT_LEAST_0] = 1
    """Number of tags that token warmup starts with."""
    token_warmup_step: Annotated[float, AT_LEAST_0] = 0.0
    """Step at which all tags are in use; below 1 a part of all steps; 0 is off."""
    weighted_captions: bool = False
    """Read brackets in captions as weights: (cat:1.3), (cat) is 1.1, [cat] is 1 / 1.1, \\( is a bracket."""
    max_token_length: Literal[75, 150, 225] | None = None
    """Tokens read of a caption; unset is 75."""


@dataclass(frozen=True, kw_only=True)
class CacheArgs:
    """Caches of what is the same in every step. On disk: .npz files beside the pictures, as kohya names them."""

    cache_latents: bool = False
    """Encode every picture once, before training, and keep its latents in memory."""
    cache_latents_to_disk: bool = False
    """Keep the latents in files; later runs use them again as long as they still fit picture, size and VAE."""
    vae_batch_size: Annotated[int, AT_LEAST_1] = 1
    """Pictures that the VAE encodes at once, for a cache and without one."""
    cache_text_encoder_outputs: bool = False
    """Encode every caption once, before training, and keep the text encoders' outputs instead of the text encoders."""
    cache_text_encoder_outputs_to_disk: bool = False
    """Keep the text encoders' outputs in files; later runs use them again while caption and encoders are the same."""
    skip_cache_check: bool = False
    """Use every cache file that is there and has the right shape, kohya's too, whatever it was made from."""

    @property
    def latents(self) -> bool:
        """Whether latents are cached."""
        return self.cache_latents or self.cache_latents_to_disk

    @property
    def text(self) -> bool:
        """Whether the text encoders' outputs are cached."""
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk

    @property
    def on_disk(self) -> bool:
        """Whether anything is cached in files."""
        return self.cache_latents_to_disk or self.cache_text_encoder_outputs_to_disk


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """The network that is trained."""

    network_module: str = ""
    """Kind of network, for example networks.lora."""
    network_dim: Annotated[int | None, AT_LEAST_1] = None
    """Rank of the adapters; unset leaves it to the network (4 for networks.lora)."""
    # The default is an int as in the original, whose metadata then say "1", not "1.0".
    network_alpha: Annotated[float, AT_LEAST_0] = 1
    """Adapters are scaled by alpha / dim; 0 makes alpha equal to dim."""
    network_dropout: Annotated[float | None, Range(low=0, below=1)] = None
    """Chance, 0 to below 1, that an adapter's inner activation is zeroed in a step."""
    network_args: tuple[str, ...] = ()
    """More settings of the network as key=value, for example conv_dim=4 conv_alpha=1."""
    network_weights: str | None = None
    """Network file to go on from."""
    network_train_unet_only: bool = False
    """Train adapters in the UNet only."""
    network_train_text_encoder_only: bool = False
    """Train adapters in the text encoders only."""
    training_comment: str | None = None
    """Free text for the file's metadata (ss_training_comment)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerArgs:
    """The optimizer."""

    optimizer_type: str = ""
    """Optimizer by name; unset is AdamW."""
    optimizer_args: tuple[str, ...] = ()
    """More settings of the optimizer as key=value, for example weight_decay=0.05 betas=0.9,0.98."""
    learning_rate: Annotated[float, AT_LEAST_0] = 2e-6
    """Learning rate of everything that has none of its own."""
    unet_lr: Annotated[float | None, AT_LEAST_0] = None
    """Learning rate of the UNet's adapters; 0 leaves them untrained."""
    text_encoder_lr: Annotated[tuple[float, ...], AT_LEAST_0] = ()
    """Learning rate of the text encoders' adapters; 0 leaves them untrained. Of several the first serves both."""
    max_grad_norm: Annotated[float, AT_LEAST_0] = 1.0
    """Gradients are scaled down to this L2 norm; 0 is off."""
    gradient_accumulation_steps: Annotated[int, AT_LEAST_1] = 1
    """Batches whose gradients are averaged into one optimizer step."""

    @property
    def text_encoder_learning_rate(self) -> float | None:
        """The one rate used for both text encoders; None when --text_encoder_lr was not given."""
        return self.text_encoder_lr[0] if self.text_encoder_lr else None


@dataclass(frozen=True, kw_only=True)
class LrArgs:
    """The learning rate over time."""

    lr_scheduler: str = "constant"
    """Shape of the learning rate over the steps: constant, constant_with_warmup, linear, cosine, ..."""
    lr_scheduler_args: tuple[str, ...] = ()
    """More settings of the scheduler as key=value."""
    lr_warmup_steps: Annotated[int | float, STEPS_OR_RATIO] = 0
    """Steps over which the rate rises from 0; below 1 or with % a part of all steps."""
    lr_decay_steps: Annotated[int | float, STEPS_OR_RATIO] = 0
    """Steps over which warmup_stable_decay lets the rate fall; below 1 or with % a part of all steps."""
    lr_scheduler_num_cycles: Annotated[int, AT_LEAST_1] = 1
    """Restarts of cosine_with_restarts; half-cycles of cosine_with_min_lr and warmup_stable_decay."""
    lr_scheduler_power: float = 1.0
    """Power of polynomial."""
    lr_scheduler_timescale: Annotated[int | None, AT_LEAST_1] = None
    """Timescale of inverse_sqrt, in steps; unset is the warmup's length."""
    lr_scheduler_min_lr_ratio: Annotated[float | None, ZERO_TO_ONE] = None
    """Lowest rate of cosine_with_min_lr and warmup_stable_decay, as a part of the full rate."""


@dataclass(frozen=True, kw_only=True)
class LossArgs:
    """Noise and loss."""

    loss_type: Literal["l2"] = "l2"
    """Distance between prediction and target; l2 is the squared error."""
    noise_offset: float | None = None
    """Strength of a random offset per picture and channel added to the noise; 0.05 to 0.15 is usual, 0 is off."""
    noise_offset_random_strength: bool = False
    """Draw the strength between 0 and --noise_offset for each sample."""
    adaptive_noise_scale: float | None = None
    """Add this times the latents' absolute mean to --noise_offset."""
    multires_noise_iterations: Annotated[int | None, AT_LEAST_0] = None
    """Coarser noise layers added to the noise; 6 to 10 is usual, 0 is off."""
    multires_noise_discount: Annotated[float, AT_LEAST_0] = 0.3
    """Factor between the strengths of two such layers."""
    ip_noise_gamma: Annotated[float | None, AT_LEAST_0] = None
    """Strength of a second noise in the UNet's input only; 0.1 is usual, 0 is off."""
    ip_noise_gamma_random_strength: bool = False
    """Draw the strength between 0 and --ip_noise_gamma for each step."""
    min_timestep: Annotated[int | None, Range(low=0, high=999)] = None
    """First timestep trained; unset is 0."""
    max_timestep: Annotated[int | None, Range(low=1, high=1000)] = None
    """End of the timesteps trained, itself not included; unset is 1000."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its last step is pure noise; meant for --v_parameterization."""
    min_snr_gamma: Annotated[float | None, AT_LEAST_0] = None
    """Weigh the loss by min(SNR, gamma) / SNR; 5 is usual, 0 is off."""
    scale_v_pred_loss_like_noise_pred: bool = False
    """Scale the v-prediction loss to what a noise prediction's would be."""
    v_pred_like_loss: Annotated[float | None, AT_LEAST_0] = None
    """Part, 0 to 1, of a v-prediction-like loss added to the noise prediction's; 0 is off."""
    prior_loss_weight: Annotated[float, AT_LEAST_0] = 1.0
    """Weight of regularisation pictures in the loss."""
    masked_loss: bool = False
    """Weigh the loss by masks: subsets may name a folder of them (conditioning_data_dir in the dataset file)."""


@dataclass(frozen=True, kw_only=True)
class ComputeArgs:
    """Device, precision and memory."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the frozen model; a CPU computes in float32 whatever is asked."""
    gradient_checkpointing: bool = False
    """Keep each block's input only and compute the block again on the way back: less memory, a third more work."""
    gradient_checkpointing_keep: Annotated[float, ZERO_TO_ONE] = 0.0
    """With --gradient_checkpointing: share of the blocks whose products are kept all the same, 0 to 1."""
    flash_attn: bool = False
    """Use MindSpore's flash attention on Ascend; elsewhere the plain attention is used."""
    device: Literal["auto", "CPU", "Ascend"] = "auto"
    """Where to compute; auto takes an Ascend NPU where there is one."""
    jit: Literal["auto", "on", "off"] = "auto"
    """Compile the model's blocks; off is for debugging."""

    @property
    def compiled(self) -> bool:
        """Whether the model's blocks are compiled."""
        return self.jit != "off"

    @property
    def kept_share(self) -> float:
        """Share of the blocks whose products are kept for the gradient."""
        return self.gradient_checkpointing_keep if self.gradient_checkpointing else 1.0


@dataclass(frozen=True, kw_only=True)
class RunArgs:
    """The run as a whole."""

    max_train_steps: Annotated[int, AT_LEAST_1] = 1600
    """Optimizer steps to train."""
    max_train_epochs: Annotated[int | None, AT_LEAST_1] = None
    """Epochs to train; replaces --max_train_steps."""
    seed: Annotated[int | None, AT_LEAST_0] = None
    """Makes the whole run repeatable; unset draws one and records it."""
    dry_run: bool = False
    """Look through the data, print what would be trained, and stop."""
    report: str | None = None
    """Write a web page (one .html file) about the data: buckets, caption lengths, suspicious files, first samples."""
    debug_dataset: bool = False
    """Write the first samples as the model sees them, pictures and captions, to a folder below --output_dir, and
    stop."""
    config_file: str | None = None
    """TOML file with flags by name (tables only group them); flags on the command line win over it."""
    console_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] | None = None
    """Least severe message shown; unset is INFO."""
    console_log_file: str | None = None
    """Write messages to this file instead of the console."""
    console_log_simple: bool = False
    """Plain messages without colours and columns."""


@dataclass(frozen=True, kw_only=True)
class SaveArgs:
    """The files written."""

    output_dir: str = ""
    """Folder for the trained network; made when absent."""
    output_name: str | None = None
    """Name of the files without ending; unset is last (and epoch, at for those saved on the way)."""
    save_model_as: Literal["safetensors", "ckpt"] = "safetensors"
    """File format; ckpt is MindSpore's own."""
    save_precision: Annotated[Literal["float", "fp16", "bf16"] | None, Synonyms((("fp32", "float"),))] = None
    """Precision of the saved weights; unset keeps the one trained in."""
    save_every_n_epochs: Annotated[int | None, AT_LEAST_1] = None
    """Save after every n-th epoch."""
    save_every_n_steps: Annotated[int | None, AT_LEAST_1] = None
    """Save after every n-th step."""
    save_n_epoch_ratio: Annotated[int | None, AT_LEAST_1] = None
    """Save about this many times in the run, at epoch ends; replaces --save_every_n_epochs."""
    save_last_n_epochs: Annotated[int | None, AT_LEAST_1] = None
    """Keep the files of this many of the latest epochs; older ones are removed."""
    save_last_n_steps: Annotated[int | None, AT_LEAST_1] = None
    """Keep files up to this many steps back (a distance, not a count); older ones are removed."""
    no_metadata: bool = False
    """Write only the least metadata into the file."""


@dataclass(frozen=True, kw_only=True)
class ModelSpecArgs:
    """Descriptions written into the file (modelspec.*)."""

    metadata_title: str | None = None
    """Title; unset is the output name."""
    metadata_author: str | None = None
    """Author."""
    metadata_description: str | None = None
    """Description."""
    metadata_license: str | None = None
    """License."""
    metadata_tags: str | None = None
    """Tags, separated by commas."""
    metadata_usage_hint: str | None = None
    """How to use the network."""
    metadata_thumbnail: str | None = None
    """Picture file put into the metadata, or a data: URL."""
    metadata_merged_from: str | None = None
    """Models this one was merged from."""
    metadata_trigger_phrase: str | None = None
    """Words that call up what was trained."""
    metadata_preprocessor: str | None = None
    """Preprocessing that pictures given to the model need."""
    metadata_is_negative_embedding: str | None = None
    """Whether this is a negative embedding: true or false."""
